"""The media client's plane; see `plane.pyx`."""

from collections.abc import Container, Sequence
from typing import Any

UPCALL_DIRECT: int
UPCALL_RELAYED: int
UPCALL_MEDIA: int

class Plane:
    """All peers of a process and the thread that serves them. Methods may be called from any thread but the plane's own.

    Args:
        upcall_fd: a datagram socket to which STUN and DTLS (and media of streams with `hand_up`) are written, each
            behind eight bytes: kind (`UPCALL_*`) and peer, 32 bits each.
        magic: the six bytes before the clock in a payload's tail.
        tail_bytes: of that tail, magic and clock included.

    Raises:
        ValueError: a tail that cannot hold them.
    """

    def __init__(self, upcall_fd: int, *, magic: bytes, tail_bytes: int) -> None: ...
    def run(self) -> None:
        """Serve until `stop`, without the GIL; call it in a thread of its own."""

    def stop(self) -> None: ...
    def add_clip(
        self,
        frames: Sequence[list[tuple[bytes, bool]]],
        keyframes: Container[int],
        frames_per_second: int,
        clock_rate: int,
        has_picture_id: bool,
    ) -> int:
        """Copy a clip: for each frame a list of (payload, has_clock). Returns its id; it stays until the plane goes."""

    def add_peer(
        self,
        fd: int,
        host: str,
        port: int,
        *,
        channel: int,
        sending: int,
        receiving: int,
        ssrc: int,
        transport_cc_id: int,
    ) -> int:
        """Take over a connected peer; add its streams, then `start_peer`. Returns its id.

        Args:
            host, port: where packets go: the server, or the TURN server when `channel` is not 0.
            sending, receiving: SRTP sessions (`srtp.create_session`).
            ssrc: ours in RTCP.
            transport_cc_id: the extension whose numbers we report back, 0 for none.
        """

    def start_peer(self, peer: int) -> None:
        """Read its socket and report from now on: call once, when its streams are known."""

    def add_outgoing(
        self,
        peer: int,
        clip: int,
        *,
        ssrc: int,
        payload_type: int,
        rtx_ssrc: int,
        rtx_payload_type: int,
        extensions: tuple[bytes, int],
        rtx_extensions: tuple[bytes, int],
        first_seq: int,
        timestamp: int,
        frame: int,
        delay_us: int,
    ) -> None:
        """Begin to send a clip `delay_us` from now, from its `frame` on (a key frame).

        Args:
            rtx_ssrc: 0 without RTX: then NACKs are answered by the same bytes again.
            extensions, rtx_extensions: (block with its head, place of the transport-wide number in it or -1).
        """

    def add_incoming(
        self, peer: int, *, ssrc: int, rtx_ssrc: int, codec: int, clock_rate: int, asks: bool, hand_up: bool
    ) -> None:
        """Count what arrives under `ssrc`.

        Args:
            codec: 0 Opus, 1 VP8, 2 H.264.
            asks: whether NACK is negotiated.
            hand_up: write its media to the upcall socket too: 16 bits of stream, 16 of seq, 32 with the marker on top,
                the timestamp, the payload.
        """

    def remove_peer(self, peer: int) -> None:
        """Stop serving it; afterwards nothing of the caller's is used any more. Raises `ValueError`: there is none."""

    def outgoing_figures(self, peer: int) -> list[dict[str, Any]]: ...
    def incoming_figures(self, peer: int) -> list[dict[str, Any]]: ...
    def peer_figures(self, peer: int) -> dict[str, int]:
        """sent, received, unknown, refused (by SRTP), feedback_received (transport-wide)."""

    def silent(self, peer: int) -> int:
        """How many of a peer's incoming streams have not brought a whole frame yet."""

    def figures(self) -> dict[str, Any]:
        """The plane's own: seconds, cpu_seconds, datagrams, what was dropped, `lag` of bursts."""
