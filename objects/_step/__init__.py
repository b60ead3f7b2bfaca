"""What runs for each message that its object takes at once: `step.pyi` is its contract."""
