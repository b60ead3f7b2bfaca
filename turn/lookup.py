"""Credentials that live elsewhere: requests wait for a look-up, at most two seconds (E6).

`RemoteCredentials` answers from what was looked up lately and raises `LookupPending` otherwise; the server then parks
the request in a `WaitingRoom` and reports `CredentialWanted`. Only names behind a nonce of ours get that far, so
forged sources start no look-up. Nothing else waits: an allocation keeps its credential.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from turn.allocation import FiveTuple
from turn.credentials import Credential, derive_keys
from turn.errors import TurnError
from wire.stun import Message

LOOKUP_TIMEOUT = 2.0
REMEMBERED_MAX = 1024
REMEMBERED_FOR = 30.0
WAITING_NAMES_MAX = 256
WAITING_PER_NAME_MAX = 16


class LookupPending(TurnError):
    """The answer is elsewhere: park the request and ask."""

    def __init__(self, username: str) -> None:
        super().__init__("a credential has to be looked up")
        self.username = username


class RemoteCredentials:
    """A `CredentialSource` over what look-ups brought, good or not, for 30 s. Put it last: it knows every name."""

    def __init__(self, realm: str) -> None:
        self._realm = realm
        self._found: OrderedDict[str, tuple[float, Credential | None]] = OrderedDict()

    def find(self, username: str, unix_time: float) -> Credential | None:
        """See `CredentialSource`.

        Raises:
            LookupPending: nothing is known of `username`, or nothing recent.
        """
        until, credential = self._found.get(username, (unix_time, None))
        if unix_time >= until:
            raise LookupPending(username)
        return credential

    def remember(self, username: str, password: str | None, unix_time: float) -> None:
        """What a look-up brought; None: no such user. Derives the keys and forgets the password (I7)."""
        credential = None
        if password is not None:
            credential = Credential(username, username, (derive_keys(username, self._realm, password),))
        self._found[username] = unix_time + REMEMBERED_FOR, credential
        self._found.move_to_end(username)
        if len(self._found) > REMEMBERED_MAX:
            self._found.popitem(last=False)


@dataclass(slots=True)
class _Waiting:
    ends_at: float
    requests: list[tuple[Message, FiveTuple]] = field(default_factory=list)


class WaitingRoom:
    """Requests whose user is being looked up. Bounded in names and in requests per name."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def park(self, username: str, message: Message, five_tuple: FiveTuple, now: float) -> bool | None:
        """Let the request wait. True: it is the first for `username`, look it up; None: there is no room."""
        waiting = self._waiting.get(username)
        is_first = waiting is None
        if waiting is None:
            if len(self._waiting) >= WAITING_NAMES_MAX:
                return None
            waiting = self._waiting[username] = _Waiting(now + LOOKUP_TIMEOUT)
        if any(t == five_tuple and m.transaction_id == message.transaction_id for m, t in waiting.requests):
            return False  # sent again
        if len(waiting.requests) >= WAITING_PER_NAME_MAX:
            return None
        waiting.requests.append((message, five_tuple))
        return is_first

    def take(self, username: str) -> list[tuple[Message, FiveTuple]]:
        """The requests that waited for `username`."""
        waiting = self._waiting.pop(username, None)
        return [] if waiting is None else waiting.requests

    def take_expired(self, now: float) -> list[tuple[Message, FiveTuple]]:
        """Those that waited in vain."""
        expired = [username for username, waiting in self._waiting.items() if waiting.ends_at <= now]
        return [request for username in expired for request in self.take(username)]

    def next_timeout(self) -> float | None:
        """When the first look-up is over time."""
        return next((waiting.ends_at for waiting in self._waiting.values()), None)

    def five_tuples(self) -> set[FiveTuple]:
        """Whose requests wait."""
        return {five_tuple for waiting in self._waiting.values() for _, five_tuple in waiting.requests}

    def forget(self, five_tuple: FiveTuple) -> None:
        """The client is gone: nobody waits for its answers, and it must not get an allocation."""
        for waiting in self._waiting.values():
            waiting.requests = [request for request in waiting.requests if request[1] != five_tuple]

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)
