"""A forwarding hop composed of the data plane's cores, and the two ends it stands between.

Everything that a real hop owns besides (keys, sockets, bandwidth, layers) is left out: what remains is the path of a
packet from a publisher's sequence number to a subscriber's, and the repair on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from sfu._reference import Extension
from wire import rtcp, rtp
from wire.rtcp import Nack, PictureLossIndication
from wire.rtp import RtpPacket

Send = Callable[[bytes], None]

MEDIA_SSRC, RTX_SSRC = 0x1111, 0x2222
MEDIA_TYPE, RTX_TYPE = 96, 97
SCAN = 0.010
RTT = 0.040


def is_rtcp(data: bytes) -> bool:
    return 192 <= data[1] <= 223


def nearest(reference: int, seq: int) -> int:
    """The unwrapped number with these low 16 bits closest to `reference`."""
    return reference + ((seq - reference + 0x8000) & 0xFFFF) - 0x8000


class Publisher:
    """Sends numbered payloads and answers NACKs by RTX, each request once more."""

    def __init__(self, send: Send, *, first_seq: int = 1000) -> None:
        self.send = send
        self.next_seq = first_seq
        self.sent: dict[int, RtpPacket] = {}
        self.rtx_seq = 0
        self.nacked: list[int] = []
        self.plis = 0
        self.received: list[tuple[float, bytes]] = []

    def send_packet(self, payload: bytes = b"", *, padding_bytes: int = 0) -> None:
        packet = RtpPacket(
            MEDIA_TYPE, self.next_seq & 0xFFFF, self.next_seq * 30, MEDIA_SSRC, payload, padding_bytes=padding_bytes
        )
        self.sent[packet.seq] = packet
        self.next_seq += 1
        self.send(packet.serialize())

    def send_rtx(self, seq: int) -> None:
        original = self.sent[seq]
        self.rtx_seq += 1
        payload = seq.to_bytes(2) + original.payload
        self.send(RtpPacket(RTX_TYPE, self.rtx_seq, original.timestamp, RTX_SSRC, payload).serialize())

    def receive_datagram(self, data: bytes, now: float) -> None:
        self.received.append((now, data))
        for packet in rtcp.parse(data):
            if isinstance(packet, Nack):
                self.nacked += packet.seqs
                for seq in packet.seqs:
                    if seq in self.sent:
                        self.send_rtx(seq)
            elif isinstance(packet, PictureLossIndication):
                self.plis += 1


class Subscriber:
    """Takes what comes under its SSRCs, asks for what is missing, and keeps every payload by out number."""

    def __init__(self, index: int, *, hostile: bool = False) -> None:
        self.ssrc, self.rtx_ssrc = 0xA000 + index, 0xB000 + index
        self.hostile = hostile
        self.send: Send
        self.highest = 0
        self.lowest = 0
        self.payloads: dict[int, bytes] = {}
        self.arrivals: list[int] = []
        self.rtx_packets: list[RtpPacket] = []
        self.asked_at: dict[int, float] = {}

    def receive_datagram(self, data: bytes, now: float) -> None:
        packet = rtp.parse(data)
        if packet.ssrc == self.rtx_ssrc:
            self.rtx_packets.append(packet)
            self._take(nearest(self.highest, int.from_bytes(packet.payload[:2])), packet.payload[2:])
            return
        assert packet.ssrc == self.ssrc
        number = nearest(self.highest, packet.seq) if self.arrivals else (1 << 16) + packet.seq
        if not self.arrivals:
            self.lowest = self.highest = number
        self.highest = max(self.highest, number)
        self._take(number, packet.payload)

    def _take(self, number: int, payload: bytes) -> None:
        self.arrivals.append(number)
        assert self.payloads.setdefault(number, payload) == payload, "a number stands for one payload"

    def missing(self) -> list[int]:
        return [number for number in range(self.lowest, self.highest) if number not in self.payloads]

    def scan(self, now: float) -> None:
        """Ask at most each 60 ms for what is missing; a hostile one asks for everything each time."""
        if self.hostile:
            wanted = range(self.highest - 300, self.highest + 300)
        else:
            wanted = [n for n in self.missing()[-250:] if now - self.asked_at.get(n, -1.0) >= 0.06]  # type: ignore[assignment]
            self.asked_at |= dict.fromkeys(wanted, now)
        if wanted:
            self.send(Nack(self.ssrc, self.ssrc, tuple(number & 0xFFFF for number in wanted)).serialize())


@dataclass
class _Leg:
    subscriber: Subscriber
    send: Send
    map: object
    ledger: object
    cut: bool = False
    rtx_seq: int = 0
    out_timestamps: dict[int, int] = field(default_factory=dict)


class Hop:
    """The node between: the cores of one implementation, put together as the specification says."""

    def __init__(self, core: ModuleType, send_upstream: Send, *, out_start: int = 20_000) -> None:
        self.core = core
        self.send_upstream = send_upstream
        self.out_start = out_start
        self.unwrapper = core.SequenceUnwrapper()
        self.highest = 0
        self.legs: list[_Leg] = []
        self._restart_reception()

    def _restart_reception(self) -> None:
        self.detector = self.core.LossDetector(video=True)
        self.cache = self.core.PacketCache(2048, 4 << 20, 2.0)

    def add_subscriber(self, subscriber: Subscriber, send: Send) -> None:
        out_map, ledger = self.core.SequenceMap(self.out_start), self.core.ResendLedger()
        self.legs.append(_Leg(subscriber, send, out_map, ledger))

    def receive_media(self, data: bytes, now: float) -> None:
        packet = rtp.parse(data)
        if packet.ssrc == RTX_SSRC:
            if len(packet.payload) < 2:
                return  # a probe (RTX-1)
            ext_seq = nearest(self.highest, int.from_bytes(packet.payload[:2]))
            original = RtpPacket(
                MEDIA_TYPE, ext_seq & 0xFFFF, packet.timestamp, MEDIA_SSRC, packet.payload[2:], packet.marker
            )
            self._accept(ext_seq, original, now, recovered=True)
            return
        ext_seq = self.unwrapper.receive(packet.seq)
        if ext_seq == -1:
            return
        if self.unwrapper.take_resync():
            self._restart_reception()
            for leg in self.legs:
                leg.map.switch(ext_seq, True)  # type: ignore[attr-defined]
            self._request_keyframe()
        self._accept(ext_seq, packet, now)

    def _accept(self, ext_seq: int, packet: RtpPacket, now: float, *, recovered: bool = False) -> None:
        self.highest = max(self.highest, ext_seq)
        if self.detector.receive(ext_seq, now, recovered=recovered):
            self._request_keyframe()
        data = packet.serialize()
        if packet.payload and not self.cache.store(ext_seq, data, now):
            return  # a duplicate
        for leg in self.legs:
            self._forward(leg, ext_seq, data, bool(packet.payload), now)

    def _forward(self, leg: _Leg, ext_seq: int, data: bytes, wanted: bool, now: float) -> None:
        out = leg.map.map(ext_seq) if wanted else leg.map.drop(ext_seq)  # type: ignore[attr-defined]
        if out == -1:
            return
        if not wanted:
            data = RtpPacket(MEDIA_TYPE, 0, 0, MEDIA_SSRC, padding_bytes=1).serialize()
        leg.ledger.sent(out, ext_seq, now, padding=not wanted)  # type: ignore[attr-defined]
        leg.send(self._rewritten(data, leg.subscriber.ssrc, MEDIA_TYPE, out))

    def _rewritten(self, data: bytes, ssrc: int, payload_type: int, seq: int, osn: int = -1) -> bytes:
        out: bytes | None = self.core.rewrite(
            data,
            payload_type=payload_type,
            seq=seq & 0xFFFF,
            timestamp=rtp.parse(data).timestamp,
            ssrc=ssrc,
            extensions_in={},
            extensions_out={int(Extension.MID): 1},
            mid=b"0",
            rtx_osn=osn,
        )
        assert out is not None
        return out

    def scan(self, now: float) -> None:
        """Ask the publisher for what is due (NACK-4), and for a key frame for what is lost (SHLD-3)."""
        due = self.detector.due(now, RTT)
        if due:
            self.send_upstream(Nack(1, MEDIA_SSRC, tuple(number & 0xFFFF for number in due)).serialize())
        if self.detector.take_lost():
            self._request_keyframe()

    def _request_keyframe(self) -> None:
        self.send_upstream(PictureLossIndication(1, MEDIA_SSRC).serialize())

    def receive_feedback(self, leg: _Leg, data: bytes, now: float) -> None:
        """Answer a subscriber's NACKs from the cache (CACHE-3); nothing of it goes further (SHLD-1)."""
        for packet in rtcp.parse(data):
            if not isinstance(packet, Nack):
                continue
            for seq in dict.fromkeys(packet.seqs):
                source = leg.ledger.ask(seq, now, RTT)  # type: ignore[attr-defined]
                cached = self.cache.fetch(source, now) if source >= 0 else None
                if cached is not None:
                    leg.rtx_seq += 1
                    leg.send(self._rewritten(cached, leg.subscriber.rtx_ssrc, RTX_TYPE, leg.rtx_seq, osn=seq))
