"""Run a test class on both implementations of the data plane's cores: plain Python and Cython."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import strategies as st

from sfu import _reference
from sfu._dataplane import core as _dataplane

CORES: dict[str, ModuleType] = {"reference": _reference, "dataplane": _dataplane}

on_both_cores = pytest.mark.parametrize("core", CORES.values(), ids=CORES.keys())

TICK = 1 / 64
"""The finest step of time, in seconds, that floats and whole microseconds both hold exactly: no rounding can differ."""

ticks = st.integers(0, 64)
rtts = st.sampled_from([0.0, TICK, 2 * TICK, 4 * TICK, 10 * TICK, 1.0, 5.0])
