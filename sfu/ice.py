"""ICE-lite: connectivity checks, nomination, consent and restart of one session (RFC 8445, 7675; rules ICE-1..8).

We are always the controlled, lite side: the peer checks, we answer, and its checks are all we ever learn its addresses
from (ICE-8). Nothing is sent but replies.

    NEW --good check--> CONNECTED --13 s without a check--> DISCONNECTED --30 s without--> FAILED
                             ^----------------good check------------'

`CheckGate` stands before the agents: it parses, finds the agent by the ufrag that USERNAME begins with, and spends the
budgets of ICE-3, so that the HMAC behind it costs an attacker more than us.

In: `receive_check(message, path, now)`, `handle_timeout(now)`. Out: the reply (returned), `events_received()`,
`next_timeout()`. Times are monotonic seconds.
"""

from __future__ import annotations

import secrets
import string
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from wire import stun
from wire.errors import StunError
from wire.stun import Attr, MessageClass, Method

TUPLES_MAX: Final = 8
DISCONNECTED_AFTER: Final = 13.0  # two missed checks of a full agent: 5 s +/- 20 % each
CONSENT_TIMEOUT: Final = 30.0  # RFC 7675 §5.1
CHECKS_PER_SESSION_PER_S: Final = 50
STRANGER_CHECKS_PER_ADDRESS_PER_S: Final = 10
ERROR_REPLIES_PER_ADDRESS_PER_S: Final = 10
ADDRESSES_MAX: Final = 4096

_ALPHABET: Final = string.ascii_letters + string.digits  # ice-char without "+" and "/", which paths and logs dislike
_KNOWN: Final = frozenset({Attr.USERNAME, Attr.MESSAGE_INTEGRITY, Attr.PRIORITY, Attr.USE_CANDIDATE})
_BINDING_ERROR: Final = b"\x01\x11"

# Socket index, remote host, remote port: as the data plane names a tuple.
Path: TypeAlias = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class IceCredentials:
    """One side's username fragment and password (RFC 8445 §5.3)."""

    ufrag: str
    pwd: str

    @staticmethod
    def generate() -> IceCredentials:
        """Fresh ones: the ufrag routes checks to the session and is as hard to guess as the password (ICE-1)."""
        return IceCredentials(_random_text(24), _random_text(32))

    def __repr__(self) -> str:
        """The ufrag alone: the password is a secret."""
        return f"IceCredentials({self.ufrag!r})"


def _random_text(size: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(size))


class IceState(Enum):
    """Liveness of the peer, as its checks tell."""

    NEW = "new"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TupleValidated:
    """`path` passed its first authenticated check: let its datagrams in (DMX-3)."""

    path: Path


@dataclass(frozen=True, slots=True)
class TupleSelected:
    """Send to `path` from now on (ICE-5)."""

    path: Path


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The agent entered `state`."""

    state: IceState


IceEvent: TypeAlias = TupleValidated | TupleSelected | StateChanged


class TokenBucket:
    """`rate` tokens a second, at most `burst` at once."""

    __slots__ = ("_burst", "_rate", "_time", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._time = now

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._time) * self._rate)
        self._time = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class AddressBuckets:
    """One bucket for each of the `ADDRESSES_MAX` addresses seen last.

    A flood of spoofed sources can push an address out, which only refills that address's bucket.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, host: str, now: float) -> bool:
        """Take one token of `host`."""
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) == ADDRESSES_MAX:
                self._buckets.popitem(last=False)
            bucket = self._buckets[host] = TokenBucket(self._rate, self._rate, now)
        else:
            self._buckets.move_to_end(host)
        return bucket.take(now)


