"""Datagrams between two planes of one process: make an `Exchange`, give each plane its `End`."""

from wire._batch.exchange import End, Exchange

__all__ = ["End", "Exchange"]
