"""Sections: one m-section as both sides agreed, and the pure steps from one description of it to the next.

    offered by the peer --answered()--> Section --describe()--> our answer
    Addition --allocate_*()--> Section --describe()--> our offer --the peer's answer, agreed()--> Section

Nothing here knows the order of offers and answers (`negotiation`) or what a track is (`session`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sfu import codecs as codec_rules
from sfu.errors import InvalidSessionDescription, LimitExceeded
from wire.sdp import Codec, Direction, Fingerprint, MediaSection, Rid, Setup, SsrcGroup

LAYERS_MAX: Final = 8
DATA_MESSAGE_BYTES_MAX: Final = 262_144
_DYNAMIC_PAYLOAD_TYPES: Final = (*range(96, 128), *range(35, 64))  # RFC 5761 §4 leaves these
_EXTENSION_IDS: Final = range(1, 15)  # the one-byte form's


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What we send on a section; SSRCs are new for every use of a section (SRTP-4, SDP-7)."""

    ssrc: int
    rtx_ssrc: int
    """0: the section has no RTX."""
    cname: str
    stream_id: str
    track_id: str


@dataclass(frozen=True, slots=True)
class Section:
    """One m-section as both sides agreed, from our point of view."""

    mid: str
    kind: str
    """`audio`, `video`, `application` or anything a peer may offer and we reject."""
    live: bool = True
    """False: rejected, port 0; its place in the description may be taken by another section."""
    receives: bool = False
    """Whether we take the peer's media here."""
    outgoing: Outgoing | None = None
    """What we send here, once the peer agrees."""
    codecs: tuple[Codec, ...] = ()
    extensions: tuple[tuple[int, str], ...] = ()
    layers: tuple[tuple[str, ...], ...] = ()
    """`a=simulcast:recv` as answered: one rid each, `~` for paused."""
    described: Direction = Direction.INACTIVE
    """The direction both sides agreed on last."""
    peer_receives: bool = False
    """Whether the peer's transceiver still wants to receive, so that media offered here would be taken."""
    offered_by_peer: bool = False
    formats: tuple[str, ...] = ()
    protocol: str = "UDP/TLS/RTP/SAVPF"
    remote: MediaSection | None = None
    """The peer's last description of it: signalled SSRCs are there."""

    @property
    def rids(self) -> tuple[str, ...]:
        """The simulcast layers we accepted, in order."""
        return tuple(stream[0].removeprefix("~") for stream in self.layers)

    @property
    def idle(self) -> bool:
        """Nothing flows or is meant to flow, and both sides know."""
        return self.live and not self.receives and self.outgoing is None and self.described is Direction.INACTIVE


@dataclass(frozen=True, slots=True)
class LocalParameters:
    """Our end of the transport, for the description."""

    ufrag: str
    pwd: str
    fingerprint: Fingerprint
    setup: Setup
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What `session` wants of a section that the peer offers; the answer grants it as far as the offer allows."""

    receives: bool = False
    outgoing: Outgoing | None = None


@dataclass(frozen=True, slots=True)
class Addition:
    """A section we want to offer."""

    kind: str
    codecs: tuple[Codec, ...]
    """Those of the track, under the publisher's payload types."""
    extensions: tuple[str, ...]
    """URIs."""
    receives: bool = False
    outgoing: Outgoing | None = None


def rejected(offered: MediaSection) -> Section:
    """A section that the peer offers and we do not take, or that it rejects itself."""
    return Section(
        mid=offered.mid or "",
        kind=offered.kind,
        live=False,
        offered_by_peer=True,
        formats=offered.formats,
        protocol=offered.protocol,
    )


def answered(offered: MediaSection, known: Section | None, wish: Wish) -> Section:
    """What a section that the peer offers becomes with our answer; only what was offered is in it (SDP-2)."""
    if offered.is_data:
        return Section(
            mid=offered.mid or "",
            kind=offered.kind,
            offered_by_peer=True,
            formats=offered.formats,
            protocol=offered.protocol,
        )
    codecs = codec_rules.supported(offered.codecs, offered.kind)
    if not codecs:
        return rejected(offered)
    receives = wish.receives and offered.direction.sends
    return Section(
        mid=offered.mid or "",
        kind=offered.kind,
        receives=wish.receives,
        outgoing=wish.outgoing,
        codecs=codecs,
        extensions=codec_rules.supported_extensions(offered.extensions),
        layers=_accepted_layers(offered) if receives else (),
        described=Direction.of(sends=wish.outgoing is not None and offered.direction.receives, receives=receives),
        peer_receives=offered.direction.receives,
        offered_by_peer=known.offered_by_peer if known is not None else True,
        protocol=offered.protocol,
        remote=offered,
    )


def _accepted_layers(offered: MediaSection) -> tuple[tuple[str, ...], ...]:
    """The first alternative of each simulcast stream that has its `a=rid` line and no stream yet (SDP-4)."""
    free = {rid.id for rid in offered.rids if rid.direction == "send"}
    accepted = []
    for stream in offered.simulcast_send:
        rid = next((rid for rid in stream if rid.removeprefix("~") in free), None)
        if rid is not None:
            free.discard(rid.removeprefix("~"))
            accepted.append((rid,))
    return tuple(accepted)


