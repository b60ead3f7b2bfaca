"""A TURN server without sockets, with a clock moved by hand, and the clients to talk to it."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from typing import Any

from turn._reference import Outcome, ReferencePlane
from turn.allocation import FiveTuple, Transport
from turn.auth import PASSWORD_ALGORITHMS, Authenticator
from turn.credentials import CredentialChain, CredentialIssuer, RestSecrets, StaticUsers, derive_keys, userhash
from turn.lookup import RemoteCredentials
from turn.policy import PeerPolicy
from turn.relaypool import RelayAddress
from turn.relayports import PortPool
from turn.server import TurnServer
from turn.settings import TurnSettings
from turn.usage import RelayUsage
from wire import stun
from wire.stun import Attr, IPAddress, Message, MessageClass, Method, TransportAddress

REALM = "torpor"
USERS = {"alice": "wonderland", "bob": "builder"}
REST_SECRET = "north"
SERVER = TransportAddress(ip_address("198.41.0.4"), 3478)
SERVER_V6 = TransportAddress(ip_address("2620:fe::fe"), 3478)
RELAY_IPV4 = ip_address("198.41.0.10")
RELAY_IPV6 = ip_address("2620:fe::10")
PEER = TransportAddress(ip_address("8.8.4.4"), 5000)
PEER_V6 = TransportAddress(ip_address("2620:fe::9"), 5000)
UDP_RELAY = stun.uint32(17 << 24)
TCP_RELAY = stun.uint32(6 << 24)
UNIX_TIME = 1_800_000_000.0


def address(host: str, port: int) -> TransportAddress:
    return TransportAddress(ip_address(host), port)


class FakePeerSockets:
    """The sockets of TCP relays, without sockets: what is open, and what the server wanted."""

    def __init__(self) -> None:
        self.relays: dict[int, TransportAddress] = {}
        self.called: dict[int, TransportAddress] = {}
        self.closed: list[int] = []
        self.full = False

    def open_relay(self, local: TransportAddress) -> int | None:
        if self.full:
            return None
        handle = max(self.relays, default=0) + 1
        self.relays[handle] = local
        return handle

    def start_relay(self, handle: int, five_tuple: FiveTuple, identity: str) -> None:
        assert handle in self.relays

    def close_relay(self, handle: int) -> RelayUsage:
        del self.relays[handle]
        return RelayUsage(1, 1, 2, 2)

    def usage(self, handle: int) -> RelayUsage:
        assert handle in self.relays
        return RelayUsage()

    def connect(self, handle: int, number: int, peer: TransportAddress) -> None:
        assert handle in self.relays
        self.called[number] = peer

    def close_connection(self, number: int) -> None:
        self.closed.append(number)


class Harness:
    """Server, plane and clock."""

    def __init__(
        self,
        *,
        ipv6: bool = False,
        ports: tuple[int, int] = (49152, 65535),
        policy: dict[str, Any] | None = None,
        static_only: bool = False,
        external: str | None = None,
        remote: bool = False,
        **settings: Any,
    ) -> None:
        self.now = 1000.0
        self.unix_time = UNIX_TIME
        self.settings = TurnSettings(realm=REALM, users=USERS, rest_secrets=(REST_SECRET,), **settings)
        users = StaticUsers(USERS, REALM)
        self.issuer = CredentialIssuer(b"0123456789abcdef", REALM)
        self.remote = RemoteCredentials(REALM)
        rest = RestSecrets([REST_SECRET], REALM, strict_expiry=self.settings.strict_expiry)
        self.authenticator = Authenticator(
            REALM,
            CredentialChain([users] if static_only else [users, rest, self.issuer, *([self.remote] if remote else [])]),
            users=users if static_only else None,
            nonce_lifetime=self.settings.nonce_lifetime,
            wall_clock=lambda: self.unix_time,
        )
        relays = [RelayAddress(RELAY_IPV4, ip_address(external) if external else RELAY_IPV4, PortPool(*ports))]
        if ipv6:
            relays.append(RelayAddress(RELAY_IPV6, RELAY_IPV6, PortPool(*ports)))
        self.pools = [relay.pool for relay in relays]
        self.policy = PeerPolicy(
            relay_addresses=[ip for relay in relays for ip in (relay.local, relay.external)], **(policy or {})
        )
        self.plane = ReferencePlane(self.settings)
        self.peers = FakePeerSockets()
        self.server = TurnServer(
            self.settings,
            self.authenticator,
            self.policy,
            self.plane,
            relays,
            tcp=self.peers if self.settings.tcp_relays else None,
        )

    def receive(self, data: bytes, five_tuple: FiveTuple) -> bytes | None:
        """One message in, at most one answer out (S12)."""
        self.server.receive_message(data, five_tuple, self.now)
        sent = self.server.messages_to_send()
        assert len(sent) <= 1
        if not sent:
            return None
        assert sent[0][0] == five_tuple
        return sent[0][1]

    def advance(self, seconds: float) -> None:
        """Let time pass, waking the server as its shell would."""
        until = self.now + seconds
        while (due := self.server.next_timeout()) is not None and due <= until:
            self.now = max(self.now, due)
            self.server.handle_timeout(self.now)
        self.now = until

    def close(self) -> None:
        """Everything must be given back."""
        self.server.close()
        assert not any(self.server.live_counts().values()), self.server.live_counts()
        assert not any(self.plane.live_counts().values()), self.plane.live_counts()
        assert not self.peers.relays


class Client:
    """Builds requests and remembers realm, nonce and key, like any client. Not a model of good behaviour."""

    _ports = itertools.count(20000)

    def __init__(
        self,
        harness: Harness,
        user: str = "alice",
        password: str | None = None,
        *,
        host: str = "9.9.9.9",
        port: int | None = None,
        transport: Transport = Transport.UDP,
        algorithm: str = "",
    ) -> None:
        self.harness = harness
        self.user = user
        self.password = USERS.get(user, "") if password is None else password
        ip = ip_address(host)
        server = SERVER if ip.version == 4 else SERVER_V6
        self.five_tuple = FiveTuple(transport, TransportAddress(ip, port or next(self._ports)), server)
        self.realm = REALM
        self.nonce = b""
        self.algorithm = algorithm
        """"" as before RFC 8489, else "md5" or "sha256"."""

    # Building and sending.

    _transactions = (number.to_bytes(12, "big") for number in itertools.count(1))

    def build(self, method: Method, *attributes: tuple[int, bytes], **changes: Any) -> bytes:
        """A signed request. `changes`: username, realm, nonce (None leaves the attribute out), key, transaction_id."""
        username = changes.get("username", self.user.encode())
        realm = changes.get("realm", self.realm.encode())
        nonce = changes.get("nonce", self.nonce)
        keys = derive_keys(self.user, self.realm, self.password)
        identity: list[tuple[int, bytes]] = []
        if username is not None:
            identity.append((Attr.USERNAME, username))
        if realm is not None:
            identity.append((Attr.REALM, realm))
        if nonce is not None:
            identity.append((Attr.NONCE, nonce))
        if self.algorithm:
            choice = b"\0\2\0\0" if self.algorithm == "sha256" else b"\0\1\0\0"
            identity += [(Attr.PASSWORD_ALGORITHM, choice), (Attr.PASSWORD_ALGORITHMS, PASSWORD_ALGORITHMS)]
        key = changes.get("key", keys.sha256 if self.algorithm == "sha256" else keys.md5)
        signature = {"sha256_key": key} if self.algorithm else {"key": key}
        return stun.serialize(
            method,
            MessageClass.REQUEST,
            changes.get("transaction_id") or next(self._transactions),
            [*attributes, *identity],
            with_fingerprint=changes.get("fingerprint", False),
            **signature,
        )

    def send(self, data: bytes) -> Message | None:
        answer = self.harness.receive(data, self.five_tuple)
        return None if answer is None else stun.parse(answer)

    def request(self, method: Method, *attributes: tuple[int, bytes], **changes: Any) -> Message:
        """Send, learning the nonce first when there is none."""
        if not self.nonce:
            self.learn_nonce()
        answer = self.send(self.build(method, *attributes, **changes))
        assert answer is not None
        return answer

    def learn_nonce(self) -> Message:
        challenge = self.send(
            stun.serialize(
                Method.ALLOCATE, MessageClass.REQUEST, next(self._transactions), [(Attr.REQUESTED_TRANSPORT, UDP_RELAY)]
            )
        )
        assert challenge is not None
        assert code(challenge) == 401
        self.nonce = challenge.get(Attr.NONCE) or b""
        return challenge

    # The usual requests.

    def allocate(self, *attributes: tuple[int, bytes], **changes: Any) -> Message:
        return self.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY), *attributes, **changes)

    def refresh(self, lifetime: int | None = None, *attributes: tuple[int, bytes], **changes: Any) -> Message:
        own = [] if lifetime is None else [(Attr.LIFETIME, stun.uint32(lifetime))]
        return self.request(Method.REFRESH, *own, *attributes, **changes)

    def permit(self, *peers: TransportAddress, **changes: Any) -> Message:
        transaction_id = next(self._transactions)
        attributes = [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, transaction_id)) for peer in peers]
        return self.request(Method.CREATE_PERMISSION, *attributes, transaction_id=transaction_id, **changes)

    def bind(self, number: int, peer: TransportAddress, **changes: Any) -> Message:
        transaction_id = next(self._transactions)
        return self.request(
            Method.CHANNEL_BIND,
            (Attr.CHANNEL_NUMBER, stun.uint32(number << 16)),
            (Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, transaction_id)),
            transaction_id=transaction_id,
            **changes,
        )

    # The data path.

    def send_indication(self, peer: TransportAddress, payload: bytes, *attributes: tuple[int, bytes]) -> Outcome:
        transaction_id = next(self._transactions)
        data = stun.serialize(
            Method.SEND,
            MessageClass.INDICATION,
            transaction_id,
            [(Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, transaction_id)), (Attr.DATA, payload), *attributes],
        )
        return self.harness.plane.from_client(self.five_tuple, data, self.harness.now)

    def channel_data(self, number: int, payload: bytes) -> Outcome:
        data = number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload
        return self.harness.plane.from_client(self.five_tuple, data, self.harness.now)

    def peer_sends(self, source: TransportAddress, payload: bytes, *, relay: int = 0) -> Outcome:
        handle = self.harness.server._allocations[self.five_tuple].relays[relay].handle
        return self.harness.plane.from_peer(handle, source, payload, self.harness.now)

    @property
    def userhash(self) -> bytes:
        return userhash(self.user, self.realm)


def code(message: Message | None) -> int:
    """The error code; 0 for success."""
    assert message is not None
    error = message.error()
    return error[0] if error else 0


def relayed(message: Message) -> list[TransportAddress]:
    """The relayed addresses of an Allocate response."""
    found = [stun.parse_xor_address(v, message.transaction_id) for v in message.get_all(Attr.XOR_RELAYED_ADDRESS)]
    return [relay for relay in found if relay is not None]


def lifetime(message: Message) -> int:
    value = message.uint(Attr.LIFETIME)
    assert value is not None
    return value


def ips(*hosts: str) -> list[IPAddress]:
    return [ip_address(host) for host in hosts]
