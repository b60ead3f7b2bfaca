"""The load: publishers that send frames on a schedule, subscribers that count, one that decrypts for latency."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass

from pylibsrtp import Error, Policy, Session

from benchmarks.servers import PAYLOAD_TYPE, Server
from loadtest.media.peer import MediaPeer

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
PROFILES = {
    1: Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    7: Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    8: Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}
FRAME_PACKETS = 10
MID_EXTENSION = b"\xbe\xde\x00\x01\x10\x30\x00\x00"  # one-byte form, id 1, mid "0"
_RECEIVE_BYTES = 65535


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    offered_pps: float
    sent: int
    expected: int
    received: int
    cpu_ns: int
    seconds: float
    latencies_us: list[float]

    @property
    def ns_per_packet(self) -> float:
        """Server CPU per packet that reached a subscriber."""
        return self.cpu_ns / max(1, self.received)

    @property
    def pps(self) -> float:
        """Packets per second that reached subscribers."""
        return self.received / self.seconds

    @property
    def loss(self) -> float:
        """Share of expected packets that did not arrive."""
        return 1 - self.received / max(1, self.expected)

    def latency_us(self, quantile: float) -> float:
        """A quantile of the sampled end-to-end delays (frame sent to its packets read)."""
        values = sorted(self.latencies_us)
        return values[min(len(values) - 1, int(quantile * len(values)))] if values else float("nan")


class Publisher:
    """Sends VP8-looking frames of `packets` packets, each frame in one GSO train."""

    def __init__(self, peer: MediaPeer, ssrc: int, packet_bytes: int, packets: int = FRAME_PACKETS) -> None:
        assert peer.keys is not None
        self.socket = peer.socket
        self._session = Session(
            Policy(key=peer.keys.send, ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=PROFILES[peer.keys.profile])
        )
        self.packets = packets
        self._ssrc = ssrc
        self._payload_bytes = packet_bytes - 12 - len(MID_EXTENSION)
        self._seq = 1
        self._timestamp = 0
        self.frames = 0

    def frame(self) -> tuple[bytes, int]:
        """The next frame, protected: the train and its segment size. Every frame looks like a VP8 key frame's start."""
        train, size = b"", 0
        for index in range(self.packets):
            marker = 0x80 if index == self.packets - 1 else 0
            header = struct.pack(
                "!BBHII", 0x90, PAYLOAD_TYPE | marker, self._seq & 0xFFFF, self._timestamp & 0xFFFFFFFF, self._ssrc
            )
            # VP8 descriptor: S=1, PID=0 on the first packet; P=0 in the payload header of a key frame.
            descriptor = b"\x10\x10" if index == 0 else b"\x00\x00"
            payload = (descriptor + struct.pack("!Q", self.frames)).ljust(self._payload_bytes, b"\xa5")
            packet = self._session.protect(header + MID_EXTENSION + payload)
            size = size or len(packet)
            train += packet
            self._seq += 1
        self._timestamp += 3000
        self.frames += 1
        return train, size

    def send(self, train: bytes, size: int) -> None:
        """Send a frame as one train."""
        self.socket.sendmsg([train], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))])


class Meter:
    """All subscribers of a run: counts packets per socket; decrypts the first one's to read frame numbers."""

    def __init__(self, peers: list[MediaPeer], packet_bytes: int) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._least_bytes = packet_bytes // 2
        self._head_bytes = 4 if peers[0].channel else 0  # ChannelData's, before each packet
        for peer in peers:
            peer.socket.setsockopt(SOL_UDP, UDP_GRO, 1)
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            self._sockets[peer.socket.fileno()] = peer.socket
            self._epoll.register(peer.socket.fileno(), select.EPOLLIN)
        self._sampled = peers[0].socket.fileno()
        keys = peers[0].keys
        assert keys is not None
        self._session = Session(
            Policy(key=keys.receive, ssrc_type=Policy.SSRC_ANY_INBOUND, srtp_profile=PROFILES[keys.profile])
        )
        self.received = 0
        self.sent_at: dict[int, float] = {}
        self.latencies_us: list[float] = []

    def drain(self, timeout: float) -> None:
        """Read what is there, waiting at most `timeout` seconds for the first of it."""
        for fd, _ in self._epoll.poll(timeout):
            sock = self._sockets[fd]
            for _ in range(32):
                try:
                    size, control, _, _ = sock.recvmsg_into([self._buffer], 64)
                except (BlockingIOError, ConnectionRefusedError):
                    break
                segment = struct.unpack("i", control[0][2][:4])[0] if control else size
                if segment < self._least_bytes or self._buffer[self._head_bytes + 1] & 0x7F in range(64, 96):
                    continue  # STUN, DTLS, RTCP (RFC 7983, RFC 5761)
                self.received += -(-size // segment)
                if fd == self._sampled:
                    self._sample(bytes(self._buffer[self._head_bytes : segment]))

    def _sample(self, packet: bytes) -> None:
        now = time.perf_counter()
        try:
            plain = self._session.unprotect(packet)
        except Error:
            return
        start = 12
        if plain[0] & 0x10:
            start += 4 + 4 * int.from_bytes(plain[14:16], "big")
        if plain[start] == 0x10 and (sent := self.sent_at.get(int.from_bytes(plain[start + 2 : start + 10], "big"))):
            self.latencies_us.append((now - sent) * 1e6)


def run(
    server: Server,
    publishers: list[Publisher],
    *,
    fan_out: int,
    pps: float,
    seconds: float,
    meter: Meter,
) -> Run:
    """Offer `pps` forwarded packets a second for `seconds`; frames of different publishers are spread evenly."""
    interval = publishers[0].packets * fan_out / pps  # between frames of all publishers together
    frames = [p.frame() for _ in range(int(seconds / interval / len(publishers)) + 1) for p in publishers]
    first = publishers[0].frames - len(frames) // len(publishers)
    meter.received, meter.latencies_us, meter.sent_at = 0, [], {}
    begun, cpu = time.perf_counter(), server.cpu_ns()
    for index, (train, size) in enumerate(frames):
        due = begun + index * interval
        while (wait := due - time.perf_counter()) > 0:
            meter.drain(max(0.0, wait - 0.0005) if wait > 0.001 else 0)
        publisher = publishers[index % len(publishers)]
        if publisher is publishers[0]:
            meter.sent_at[first + index // len(publishers)] = time.perf_counter()
        publisher.send(train, size)
        meter.drain(0)
    elapsed = time.perf_counter() - begun
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        meter.drain(0.05)
    sent = len(frames) * publishers[0].packets
    return Run(
        offered_pps=pps,
        sent=sent,
        expected=sent * fan_out,
        received=meter.received,
        cpu_ns=server.cpu_ns() - cpu,
        seconds=elapsed,
        latencies_us=meter.latencies_us,
    )
