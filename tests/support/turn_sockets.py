"""A TURN server on loopback, peers, and clients over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from turn.credentials import derive_keys
from turn.framing import StreamFramer
from turn.service import TurnService, TurnSettings
from wire import stun
from wire.exchange import End
from wire.stun import Attr, Message, MessageClass, Method, TransportAddress

USER, PASSWORD = "alice", "wonderland"
PEER_HOST = "127.0.0.2"  # loopback, but no address of an interface
UDP_RELAY = stun.uint32(17 << 24)
PATIENCE = 5.0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
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
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


@asynccontextmanager
async def serving(
    tmp_path: Path | None = None,
    *,
    exchange: End | None = None,
    clock: Callable[[], float] = time.monotonic,
    **changes: Any,
) -> AsyncIterator[TurnService]:
    """A started service; with `tmp_path` also over TLS. Everything must be gone afterwards."""
    settings: dict[str, Any] = {
        "port": 0,
        "tls_port": 0,
        "users": {USER: PASSWORD},
        "allow_loopback_peers": True,
        "allocations_max": 64,
        "connections_max": 64,
        "new_peers_per_s": 0,
        "requests_per_s": 0,
        "errors_per_s": 0,
    }
    if tmp_path is not None:
        settings["tls_certificate"], settings["tls_key"] = make_certificate(tmp_path)
    service = TurnService(TurnSettings(**(settings | changes)), exchange=exchange, clock=clock)
    await service.start()
    try:
        yield service
    finally:
        await service.close()
        assert not any(service.live_counts().values()), service.live_counts()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put_nowait((data, addr[:2]))


class Peer:
    """A UDP socket somewhere."""

    def __init__(self, sock: socket.socket, transport: asyncio.DatagramTransport, protocol: _Datagrams) -> None:
        self.transport = transport
        self._sock = sock
        self._protocol = protocol
        host, port = sock.getsockname()[:2]
        self.address = TransportAddress(ip_address(host), port)

    @classmethod
    async def open(cls, host: str = PEER_HOST) -> Peer:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((host, 0))
        return cls(sock, *await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, sock=sock))

    def send(self, data: bytes, to: TransportAddress) -> None:
        # Not by the transport, which sends no empty datagram.
        self._sock.sendto(data, (str(to.ip), to.port))

    async def receive(self) -> tuple[bytes, TransportAddress]:
        data, (host, port) = await asyncio.wait_for(self._protocol.received.get(), PATIENCE)
        return data, TransportAddress(ip_address(host), port)

    @property
    def waiting(self) -> int:
        return self._protocol.received.qsize()

    def close(self) -> None:
        self.transport.close()


class Client:
    """One client on one transport: "udp", "tcp" or "tls"."""

    def __init__(self, transport: str, username: str = USER, password: str = PASSWORD) -> None:
        self.transport = transport
        self.username, self.password = username, password
        self.realm = ""
        self.nonce = b""
        self.others: asyncio.Queue[bytes] = asyncio.Queue()
        """What arrived that answers no request."""
        self._datagrams: Peer | None = None
        self._reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self._server = TransportAddress(ip_address("127.0.0.1"), 0)
        self._answers: dict[bytes, asyncio.Future[Message]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, service: TurnService, transport: str = "udp", host: str = "127.0.0.1", **identity: str
    ) -> AsyncIterator[Client]:
        client = cls(transport, **identity)
        await client.connect(service, host)
        try:
            yield client
        finally:
            await client.close()

    async def connect(self, service: TurnService, host: str = "127.0.0.1") -> None:
        port = service.tls_port if self.transport == "tls" else service.port
        self._server = TransportAddress(ip_address(host), port)
        if self.transport == "udp":
            self._datagrams = await Peer.open(host)
        else:
            context = None
            if self.transport == "tls":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._reader, self.writer = await asyncio.open_connection(host, port, ssl=context)
        self._task = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._datagrams is not None:
            self._datagrams.close()
        if self.writer is not None:
            self.writer.transport.abort()
        await asyncio.sleep(0.05)

    def send(self, data: bytes) -> None:
        if self._datagrams is not None:
            self._datagrams.send(data, self._server)
        else:
            assert self.writer is not None
            self.writer.write(data)

    async def request(self, method: Method, *attributes: tuple[int, bytes], tid: bytes = b"") -> Message:
        """Ask, answering a challenge once."""
        answer = await self._ask(method, attributes, tid or os.urandom(12))
        error = answer.error()
        if error and error[0] in (401, 438) and answer.get(Attr.NONCE):
            self.realm, self.nonce = answer.text(Attr.REALM) or "", answer.get(Attr.NONCE) or b""
            peers = [v for a, v in attributes if a == Attr.XOR_PEER_ADDRESS]
            assert not peers, "authenticate before naming peers"
            answer = await self._ask(method, attributes, os.urandom(12))
        return answer

    async def allocate(self, *attributes: tuple[int, bytes]) -> TransportAddress:
        answer = await self.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, UDP_RELAY), *attributes)
        assert answer.error() is None, answer.error()
        relayed = answer.address(Attr.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    async def permit(self, *peers: TransportAddress) -> int:
        tid = os.urandom(12)
        attributes = [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, tid)) for peer in peers]
        return code(await self.request(Method.CREATE_PERMISSION, *attributes, tid=tid))

    async def bind(self, number: int, peer: TransportAddress) -> int:
        tid = os.urandom(12)
        return code(
            await self.request(
                Method.CHANNEL_BIND,
                (Attr.CHANNEL_NUMBER, stun.uint32(number << 16)),
                (Attr.XOR_PEER_ADDRESS, stun.xor_address(peer, tid)),
                tid=tid,
            )
        )

    def send_indication(self, peer: TransportAddress, payload: bytes) -> None:
        tid = os.urandom(12)
        attributes = [(int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer, tid)), (int(Attr.DATA), payload)]
        self.send(stun.serialize(Method.SEND, MessageClass.INDICATION, tid, attributes))

    def send_channel(self, number: int, payload: bytes) -> None:
        padding = bytes(-len(payload) % 4) if self.transport != "udp" else b""
        self.send(number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload + padding)

    async def receive(self) -> tuple[int | TransportAddress, bytes]:
        """The next data: channel number or peer, and payload."""
        message = await asyncio.wait_for(self.others.get(), PATIENCE)
        if message[0] >= 0x40:
            length = int.from_bytes(message[2:4], "big")
            return int.from_bytes(message[:2], "big"), message[4 : 4 + length]
        parsed = stun.parse(message)
        assert (parsed.method, parsed.message_class) == (Method.DATA, MessageClass.INDICATION)
        peer = parsed.address(Attr.XOR_PEER_ADDRESS)
        assert peer is not None
        return peer, parsed.get(Attr.DATA) or b""

    async def closed(self) -> bool:
        """Whether the server closes the connection in time."""
        assert self._task is not None
        done, _ = await asyncio.wait([self._task], timeout=PATIENCE)
        return bool(done)

    async def _ask(self, method: Method, attributes: tuple[tuple[int, bytes], ...], tid: bytes) -> Message:
        key = None
        identity: list[tuple[int, bytes]] = []
        if self.nonce:
            key = derive_keys(self.username, self.realm, self.password).md5
            identity = [
                (Attr.USERNAME, self.username.encode()),
                (Attr.REALM, self.realm.encode()),
                (Attr.NONCE, self.nonce),
            ]
        answer = self._answers[tid] = asyncio.get_running_loop().create_future()
        data = stun.serialize(method, MessageClass.REQUEST, tid, [*attributes, *identity], key=key)
        try:
            self.send(data)
            return await asyncio.wait_for(answer, PATIENCE)
        finally:
            del self._answers[tid]

    async def _read(self) -> None:
        framer = StreamFramer()
        while True:
            if self._datagrams is not None:
                data, source = await self._datagrams._protocol.received.get()
                assert source == (str(self._server.ip), self._server.port)
                self._take(data)
                continue
            assert self._reader is not None
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                return
            if not data:
                return
            framer.receive_data(data, 0.0)
            for message in framer.messages_received():
                self._take(message)

    def _take(self, data: bytes) -> None:
        if data[0] <= 3:
            message = stun.parse(data)
            if (future := self._answers.get(message.transaction_id)) is not None and not future.done():
                future.set_result(message)
                return
        self.others.put_nowait(data)


def code(message: Message) -> int:
    """The error code; 0 for success."""
    error = message.error()
    return error[0] if error else 0


async def eventually(condition: Any) -> None:
    """Wait until `condition()` holds, or fail."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (counters of threads have no event)
            await asyncio.sleep(0.01)
