"""Locust users for rooms and for media; speaks to the server only over the network."""
