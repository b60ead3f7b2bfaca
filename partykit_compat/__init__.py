"""The party-style server API on objects and hibernation."""
