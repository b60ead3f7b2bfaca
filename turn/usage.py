"""What passed through relays, by who is to answer for it: an API key and the custom identifier of a credential.

The ledger holds the allocations that ended; those that live are added when somebody asks. Its size is bounded: beyond
`ROWS_MAX` parties, new identifiers of a key share one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

ROWS_MAX = 1000
OTHERS = "(others)"
"""The row of identifiers that came when the ledger was full."""


class RelayUsage(NamedTuple):
    """What passed through a relay: payload bytes and packets, from and to the client."""

    bytes_from_client: int = 0
    packets_from_client: int = 0
    bytes_to_client: int = 0
    packets_to_client: int = 0


class Party(NamedTuple):
    """Who is to answer for an allocation. Both may be empty: a credential without a key, or without an identifier."""

    key_id: str
    identifier: str


class UsageLedger:
    """Sums per party. A party keeps its row, so that no sum ever shrinks or moves."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._ended: dict[Party, RelayUsage] = {}

    def open(self, party: Party) -> None:
        """An allocation of `party` begins: it gets a row while there is room."""
        row = self.row_of(party)
        self._ended.setdefault(row, RelayUsage())

    def close(self, party: Party, usage: RelayUsage) -> None:
        """An allocation of `party` ended with this."""
        row = self.row_of(party)
        self._ended[row] = add(self._ended.get(row, RelayUsage()), usage)

    def row_of(self, party: Party) -> Party:
        """Where `party` is counted."""
        if party in self._ended or len(self._ended) < self._rows_max:
            return party
        return Party(party.key_id, OTHERS)

    def sums(self, live: Iterable[tuple[Party, RelayUsage]]) -> Mapping[Party, RelayUsage]:
        """Every row, with what the live allocations have carried so far."""
        sums = dict(self._ended)
        for party, usage in live:
            row = self.row_of(party)
            sums[row] = add(sums.get(row, RelayUsage()), usage)
        return sums


def add(*usages: RelayUsage) -> RelayUsage:
    """The sum, field by field."""
    return RelayUsage(*map(sum, zip(*usages, strict=True)))
