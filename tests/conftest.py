"""What all tests share: property tests judge answers, never how long the machine took to find them; SIGINT is heard."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("torpor", deadline=None)
settings.load_profile("torpor")

# A job in a shell's background ignores SIGINT, and hands that on to the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
