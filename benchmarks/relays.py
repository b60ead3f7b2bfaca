"""Relays under measurement, and the pairs of sockets, client and peer, that send through them."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.servers import Torpor, _Process
from loadtest.peers.coturn import CoturnServer
from loadtest.peers.hosts import CLIENT_HOST, SERVER_HOST, SERVER_NAMESPACE
from loadtest.turn_client import TurnClient, TurnFailedError, TurnRequests
from wire import stun

SOL_UDP, UDP_SEGMENT = 17, 103
# Clients come from many addresses: a server may limit what a single one does, and challenges are limited by ours.
SOURCES_NETWORK, SOURCES, SOURCES_COUNT = "10.87.87.128/25", ("10.87.87", 128), 120
FRAME_PACKETS = 10
CHANNEL_HEAD_BYTES = 4
INDICATION_HEAD_BYTES = 36  # header, XOR-PEER-ADDRESS of IPv4, DATA's own head
STAMP = struct.Struct("<Q")
SMALL_BYTES = 500
"""Payloads below go one by one, others in frames."""

Transport = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True, slots=True)
class Case:
    """`allocations` that relay `pps` packets a second in all."""

    allocations: int
    payload_bytes: int
    channels: bool
    pps: int
    transport: Transport = "udp"

    @property
    def name(self) -> str:
        how = ("channels" if self.channels else "indications") if self.transport == "udp" else self.transport.upper()
        return f"{self.allocations} × {self.payload_bytes} B {how} at {self.pps:,}/s"

    @property
    def head_bytes(self) -> int:
        """What stands before a payload on the client's side."""
        return CHANNEL_HEAD_BYTES if self.channels else INDICATION_HEAD_BYTES

    @property
    def packets(self) -> int:
        """Sent at a time."""
        return 1 if self.payload_bytes < SMALL_BYTES else FRAME_PACKETS


class Pair:
    """A client and a peer, both connected sockets: what one sends, stamped with a time, the other counts."""

    def __init__(self, case: Case, client: socket.socket, peer: socket.socket, head: bytes) -> None:
        self.sockets = client, peer
        self._stream = client.type == socket.SOCK_STREAM
        self._rest = b""  # of a stream: the beginning of an unfinished message
        packets = case.packets
        self._sizes = case.head_bytes + case.payload_bytes, case.payload_bytes
        self._heads = case.head_bytes, 0
        # Where the stamp is in what arrives; 0: look for it, every server writes indications its own way.
        self._payload_at = CHANNEL_HEAD_BYTES if case.channels else 0, 0
        self._trains = bytearray((head + bytes(case.payload_bytes)) * packets), bytearray(case.payload_bytes * packets)
        for sock in self.sockets:
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 1024 * 1024)

    def send(self, now: int, *, up: bool) -> None:
        """A packet, or a frame in one train, `up` from the client or down from the peer; `now` in ns."""
        side = not up
        sock, train, size = self.sockets[side], self._trains[side], self._sizes[side]
        for at in range(self._heads[side], len(train), size):
            STAMP.pack_into(train, at, now)
        if len(train) == size or (up and self._stream):
            if sock.send(train) != len(train):
                raise RuntimeError("the client's send buffer is full: less load, please")
        else:
            sock.sendmsg([train], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))])

    def receive(self, sock: socket.socket, buffer: bytearray) -> list[int]:
        """The stamps of what waits on one of the two sockets."""
        side = sock is self.sockets[1]
        stamps: list[int] = []
        if side or not self._stream:
            size, at = self._sizes[side], self._payload_at[side]
            try:
                while True:
                    if sock.recv_into(buffer) >= size:
                        stamps.append(STAMP.unpack_from(buffer, at if side or at else data_offset(buffer))[0])
            except (BlockingIOError, ConnectionRefusedError):
                return stamps
        try:
            while True:
                self._take_stream(sock, buffer, stamps)
        except (BlockingIOError, ssl.SSLWantReadError):
            return stamps

    def _take_stream(self, sock: socket.socket, buffer: bytearray, stamps: list[int]) -> None:
        """Messages of one length, one after the other; what is left of the last stays at the buffer's start."""
        rest = self._rest
        buffer[: len(rest)] = rest
        got = sock.recv_into(memoryview(buffer)[len(rest) :])
        if got == 0:
            raise RuntimeError("the server closed the connection")
        end, size = len(rest) + got, self._sizes[0]
        at = 0
        while end - at >= size:
            stamps.append(STAMP.unpack_from(buffer, at + CHANNEL_HEAD_BYTES)[0])
            at += size
        self._rest = bytes(buffer[at:end])

    def close(self) -> None:
        """Free both sockets."""
        for sock in self.sockets:
            sock.close()


class AllocatedPair(Pair):
    """One made by TURN."""

    def __init__(self, case: Case, client: TurnClient) -> None:
        peer = udp_socket()
        relayed = client.allocate()
        address = peer.getsockname()
        payload = bytes(case.payload_bytes)
        if case.channels:
            message = client.channel_data(client.bind_channel(address), payload)
        else:
            client.permit(CLIENT_HOST)
            message = client.send_indication(address, payload)
        peer.connect(relayed)
        super().__init__(case, client.socket, peer, message[: case.head_bytes])
        self._client = client

    def close(self) -> None:
        """Release the allocation too."""
        try:
            self._client.close()
        except OSError:  # the server has gone before
            self._client.socket.close()
        super().close()