def agreed(offered: Section, answered: MediaSection) -> Section:
    """What our offered section became with the peer's answer."""
    if not offered.live or answered.rejected:
        return replace(offered, live=False, receives=False, outgoing=None, described=Direction.INACTIVE)
    if (offered.mid, offered.kind) != (answered.mid, answered.kind):
        raise InvalidSessionDescription("the answer's m-sections are not those of the offer")
    if offered.kind not in ("audio", "video"):
        return offered
    ours = {codec.payload_type: codec for codec in offered.codecs}
    codecs = tuple(
        replace(codec, feedback=tuple(item for item in codec.feedback if item in ours[codec.payload_type].feedback))
        for codec in answered.codecs
        if codec.payload_type in ours and codec.name.lower() == ours[codec.payload_type].name.lower()
    )
    if not codecs:
        raise InvalidSessionDescription("the answer has a section without a codec of the offer")
    sends = offered.outgoing is not None
    extensions = tuple(extension for extension in answered.extensions if extension in offered.extensions)
    return replace(
        offered,
        codecs=codecs,
        extensions=extensions,
        described=Direction.of(
            sends=sends and answered.direction.receives, receives=offered.receives and answered.direction.sends
        ),
        peer_receives=answered.direction.receives if sends else offered.peer_receives,
        remote=answered,
    )


def stopped(section: Section) -> Section:
    """Nothing is meant to flow any more; the next description will say so."""
    return replace(section, receives=False, outgoing=None)


def describe(section: Section, local: LocalParameters, *, answering: bool) -> MediaSection:
    """The m-section of our own description."""
    formats = tuple(str(codec.payload_type) for codec in section.codecs) or section.formats or ("0",)
    if not section.live:
        return MediaSection(
            kind=section.kind,
            port=0,
            protocol=section.protocol,
            formats=formats,
            mid=section.mid or None,
            direction=Direction.INACTIVE,
            # Without meaning in a rejected section, but aiortc refuses a description that lacks them.
            ice_ufrag=local.ufrag,
            ice_pwd=local.pwd,
            setup=local.setup,
            fingerprints=(local.fingerprint,),
            rtcp_mux=section.kind != "application",
            codecs=section.codecs,
        )
    is_data = section.kind == "application"
    outgoing = section.outgoing
    direction = Direction.of(sends=outgoing is not None, receives=section.receives)
    if answering:
        direction = section.described
    if not direction.sends:
        outgoing = None
    return MediaSection(
        kind=section.kind,
        port=9,
        protocol=section.protocol,
        formats=formats,
        mid=section.mid,
        direction=direction,
        ice_ufrag=local.ufrag,
        ice_pwd=local.pwd,
        setup=local.setup,
        fingerprints=(local.fingerprint,),
        rtcp_mux=not is_data,
        rtcp_rsize=not is_data,
        codecs=section.codecs,
        extensions=section.extensions,
        rids=tuple(Rid(rid, "recv") for rid in section.rids),
        simulcast_recv=section.layers,
        msid=f"{outgoing.stream_id} {outgoing.track_id}" if outgoing else None,
        ssrcs=tuple((ssrc, outgoing.cname) for ssrc in (outgoing.ssrc, outgoing.rtx_ssrc) if ssrc) if outgoing else (),
        ssrc_groups=(SsrcGroup("FID", (outgoing.ssrc, outgoing.rtx_ssrc)),) if outgoing and outgoing.rtx_ssrc else (),
        # In each section of the bundle (SDP-3 asks for one): aiortc with max-bundle reads the last one's.
        candidates=local.candidates,
        end_of_candidates=True,
        sctp_port=5000 if is_data else None,
        max_message_size=DATA_MESSAGE_BYTES_MAX if is_data else None,
    )


def allocate_codecs(sections: Iterable[Section], addition: Addition) -> tuple[Codec, ...]:
    """The addition's codecs under payload types that mean the same, or nothing yet, in this session (RFC 9143 §9.1)."""
    taken: dict[int, Codec] = {}
    for section in sections:
        described = section.remote.codecs if section.remote is not None else ()
        for codec in (*section.codecs, *described):
            taken.setdefault(codec.payload_type, codec)

    def allocate(wanted: Codec) -> Codec:
        key = (wanted.name.lower(), wanted.clock_rate, wanted.channels, wanted.parameters)
        for known, codec in taken.items():
            if (codec.name.lower(), codec.clock_rate, codec.channels, codec.parameters) == key:
                return replace(wanted, payload_type=known)
        for free in (wanted.payload_type, *_DYNAMIC_PAYLOAD_TYPES):
            if free not in taken:
                taken[free] = replace(wanted, payload_type=free)
                return taken[free]
        raise LimitExceeded("the session has no payload type left")

    rtx = codec_rules.rtx_of(addition.codecs)
    found: dict[int, Codec] = {}
    for codec in addition.codecs:
        if codec.apt is not None:
            continue
        media = allocate(replace(codec, feedback=codec_rules.OFFERED_FEEDBACK[addition.kind]))
        found[media.payload_type] = media
        if addition.kind == "video":
            number = rtx.get(codec.payload_type, _DYNAMIC_PAYLOAD_TYPES[0])
            repair = allocate(Codec(number, "rtx", codec.clock_rate, parameters=f"apt={media.payload_type}"))
            found[repair.payload_type] = repair
    return tuple(found.values())


def allocate_extensions(sections: Iterable[Section], uris: Iterable[str]) -> tuple[tuple[int, str], ...]:
    """Ids for `uris`: an id means one extension in the whole BUNDLE group (RFC 8285 §5)."""
    ids: dict[str, int] = {}
    for section in sections:
        described = section.remote.extensions if section.remote is not None else ()
        for number, uri in (*section.extensions, *described):
            ids.setdefault(uri, number)
    free = [number for number in _EXTENSION_IDS if number not in ids.values()]
    found = []
    for uri in uris:
        if uri in ids:
            found.append((ids[uri], uri))
        elif free:
            found.append((free.pop(0), uri))
    return tuple(found)
