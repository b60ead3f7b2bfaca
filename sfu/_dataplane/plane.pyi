"""The forwarding plane: N threads without the GIL, one UDP port, and the graph of what goes where.

Python changes the graph; a forwarding thread sees a change only between two batches. Everything here may be called
from one Python thread at a time (the event loop's). Ids are positive integers, never reused; an unknown id raises
`KeyError`, a full table `OverflowError`, a bad value or a closed plane `ValueError`. Times are seconds of CLOCK_MONOTONIC.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, TypedDict

from wire._batch.exchange import End

# Socket the datagram came in on (an index that stays valid while the plane lives), remote host, remote port.
Path: TypeAlias = tuple[int, str, int]

# Kinds of upcalls, the first element of each tuple from `Plane.drain`.
STUN: Final[int]  # (STUN, transport or 0 when no transport owns the tuple, path, data, received_at)
DTLS: Final[int]  # (DTLS, transport, path, data, received_at): only from tuples that a transport owns
STREAM_STARTED: Final[int]  # (STREAM_STARTED, track, rid, ssrc): first authenticated media packet of a stream
TRACK_STALLED: Final[int]  # (TRACK_STALLED, track): no media packet for `stall_after` seconds
TRACK_RESUMED: Final[int]  # (TRACK_RESUMED, track): packets again after a stall
KEYFRAME_MISSING: Final[int]  # (KEYFRAME_MISSING, track, rid): gave up asking after 30 s (KF-2)
BYE: Final[int]  # (BYE, track, ssrc): RTCP BYE of one SSRC

Upcall: TypeAlias = tuple[int, ...] | tuple[object, ...]

# Header extensions the plane knows, by internal id (see `sfu.negotiation.EXTENSIONS` for the URIs).
EXT_MID: Final[int]
EXT_RID: Final[int]
EXT_REPAIRED_RID: Final[int]
EXT_TRANSPORT_CC: Final[int]
EXT_ABS_SEND_TIME: Final[int]
EXT_AUDIO_LEVEL: Final[int]
EXT_CSRC_AUDIO_LEVEL: Final[int]
EXT_PLAYOUT_DELAY: Final[int]
EXT_VIDEO_ORIENTATION: Final[int]
EXT_ABS_CAPTURE_TIME: Final[int]
EXT_VIDEO_CONTENT_TYPE: Final[int]
EXT_COLOR_SPACE: Final[int]
EXT_DEPENDENCY_DESCRIPTOR: Final[int]

# Codecs whose keyframe starts the plane can tell. Opaque codecs are forwarded all the same.
CODEC_OPAQUE: Final[int]
CODEC_OPUS: Final[int]
CODEC_VP8: Final[int]
CODEC_VP9: Final[int]
CODEC_H264: Final[int]
CODEC_H265: Final[int]
CODEC_AV1: Final[int]

class Codec(TypedDict):
    """How a payload type of a published track is to be read."""

    codec: int  # CODEC_*
    clock_rate: int  # RTP ticks per second
    apt: int  # payload type this one repairs (RTX, RFC 4588), or -1
    nack: bool  # the publisher takes generic NACK for it
    pli: bool
    fir: bool

class Plane:
    """Sockets, threads and tables. `start` begins to forward; `close` stops, joins and frees (idempotent)."""

    def __init__(
        self,
        addresses: Sequence[str],
        port: int,
        *,
        threads: int = 1,
        gso: bool = True,
        max_transports: int = 20_000,
        max_streams_per_transport: int = 1024,
        max_tuples_per_transport: int = 8,
        cache_bytes_max: int = 512 * 1024 * 1024,
        upcall_slots: int = 8192,
        stun_per_address_per_s: int = 50,
        stall_after: float = 2.0,
        exchange: End | None = None,
    ) -> None:
        """Bind every address on `port` (0: the system picks one, the same for all) once per thread.

        Args:
            addresses: IPv4 or IPv6 addresses without brackets.
            threads: forwarding threads, each with its own socket per address (SO_REUSEPORT).
            stun_per_address_per_s: budget, per remote address, of STUN from tuples that no transport owns; for what
                came in memory, per address and port.
            exchange: with another plane of this process, for as many threads; its datagrams come and go in memory, on
                socket indices of their own. `bind` it before `start`.

        Raises:
            OSError: an address cannot be bound.
        """

    @property
    def port(self) -> int: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int:
        """An eventfd, readable while `drain` has something to give."""

    def drain(self, limit: int = 256) -> list[Upcall]:
        """Take at most `limit` upcalls. Tuples that a transport owns come before strangers."""

    def send_datagram(self, data: bytes, path: Path) -> bool:
        """Send STUN or DTLS from the socket it is answered on. False when the socket would block."""

    # -- transports: one ICE + DTLS + SRTP path of a session ------------------------------------------------------
    def add_transport(self) -> int: ...
    def remove_transport(self, transport: int) -> None:
        """Frees its tuples, keys, tracks and forwarders. Forwarders elsewhere that its tracks fed fall silent."""

    def add_tuple(self, transport: int, path: Path) -> None:
        """Let `path` reach the transport: it passed an authenticated check (DMX-3). The oldest unselected goes at 8."""

    def select_tuple(self, transport: int, path: Path) -> None:
        """Send to `path` from now on. The first selection fixes the thread that owns the transport."""

    def set_keys(self, transport: int, profile: int, send_key: bytes, receive_key: bytes) -> None:
        """Start SRTP. `profile` is the IANA number (1 CM_80, 7 GCM-128, 8 GCM-256); keys are master key + salt."""

    def set_sending(self, transport: int, sending: bool) -> None:
        """False stops all media and RTCP to it at once (lost consent, ICE-6)."""

    # -- tracks: one receiving m-section of a transport -----------------------------------------------------------
    def add_track(
        self,
        transport: int,
        *,
        mid: str,
        video: bool,
        codecs: Mapping[int, Codec],
        extensions: Mapping[int, int],
        rids: Sequence[str] = (),
        ssrcs: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Receive a section.

        Args:
            codecs: by payload type.
            extensions: the wire's id to EXT_*.
            rids: simulcast layers in the section's order; empty for a single layer.
            ssrcs: signalled (ssrc, rtx ssrc or 0) pairs; others are learnt by MID, RID or unique payload type (DMX-4).
        """

    def update_track(
        self,
        track: int,
        *,
        codecs: Mapping[int, Codec],
        extensions: Mapping[int, int],
        rids: Sequence[str] = (),
        ssrcs: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Take over a renegotiated section. Layers that `rids` adds appear; a layer stays even if `rids` leaves it out."""
    def remove_track(self, track: int) -> None: ...
    def request_keyframe(self, track: int, rid: str = "") -> None:
        """Through the throttle (KF-1)."""

    # -- forwarders: one track to one subscriber ------------------------------------------------------------------
    def add_forwarder(
        self,
        transport: int,
        *,
        mid: str,
        video: bool,
        ssrc: int,
        rtx_ssrc: int,
        cname: str,
        extensions: Mapping[int, int],
    ) -> int:
        """A sending m-section: `extensions` maps EXT_* to the subscriber's id; `rtx_ssrc` 0 means no RTX.

        It sends nothing before `set_source`. SSRCs must be new to the transport's whole life (SRTP-4).
        """

    def set_source(
        self,
        forwarder: int,
        track: int,
        *,
        rid: str = "",
        fallback: bool = True,
        payload_types: Mapping[int, int],
        rtx_payload_types: Mapping[int, int],
        cname: str = "",
    ) -> None:
        """Feed it from `track` (0: from nothing), layer `rid` ("" : the only or the best live one).

        A video source starts at its next key frame, which is asked for; until then the previous source goes on. Out
        sequence numbers and timestamps continue over the change (SW-1 to SW-3).

        Args:
            fallback: while `rid` has no packets the next live layer plays, in the order of `rids` and round from its end
                to its beginning. False: no other layer of the track plays, and one that does stops at once.
            payload_types: publisher's payload type to the subscriber's; packets of others are dropped.
            rtx_payload_types: the subscriber's payload type to that of its RTX.
        """

    def set_paused(self, forwarder: int, paused: bool) -> None: ...
    def remove_forwarder(self, forwarder: int) -> None: ...

    # -- figures: plain numbers, keys documented in docs/operations.md --------------------------------------------
    def stats(self) -> dict[str, int]:
        """Counters of all threads: datagrams and bytes in and out, packets `forwarded` and `resent`, `send_calls`,
        `gso_trains`, `batches`, `cache_bytes`, `drop_<reason>` for each reason; and how many objects there are."""

    def latency_histogram(self) -> list[int]:
        """Ingress-to-egress, counts per power of two of microseconds (bucket i: below 2**i us)."""

    def batch_histogram(self) -> list[int]:
        """Datagrams per receive call, counts per power of two."""

    def transport_stats(self, transport: int) -> dict[str, int | float]: ...
    def track_stats(self, track: int) -> list[dict[str, int | float | str]]:
        """A dict per stream (layer): rid, ssrc, packets, bytes, lost, nacks_sent, repaired, rtt, last_packet_at..."""

    def forwarder_stats(self, forwarder: int) -> dict[str, int | float]:
        """packets, bytes, nacks_in, answered, suppressed, missed, rtx, plis_in, fraction_lost, rtt..."""