class StreamTurnClient(TurnClient):
    """The same over TCP or TLS."""

    def __init__(self, server: tuple[str, int], username: str, password: str, *, host: str, tls: bool) -> None:
        self.socket = socket.create_connection(server, source_address=(host, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self._requests = TurnRequests(username, password)
        self._channels = 0
        self.relayed = ("", 0)

    def _exchange(self, method: int, transaction: bytes, request: bytes) -> stun.Message:
        self.socket.settimeout(5)
        self.socket.sendall(request)
        data = self._read(20)
        data += self._read(int.from_bytes(data[2:4], "big"))
        if data[8:20] != transaction:
            raise TurnFailedError(method, 0, "an answer to something else")
        return stun.parse(data)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise TurnFailedError(0, 0, "the server closed the connection")
            data += more
        return data


def data_offset(indication: bytearray) -> int:
    """Where the payload of a Data indication begins (RFC 8656 §11.5)."""
    at = 20
    while (attribute := int.from_bytes(indication[at : at + 2], "big")) != stun.Attr.DATA:
        if attribute == 0:
            return INDICATION_HEAD_BYTES  # the bare relay's head is blank
        at += 4 + (int.from_bytes(indication[at + 2 : at + 4], "big") + 3 & ~3)
    return at + 4


def udp_socket() -> socket.socket:
    """Bound on the client host."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((CLIENT_HOST, 0))
    return sock


class RelayServer(Protocol):
    """A server under measurement."""

    name: str

    async def start(self) -> None:
        """Start and wait until it answers."""

    async def open_pair(self, case: Case, index: int) -> Pair:
        """A client with its allocation, and its peer."""

    async def ready(self) -> None:
        """Called once when all pairs are open."""

    def cpu_ns(self) -> int:
        """CPU time so far."""

    def resident_bytes(self) -> int:
        """Resident memory."""

    async def stop(self) -> None:
        """End the process."""


async def allocate(port: int, tls_port: int, credentials: tuple[str, str], case: Case, index: int) -> Pair:
    """A pair through the TURN server at these ports."""
    source = f"{SOURCES[0]}.{SOURCES[1] + index % SOURCES_COUNT}"

    def make() -> Pair:
        if case.transport == "udp":
            client = TurnClient((SERVER_HOST, port), *credentials, host=source)
        else:
            tls = case.transport == "tls"
            server = SERVER_HOST, tls_port if tls else port
            client = StreamTurnClient(server, *credentials, host=source, tls=tls)
        return AllocatedPair(case, client)

    return await asyncio.to_thread(make)


class Ceiling(_Process):
    """The bare relay; with `gather_us` it sleeps that long between two rounds."""

    def __init__(self, gather_us: int = 0) -> None:
        super().__init__()
        self.name = f"ceiling, {gather_us} µs" if gather_us else "ceiling"
        self._gather_us = gather_us

    async def start(self) -> None:
        """Nothing: it is started with the first pair, when the head is known."""

    async def open_pair(self, case: Case, index: int) -> Pair:
        head = bytes(case.head_bytes)
        if self.process is None:
            command = [sys.executable, "-m", "benchmarks.relay_ceiling", SERVER_HOST, head.hex(), str(self._gather_us)]
            self.spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        sockets = udp_socket(), udp_socket()
        print(*(word for sock in sockets for word in sock.getsockname()), file=self.process.stdin, flush=True)
        for sock, port in zip(sockets, self.process.stdout.readline().split(), strict=True):
            sock.connect((SERVER_HOST, int(port)))
        return Pair(case, *sockets, head)

    async def ready(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)


class Coturn(CoturnServer):
    """Debian's coturn with one relay thread, long-term credentials, nothing else switched on."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(
            host=SERVER_HOST, port=3479, certificate=certificate, loopback_peers=False, core=0, netns=SERVER_NAMESPACE
        )

    async def open_pair(self, case: Case, index: int) -> Pair:
        return await allocate(self.port, self.tls_port, (self.username, self.password), case, index)

    async def ready(self) -> None:
        """Nothing to do."""


class TorporTurn(Torpor):
    """`torpor serve` with one relay thread, a credential from its HTTP API, the private client host allowed."""

    def __init__(self, certificate: tuple[Path, Path] | None = None, *, gather_us: int | None = None) -> None:
        self._credentials: tuple[str, str] | None = None
        # Two may run beside each other.
        shift = 0 if gather_us is None else 1000
        self._tls_port = 5349 + shift
        environment = {
            "TORPOR_TURN_ALLOW_PEERS": CLIENT_HOST,
            "TORPOR_TURN_PORT": str(3478 + shift),
            "TORPOR_TURN_TLS_PORT": str(self._tls_port),
        }
        if certificate is not None:
            environment["TORPOR_TURN_TLS_CERTIFICATE"] = str(certificate[0])
            environment["TORPOR_TURN_TLS_KEY"] = str(certificate[1])
        if gather_us is not None:
            environment["TORPOR_TURN_GATHER_US_MAX"] = str(gather_us)
        super().__init__(environment=environment, port=8787 + shift)
        self.turn_port = 3478 + shift
        self.name = "torpor" if gather_us is None else f"torpor, {gather_us} µs"

    async def open_pair(self, case: Case, index: int) -> Pair:
        if self._credentials is None:
            url = f"{self.url}/v1/turn/keys/{self.turn_key_id}/credentials/generate"
            headers = {"authorization": f"Bearer {self.turn_key_token}"}
            answer = (await self._http.post(url, headers=headers)).json()["iceServers"]
            self._credentials = answer["username"], answer["credential"]
        return await allocate(self.turn_port, self._tls_port, self._credentials, case, index)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
