"""Which peers an allocation may talk to: what CreatePermission and ChannelBind do (RFC 8656 §10, §12). No sockets.

Part of `TurnServer`, which knows who asks. Decisions go to the `RelayPlane` at once. A row id of the rule table stands
beside each check.
"""

from __future__ import annotations

from turn.allocation import Allocation, FiveTuple, Relay
from turn.allocations import Allocations
from turn.auth import Authenticated
from turn.channel import CHANNEL_LIFETIME, CHANNEL_MAX, CHANNEL_MAX_RFC5766, CHANNEL_MIN, BindResult
from turn.errors import StunRefusal
from turn.permission import PERMISSION_LIFETIME
from turn.policy import PeerPolicy, Verdict
from turn.ports import RelayPlane
from turn.relaypool import RelayPool
from turn.settings import TurnSettings
from wire import stun
from wire.stun import Attr, AttributeList, IPAddress, Message


class PeerAdmission:
    """Permissions and channels of all allocations of one server."""

    def __init__(
        self, settings: TurnSettings, policy: PeerPolicy, plane: RelayPlane, pool: RelayPool, allocations: Allocations
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._plane = plane
        self._pool = pool
        self._allocations = allocations

    def create_permission(
        self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float
    ) -> AttributeList:
        """RFC 8656 §10.2. All addresses or none (P3)."""
        allocation = self._allocations[five_tuple]
        values = message.get_all(Attr.XOR_PEER_ADDRESS)
        peers = [stun.parse_xor_address(value, message.transaction_id) for value in values]
        addresses = [peer.ip for peer in peers if peer is not None]
        if not peers or len(addresses) != len(peers):
            raise StunRefusal(400)
        for relay, ips in self._admit(allocation, addresses, now):
            for ip in ips:
                self._permit(relay, ip, now + PERMISSION_LIFETIME)
        return []

    def channel_bind(self, message: Message, five_tuple: FiveTuple, auth: Authenticated, now: float) -> AttributeList:
        """RFC 8656 §12.2."""
        allocation = self._allocations[five_tuple]
        number = message.uint(Attr.CHANNEL_NUMBER)
        peer = message.address(Attr.XOR_PEER_ADDRESS)
        if allocation.tcp:
            raise StunRefusal(400)  # TC6
        highest = CHANNEL_MAX_RFC5766 if self._settings.rfc5766_channel_numbers else CHANNEL_MAX
        if number is None or peer is None or peer.port == 0 or not CHANNEL_MIN <= number >> 16 <= highest:
            raise StunRefusal(400)  # C1, C2; the lower half is reserved and ignored
        number >>= 16
        bindable = allocation.channels.check(number, peer, now)
        if bindable is BindResult.CLASH:
            raise StunRefusal(400)
        if allocation.relay_for(peer.ip) is not None and not self._policy.check_endpoint(peer):
            raise StunRefusal(403)
        if bindable is BindResult.FULL:
            raise StunRefusal(508)
        for relay, (ip, *_) in self._admit(allocation, [peer.ip], now):
            binding = allocation.channels.bind(number, peer, now)
            self._plane.bind_channel(relay.handle, number, peer, binding.expires_at)
            extended = self._settings.channel_extends_permission  # P6
            self._permit(relay, ip, now + (CHANNEL_LIFETIME if extended else PERMISSION_LIFETIME))  # C3
        return []

    def change_policy(self, policy: PeerPolicy, now: float) -> None:
        """Put another filter in force: datagrams to and from what it denies stop at once (D5)."""
        self._policy = policy
        self._pool.change_policy(policy)
        relays = [relay for allocation in self._allocations for relay in allocation.relays]
        for relay in relays:
            self._pool.announce(relay)
        for relay in relays:
            for ip in relay.permissions.live(now):
                if policy.check(ip) is Verdict.DENIED:
                    relay.permissions.remove(ip)
                    if not relay.tcp:
                        self._plane.forbid(relay.handle, ip)

    def _admit(self, allocation: Allocation, ips: list[IPAddress], now: float) -> list[tuple[Relay, list[IPAddress]]]:
        """P3: the addresses by relay, after every check; nothing is changed when one fails."""
        by_version: dict[int, list[IPAddress]] = {}
        for ip in ips:
            if allocation.relay_for(ip) is None:
                raise StunRefusal(443)
            by_version.setdefault(ip.version, []).append(ip)
        if any(self._policy.check(ip) is Verdict.DENIED for ip in ips):
            raise StunRefusal(403)
        admitted = [(relay, by_version[relay.version]) for relay in allocation.relays if relay.version in by_version]
        new = [relay.permissions.new_among(addresses, now) for relay, addresses in admitted]
        if not all(relay.permissions.has_room(n, now) for (relay, _), n in zip(admitted, new, strict=True)):
            raise StunRefusal(508)  # X14
        if not allocation.new_peers.take(sum(new), now):
            raise StunRefusal(508)  # X15
        return admitted

    def _permit(self, relay: Relay, ip: IPAddress, expires_at: float) -> None:
        expires_at = relay.permissions.install(ip, expires_at)
        if not relay.tcp:
            self._plane.permit(relay.handle, ip, expires_at)
