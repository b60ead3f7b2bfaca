"""A WebRTC peer reduced to what the data plane sees: one UDP socket, SRTP keys, RTP and RTCP as bytes. No ICE, no DTLS.

Plain Python on `pylibsrtp`, written apart from the plane, so that both sides of a test do not share a mistake.
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pylibsrtp import Error, Policy, Session

from sfu._dataplane import plane as dataplane

CM_80, GCM_128, GCM_256 = 1, 7, 8
KEY_SIZE = {CM_80: 30, GCM_128: 28, GCM_256: 44}
LIBSRTP_PROFILE = {
    CM_80: Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    GCM_128: Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    GCM_256: Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}


def session(profile: int, key: bytes, *, inbound: bool) -> Session:
    policy = Policy(key=key, srtp_profile=LIBSRTP_PROFILE[profile])
    policy.ssrc_type = Policy.SSRC_ANY_INBOUND if inbound else Policy.SSRC_ANY_OUTBOUND
    policy.window_size = 1024
    policy.allow_repeat_tx = not inbound
    return Session(policy)


@dataclass
class Rtp:
    payload_type: int
    seq: int
    timestamp: int
    ssrc: int
    payload: bytes = b""
    marker: bool = False
    extensions: dict[int, bytes] = field(default_factory=dict)
    csrcs: tuple[int, ...] = ()
    padding: int = 0

    def serialize(self) -> bytes:
        first = 0x80 | (0x20 if self.padding else 0) | (0x10 if self.extensions else 0) | len(self.csrcs)
        head = struct.pack(
            "!BBHII",
            first,
            self.marker << 7 | self.payload_type,
            self.seq & 0xFFFF,
            self.timestamp & 0xFFFFFFFF,
            self.ssrc,
        )
        head += b"".join(struct.pack("!I", c) for c in self.csrcs)
        if self.extensions:
            block = b"".join(bytes([i << 4 | len(v) - 1]) + v for i, v in self.extensions.items())
            block += bytes(-len(block) % 4)
            head += struct.pack("!HH", 0xBEDE, len(block) // 4) + block
        pad = bytes(self.padding - 1) + bytes([self.padding]) if self.padding else b""
        return head + self.payload + pad

    @classmethod
    def parse(cls, data: bytes) -> Rtp:
        first, second, seq, timestamp, ssrc = struct.unpack_from("!BBHII", data)
        at = 12 + 4 * (first & 15)
        csrcs = struct.unpack_from(f"!{first & 15}I", data, 12)
        extensions: dict[int, bytes] = {}
        if first & 0x10:
            profile, words = struct.unpack_from("!HH", data, at)
            block = data[at + 4 : at + 4 + 4 * words]
            at += 4 + 4 * words
            extensions = dict(elements(profile, block))
        padding = data[-1] if first & 0x20 else 0
        return cls(
            second & 127,
            seq,
            timestamp,
            ssrc,
            data[at : len(data) - padding],
            bool(second >> 7),
            extensions,
            csrcs,
            padding,
        )


def elements(profile: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(block):
        if block[at] == 0:
            at += 1
            continue
        if profile == 0xBEDE:
            identifier, length, at = block[at] >> 4, (block[at] & 15) + 1, at + 1
        else:
            identifier, length, at = block[at], block[at + 1], at + 2
        yield identifier, block[at : at + length]
        at += length


def rtcp_packets(compound: bytes) -> list[bytes]:
    out = []
    while compound:
        size = 4 * (struct.unpack_from("!H", compound, 2)[0] + 1)
        out.append(compound[:size])
        compound = compound[size:]
    return out


def nack(sender: int, media: int, *seqs: int) -> bytes:
    """One item per number: the plane must cope with unpacked lists too."""
    items = b"".join(struct.pack("!HH", s & 0xFFFF, 0) for s in seqs)
    return empty_rr(sender) + struct.pack("!BBHII", 0x81, 205, 2 + len(seqs), sender, media) + items


def pli(sender: int, media: int) -> bytes:
    return empty_rr(sender) + struct.pack("!BBHII", 0x81, 206, 2, sender, media)


def fir(sender: int, media: int, number: int) -> bytes:
    return empty_rr(sender) + struct.pack("!BBHIIIB3x", 0x84, 206, 4, sender, 0, media, number)


def empty_rr(sender: int) -> bytes:
    return struct.pack("!BBHI", 0x80, 201, 1, sender)


def sender_report(ssrc: int, ntp: int, timestamp: int) -> bytes:
    return struct.pack("!BBHIQIII", 0x80, 200, 6, ssrc, ntp, timestamp & 0xFFFFFFFF, 1, 100)


def nacked(compound: bytes) -> list[int]:
    """Numbers that the generic NACKs of a compound ask for."""
    out: list[int] = []
    for packet in rtcp_packets(compound):
        if packet[0] & 31 == 1 and packet[1] == 205:
            for pid, mask in struct.iter_unpack("!HH", packet[12:]):
                out += [pid, *((pid + 1 + bit) & 0xFFFF for bit in range(16) if mask >> bit & 1)]
    return out


def count_plis(compounds: list[bytes]) -> int:
    return sum(p[1] == 206 and p[0] & 31 == 1 for c in compounds for p in rtcp_packets(c))


def binding_request() -> bytes:
    return struct.pack("!HHI", 1, 0, 0x2112A442) + secrets.token_bytes(12)


class SrtpPeer:
    """One transport of a plane, from outside. `close` it, or use it as a context manager."""

    def __init__(
        self, plane: dataplane.Plane, *, profile: int = GCM_128, keys: bool = True, host: str = "127.0.0.1"
    ) -> None:
        self.plane = plane
        self.profile = profile
        self.target = (host, plane.port)
        self.open()
        self.send_key = secrets.token_bytes(KEY_SIZE[profile])
        self.receive_key = secrets.token_bytes(KEY_SIZE[profile])
        self.outgoing = session(profile, self.send_key, inbound=False)
        self.incoming = session(profile, self.receive_key, inbound=True)
        self.ssrc = secrets.randbelow(1 << 31) + 1
        self.rtp: list[Rtp] = []
        self.rtcp: list[bytes] = []
        self.raw: list[bytes] = []
        self.transport = plane.add_transport()
        self.path = self.learn_path()
        plane.add_tuple(self.transport, self.path)
        plane.select_tuple(self.transport, self.path)
        if keys:
            self.set_keys()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        host = self.target[0]
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((host, 0))

    def close(self) -> None:
        self.socket.close()

    def set_keys(self) -> None:
        self.plane.set_keys(self.transport, self.profile, self.receive_key, self.send_key)

    def learn_path(self) -> dataplane.Path:
        """Send a check and see on which of the plane's sockets it came in."""
        request = binding_request()
        self.send_raw(request)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            select.select([self.plane.fileno()], [], [], 0.2)
            for upcall in self.plane.drain():
                if upcall[0] == dataplane.STUN and upcall[3] == request:
                    return upcall[2]  # type: ignore[return-value]
        raise AssertionError("the plane did not hand up a STUN check")

    def send(self, *packets: Rtp) -> None:
        for packet in packets:
            self.send_raw(self.outgoing.protect(packet.serialize()))

    def send_train(self, packets: Sequence[Rtp]) -> None:
        """Packets of one length in one system call (UDP_SEGMENT), so that they arrive together."""
        data = [self.outgoing.protect(packet.serialize()) for packet in packets]
        assert len({len(d) for d in data}) == 1
        self.socket.sendmsg([b"".join(data)], [(17, 103, struct.pack("H", len(data[0])))], 0, self.target)

    def send_rtcp(self, compound: bytes) -> None:
        self.send_raw(self.outgoing.protect_rtcp(compound))

    def send_raw(self, data: bytes) -> None:
        self.socket.sendto(data, self.target)

    def pump(self, timeout: float = 0.0) -> None:
        """Take what waits, after waiting for the first datagram at most `timeout` seconds."""
        for data in self.datagrams(timeout):
            self.raw.append(data)
            try:
                if 192 <= data[1] <= 223:
                    self.rtcp.append(self.incoming.unprotect_rtcp(data))
                elif data[0] >= 128:
                    self.rtp.append(Rtp.parse(self.incoming.unprotect(data)))
            except Error as error:
                if "replay" not in str(error):  # a resend without RTX is one, by design
                    raise

    def datagrams(self, timeout: float) -> Iterator[bytes]:
        while select.select([self.socket], [], [], timeout)[0]:
            timeout = 0.0
            yield self.socket.recv(65536)

    def wait(self, condition: Callable[[], Any], timeout: float = 5.0) -> None:
        """Pump until `condition`, or fail."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing for {timeout} s; rtp {len(self.rtp)}, rtcp {len(self.rtcp)}, {self.drops()}"
            self.pump(min(left, 0.02))

    def settle(self, seconds: float = 0.15) -> None:
        """Take what comes within `seconds`, to see what does *not* come."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.pump(left)

    def drops(self) -> dict[str, int]:
        return {k: v for k, v in self.plane.stats().items() if k.startswith("drop_") and v}


