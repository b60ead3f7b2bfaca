"""Requests that come again: the same answer, and nothing is done twice (RFC 8489 §6.3.1; S14)."""

from __future__ import annotations

from collections import OrderedDict

from turn.allocation import FiveTuple

TRANSACTION_LIFETIME = 40.0
TRANSACTIONS_MAX = 8192


class Transactions:
    """The answers to clients over UDP who have shown who they are. Bounded: the oldest give way."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[FiveTuple, bytes], tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def answer(self, five_tuple: FiveTuple, transaction_id: bytes, now: float) -> bytes | None:
        """What was answered, if this is a retransmission."""
        ends_at, answer = self._answers.get((five_tuple, transaction_id), (now, b""))
        return answer if now < ends_at else None

    def remember(self, five_tuple: FiveTuple, transaction_id: bytes, answer: bytes, now: float) -> None:
        """Keep an answer for 40 s."""
        if len(self._answers) >= TRANSACTIONS_MAX:
            self._answers.popitem(last=False)
        self._answers[five_tuple, transaction_id] = now + TRANSACTION_LIFETIME, answer
        self._answers.move_to_end((five_tuple, transaction_id))

    def handle_timeout(self, now: float) -> None:
        """Forget what is too old."""
        while (due := self.next_timeout()) is not None and due <= now:
            self._answers.popitem(last=False)

    def next_timeout(self) -> float | None:
        """When the oldest is too old."""
        return next(iter(self._answers.values()))[0] if self._answers else None

    def clear(self) -> None:
        """Forget all."""
        self._answers.clear()
