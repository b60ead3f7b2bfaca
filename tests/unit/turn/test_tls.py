import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from tests.support.turn_sockets import make_certificate
from turn.errors import ConfigurationError, TlsError
from turn.tls import TlsStream, server_context


class ClientSide:
    """A TLS client over memory buffers, wired to a `TlsStream`."""

    def __init__(self, server: TlsStream, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.server = server

    def exchange(self, step: int = 1 << 20) -> bytes:
        """Carry bytes both ways, `step` at a time, until both are quiet. Returns what the server heard."""
        heard = b""
        while wire := self.outgoing.read():
            for at in range(0, len(wire), step):
                heard += self.server.receive_data(wire[at : at + step])
            self.incoming.write(self.server.data_to_send())
            if not self.server.established:
                self.handshake()
        return heard

    def handshake(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SSL.Context:
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return server_context(str(certificate), str(key))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def client(request: pytest.FixtureRequest, context: SSL.Context) -> ClientSide:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = request.param
    return ClientSide(TlsStream(context), made)


class TestStream:
    """T5, T6."""

    @pytest.mark.parametrize("step", [1, 7, 1 << 20])
    def test_handshake_and_data_in_any_segmentation(self, client: ClientSide, step: int) -> None:
        client.handshake()
        client.exchange(step)
        client.handshake()
        client.exchange(step)
        assert client.server.established
        client.tls.write(b"hello" * 100)
        assert client.exchange(step) == b"hello" * 100

    def test_one_message_is_one_record(self, client: ClientSide) -> None:
        for _ in range(2):
            client.handshake()
            client.exchange()
        for n in range(3):
            client.server.send_message(b"%d" % n * 100)
        client.incoming.write(client.server.data_to_send())
        assert [client.tls.read(65536) for _ in range(3)] == [b"%d" % n * 100 for n in range(3)]

    def test_goodbye_is_noticed(self, client: ClientSide) -> None:
        for _ in range(2):
            client.handshake()
            client.exchange()
        assert not client.server.finished
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        assert client.exchange() == b""
        assert client.server.finished

    @pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(5)])
    def test_what_is_not_tls_is_an_error_of_tls(self, context: SSL.Context, garbage: bytes) -> None:
        with pytest.raises(TlsError):
            TlsStream(context).receive_data(garbage)


def test_files_that_do_not_fit_stop_the_start(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other")
    with pytest.raises(ConfigurationError):
        server_context(str(certificate), str(other))
    with pytest.raises(ConfigurationError):
        server_context(str(key), str(key))
    for paths in ((str(certificate), str(key) + ".missing"), (str(certificate) + ".missing", str(key))):
        with pytest.raises(FileNotFoundError):
            server_context(*paths)


def test_a_key_with_a_password_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    private = load_pem_private_key(key.read_bytes(), None)
    encrypted = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
    with pytest.raises(ConfigurationError, match="the certificate and its key cannot be used: Password"):
        server_context(str(certificate), str(key))