def codec(kind: int, clock_rate: int, *, apt: int = -1, feedback: bool = True) -> dataplane.Codec:
    return {"codec": kind, "clock_rate": clock_rate, "apt": apt, "nack": feedback, "pli": feedback, "fir": False}


VIDEO: Mapping[int, dataplane.Codec] = {
    96: codec(dataplane.CODEC_VP8, 90000),
    97: codec(dataplane.CODEC_VP8, 90000, apt=96),
}
AUDIO: Mapping[int, dataplane.Codec] = {111: codec(dataplane.CODEC_OPUS, 48000, feedback=False)}

VP8_KEY = b"\x10\x00"  # descriptor with S=1, then a frame header with P=0
VP8_DELTA = b"\x10\x01"


class VideoSource:
    """Numbers VP8 packets the way an encoder would: frames of `size` packets, marker on the last."""

    def __init__(
        self, peer: SrtpPeer, ssrc: int, *, payload_type: int = 96, seq: int = 1000, timestamp: int = 90_000
    ) -> None:
        self.peer, self.ssrc, self.payload_type = peer, ssrc, payload_type
        self.seq, self.timestamp = seq, timestamp
        self.extensions: dict[int, bytes] = {}
        self.sent: list[Rtp] = []

    def frame(self, *, key: bool = False, size: int = 1, length: int = 100) -> list[Rtp]:
        packets = []
        self.timestamp += 3000
        for i in range(size):
            lead = (VP8_KEY if key else VP8_DELTA) if i == 0 else b"\x00\x00"
            payload = lead + bytes([self.seq & 0xFF]) * (length - 2)
            packets.append(
                Rtp(
                    self.payload_type,
                    self.seq & 0xFFFF,
                    self.timestamp,
                    self.ssrc,
                    payload,
                    i == size - 1,
                    dict(self.extensions),
                )
            )
            self.seq += 1
        return packets

    def send(self, *, key: bool = False, size: int = 1, length: int = 100, lose: tuple[int, ...] = ()) -> list[Rtp]:
        """Send a frame but for the packets at the indices in `lose`; all are returned and kept in `sent`."""
        packets = self.frame(key=key, size=size, length=length)
        self.sent += packets
        self.peer.send(*(p for i, p in enumerate(packets) if i not in lose))
        return packets


