"""What all tests share: property tests judge answers, never how long the machine took to find them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("torpor", deadline=None)
settings.load_profile("torpor")
