"""A timer for `objects.watchdog`: `ticker.pyi` is its contract."""