EXTENSIONS = {
    1: dataplane.EXT_MID,
    2: dataplane.EXT_RID,
    3: dataplane.EXT_REPAIRED_RID,
    4: dataplane.EXT_TRANSPORT_CC,
    5: dataplane.EXT_AUDIO_LEVEL,
    6: dataplane.EXT_VIDEO_ORIENTATION,
}


def publish_video(peer: SrtpPeer, ssrc: int = 1111, *, rtx: int = 0, mid: str = "0", rids: tuple[str, ...] = ()) -> int:
    """A video section of `peer`; returns the track. With `rids` SSRCs are learnt."""
    return peer.plane.add_track(
        peer.transport,
        mid=mid,
        video=True,
        codecs=VIDEO,
        extensions=EXTENSIONS,
        rids=rids,
        ssrcs=() if rids else [(ssrc, rtx)],
    )


def pull_video(
    peer: SrtpPeer,
    track: int,
    ssrc: int = 7777,
    *,
    rtx: int = 0,
    rid: str = "",
    fallback: bool = True,
    extensions: Mapping[int, int] | None = None,
) -> int:
    """A sending section of `peer`, fed by `track`; returns the forwarder."""
    forwarder = peer.plane.add_forwarder(
        peer.transport,
        mid="v",
        video=True,
        ssrc=ssrc,
        rtx_ssrc=rtx,
        cname="publisher",
        extensions={dataplane.EXT_MID: 1} if extensions is None else extensions,
    )
    feed_video(peer.plane, forwarder, track, rid=rid, fallback=fallback, rtx=rtx != 0)
    return forwarder


def feed_video(
    plane: dataplane.Plane, forwarder: int, track: int, *, rid: str = "", fallback: bool = True, rtx: bool = False
) -> None:
    plane.set_source(
        forwarder,
        track,
        rid=rid,
        fallback=fallback,
        payload_types={96: 100},
        rtx_payload_types={100: 101} if rtx else {},
    )