class IceLiteAgent:
    """The lite agent of one session."""

    def __init__(self, local: IceCredentials, *, now: float) -> None:
        self.local = local
        """What our SDP says now. During a restart checks with the previous pair are still good (ICE-7)."""
        self.state = IceState.NEW
        self.selected: Path | None = None
        self._previous: IceCredentials | None = None
        self._tuples: list[Path] = []  # oldest first
        self._nomination = -1
        # Two budgets: whoever guesses or overhears a ufrag cannot starve the checks of the tuples in use.
        self._known_checks = TokenBucket(CHECKS_PER_SESSION_PER_S, CHECKS_PER_SESSION_PER_S, now)
        self._new_checks = TokenBucket(CHECKS_PER_SESSION_PER_S, CHECKS_PER_SESSION_PER_S, now)
        self._consent_at = now
        self._events: list[IceEvent] = []

    @property
    def ufrags(self) -> tuple[str, ...]:
        """The fragments that route to this agent: the current one and, during a restart, the previous one."""
        return (self.local.ufrag,) if self._previous is None else (self.local.ufrag, self._previous.ufrag)

    @property
    def tuples(self) -> tuple[Path, ...]:
        """Validated paths, oldest first; at most `TUPLES_MAX`."""
        return tuple(self._tuples)

    def restart(self, local: IceCredentials) -> None:
        """Take new credentials; the pair that the peer may still be using stays good until the new one is used.

        Twice in a row: the pair kept is the one that carried a check last (RFC 8445 §9).
        """
        if self._previous is None:
            self._previous = self.local
        self.local = local

    def receive_check(self, request: stun.Message, ufrag: str, path: Path, now: float) -> bytes | None:
        """Answer a Binding request whose USERNAME begins with `ufrag`, one of `ufrags`.

        Returns:
            The reply to send back to `path`, or None to stay silent: above the budget.
        """
        budget = self._known_checks if path in self._tuples else self._new_checks
        if not budget.take(now):
            return None
        credentials = self.local if ufrag == self.local.ufrag else self._previous
        if credentials is None or ufrag != credentials.ufrag:
            return None
        key = credentials.pwd.encode()
        if not request.check_integrity(key):
            return stun.error_response(request, 401)
        if unknown := request.unknown_required(_KNOWN):
            value = stun.unknown_attributes(unknown)
            return stun.error_response(request, 420, "", [(Attr.UNKNOWN_ATTRIBUTES, value)], key=key)
        try:
            priority = request.uint(Attr.PRIORITY)
            nomination = request.uint(Attr.NOMINATION)
        except StunError:
            return stun.error_response(request, 400, key=key)
        if priority is None:
            return stun.error_response(request, 400, key=key)
        if Attr.ICE_CONTROLLED in request:
            return stun.error_response(request, 487, key=key)
        if credentials is self.local and self._previous is not None:
            self._previous = None
            self._nomination = -1
        self._accept(path, nominated=Attr.USE_CANDIDATE in request, nomination=nomination, now=now)
        mapped = stun.xor_address((path[1], path[2]), request.transaction_id)
        return stun.success_response(request, [(Attr.XOR_MAPPED_ADDRESS, mapped)], key=key, with_fingerprint=True)

    def _accept(self, path: Path, *, nominated: bool, nomination: int | None, now: float) -> None:
        self._consent_at = now
        if path not in self._tuples:
            if len(self._tuples) == TUPLES_MAX:
                self._tuples.remove(next(known for known in self._tuples if known != self.selected))
            self._tuples.append(path)
            self._events.append(TupleValidated(path))
        if nomination is not None:
            # Renomination: only a higher value moves the choice, so late checks cannot move it back.
            nominated = nomination > self._nomination
            self._nomination = max(self._nomination, nomination)
        if path != self.selected and (nominated or self.selected is None):
            self.selected = path
            self._events.append(TupleSelected(path))
        self._enter(IceState.CONNECTED)

    def _enter(self, state: IceState) -> None:
        if state is not self.state:
            self.state = state
            self._events.append(StateChanged(state))

    def handle_timeout(self, now: float) -> None:
        """Notice missing checks. RTP never counts as consent (ICE-6)."""
        if self.state in (IceState.NEW, IceState.FAILED):
            return
        silence = now - self._consent_at
        if silence >= CONSENT_TIMEOUT:
            self._enter(IceState.FAILED)
        elif silence >= DISCONNECTED_AFTER:
            self._enter(IceState.DISCONNECTED)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to notice."""
        if self.state is IceState.CONNECTED:
            return self._consent_at + DISCONNECTED_AFTER
        if self.state is IceState.DISCONNECTED:
            return self._consent_at + CONSENT_TIMEOUT
        return None

    @property
    def consent_at(self) -> float:
        """Time of the last good check, or of creation."""
        return self._consent_at

    def events_received(self) -> list[IceEvent]:
        """Take what happened since asked last, in order."""
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class Check:
    """A Binding request that a known agent should judge."""

    agent: IceLiteAgent
    request: stun.Message
    ufrag: str


class CheckGate:
    """The table from ufrag to agent, and the budgets of strangers (ICE-1, ICE-3)."""

    def __init__(self) -> None:
        self._agents: dict[str, IceLiteAgent] = {}
        self._strangers = AddressBuckets(STRANGER_CHECKS_PER_ADDRESS_PER_S)
        self._error_replies = AddressBuckets(ERROR_REPLIES_PER_ADDRESS_PER_S)

    def __len__(self) -> int:
        return len(self._agents)

    def add(self, agent: IceLiteAgent) -> None:
        """Route the agent's ufrags to it; call again after `restart`."""
        for ufrag in agent.ufrags:
            self._agents[ufrag] = agent

    def discard(self, ufrag: str) -> None:
        """Forget a ufrag, if it is known."""
        self._agents.pop(ufrag, None)

    def receive_datagram(self, data: bytes, path: Path, now: float) -> Check | bytes | None:
        """Judge a datagram that looks like STUN.

        Returns:
            The check for its agent, an error reply for `path`, or None to drop it in silence.
        """
        try:
            message = stun.parse(data)
            username = message.text(Attr.USERNAME, 508)
        except StunError:
            return None
        # Indications (keep-alives) are accepted and mean nothing; we send no requests, so responses are noise.
        if message.method != Method.BINDING or message.message_class != MessageClass.REQUEST:
            return None
        ufrag, colon, _ = (username or "").partition(":")
        agent = self._agents.get(ufrag)
        if agent is not None and colon and message.has_integrity:
            return Check(agent, message, ufrag)
        if not self._strangers.take(path[1], now):
            return None
        incomplete = username is None or not message.has_integrity
        return self.limit_errors(stun.error_response(message, 400 if incomplete else 401), data, path, now)

    def limit_errors(self, reply: bytes | None, request: bytes, path: Path, now: float) -> bytes | None:
        """`reply`; but an error only if it is no longer than the request and within the address's budget."""
        if reply is None or reply[:2] != _BINDING_ERROR:
            return reply
        if len(reply) > len(request) or not self._error_replies.take(path[1], now):
            return None
        return reply
