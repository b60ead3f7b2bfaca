"""Offer and answer for one session: which m-sections there are and what each carries (RFC 9429; rules SDP-1..10).

    STABLE --offer()--> HAVE_LOCAL_OFFER --read_answer()--> STABLE
       '--read_offer(), answer()--> STABLE          '--rollback()--> STABLE

This file knows SDP and sections, not tracks: `session` says what each section should do (`Wish`, `Addition`) and reads
from the agreed `Section`s what it may do. Every step first computes a `Draft` without touching anything; only `commit`
changes the state, so a description that cannot be applied leaves the old one (SDP-10).

Sections are recycled so that their number follows the live tracks, not history (SDP-7): an idle section that the peer
would still receive on takes a new track of its kind under the same mid; a rejected one takes any track under a new mid.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sfu import codecs as codec_rules
from sfu.errors import InvalidSessionDescription, LimitExceeded
from sfu.transport import RemoteParameters
from wire import sdp
from wire.errors import SdpError
from wire.sdp import Codec, Description, Direction, Fingerprint, MediaSection, Rid, Setup, SsrcGroup

RTP_PROTOCOLS: Final = frozenset({"UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "RTP/SAVPF", "RTP/SAVP"})
MID_BYTES_MAX: Final = 32
RID_BYTES_MAX: Final = 16
LAYERS_MAX: Final = 8
SECTIONS_KEPT: Final = 32
"""From here on a rejected section is recycled even where that makes the peer build its transport anew."""
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
class PeerDescription:
    """A description of the peer that passed every check."""

    description: Description
    remote: RemoteParameters | None
    """None when every section is rejected: the transport stays what it is."""

    @property
    def sections(self) -> tuple[MediaSection, ...]:
        """Its m-sections."""
        return self.description.sections


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


@dataclass(frozen=True, slots=True)
class Draft:
    """A step that is computed and not yet taken. `sdp` is empty for the step that reads an answer."""

    sections: tuple[Section, ...]
    bundle: tuple[str, ...]
    """The BUNDLE group; its first mid carries the transport."""
    is_offer: bool = False
    sdp: str = ""
    added: tuple[str, ...] = ()
    """Mids of the additions, in their order."""


class Negotiation:
    """The offer/answer state of one session."""

    def __init__(self, *, sdp_bytes_max: int = sdp.BYTES_MAX) -> None:
        self.sections: tuple[Section, ...] = ()
        """As agreed by the last completed exchange."""
        self.pending: tuple[Section, ...] | None = None
        """As in our outstanding offer; None when stable."""
        self.bundle: tuple[str, ...] = ()
        """The BUNDLE group of the last step; its first mid carries the transport."""
        self._sdp_bytes_max = sdp_bytes_max
        self._session_id = secrets.randbits(62)
        self._version = 0
        self._next_mid = 0
        self._allow_mixed = False

    def find(self, mid: str) -> Section | None:
        """The live section of this mid, those of an outstanding offer included."""
        return next((section for section in self.pending or self.sections if section.live and section.mid == mid), None)

    # -- the peer offers ------------------------------------------------------------------------------------------

    def read_offer(self, text: str) -> PeerDescription:
        """Parse an offer and check it by itself and against the sections agreed so far.

        Raises:
            InvalidSessionDescription: not SDP, above a limit, or a rule of offer/answer is broken.
        """
        offer = self._parse(text)
        for index, (known, offered) in enumerate(zip(self.sections, offer.sections, strict=False)):
            if known.live and not offered.rejected and (known.mid, known.kind) != (offered.mid, offered.kind):
                raise InvalidSessionDescription(f"m-section {index} is not the one agreed before")
        if len(offer.sections) < len(self.sections):
            raise InvalidSessionDescription("m-sections are missing")
        return PeerDescription(offer, _check_bundle(offer))

    def answer(
        self, offer: PeerDescription, wishes: Mapping[str, Wish], local: LocalParameters, *, accept_data: bool = False
    ) -> Draft:
        """Answer a checked offer; a section without a wish becomes inactive.

        Args:
            offer: from `read_offer`.
            wishes: by mid.
            local: our transport.
            accept_data: accept data channel sections, so that the transport can come up on one alone.
        """
        known = {section.mid: section for section in self.sections if section.live}
        sections = []
        for offered in offer.sections:
            if offered.rejected or (offered.kind not in ("audio", "video") and not (offered.is_data and accept_data)):
                sections.append(_rejected(offered))
            else:
                mid = offered.mid or ""
                sections.append(_answered(offered, known.get(mid), wishes.get(mid, Wish())))
        self._allow_mixed = offer.description.extmap_allow_mixed
        live = {section.mid for section in sections if section.live}
        bundle = tuple(mid for mid in offer.description.bundle if mid in live)
        return Draft(tuple(sections), bundle, sdp=self._serialize(sections, bundle, local, answering=True))

    # -- we offer -------------------------------------------------------------------------------------------------

    def offer(self, additions: Sequence[Addition], local: LocalParameters) -> Draft:
        """An offer of everything agreed or pending, plus `additions`, in recycled sections where possible.

        Raises:
            LimitExceeded: more m-sections than a description may hold.
        """
        sections = [self._before_offer(index, section) for index, section in enumerate(self.pending or self.sections)]
        added = []
        for addition in additions:
            index, mid = self._place(sections, addition)
            section = Section(
                mid=mid,
                kind=addition.kind,
                receives=addition.receives,
                outgoing=addition.outgoing,
                codecs=_allocate_codecs(sections, addition),
                extensions=_allocate_extensions(sections, addition.extensions),
                peer_receives=addition.outgoing is not None,
            )
            sections[index : index + 1] = [section]
            added.append(mid)
        bundle = tuple(section.mid for section in sections if section.live)
        text = self._serialize(sections, bundle, local, answering=False)
        return Draft(tuple(sections), bundle, is_offer=True, sdp=text, added=tuple(added))

    def _before_offer(self, index: int, section: Section) -> Section:
        """Give up an idle section of ours that nothing can flow on again, so that its place can be recycled.

        Not the first: rejecting the section that carries the BUNDLE group is legal and badly supported.
        """
        given_up = index > 0 and section.idle and not section.peer_receives and not section.offered_by_peer
        return replace(section, live=False) if given_up else section

    def _place(self, sections: list[Section], addition: Addition) -> tuple[int, str]:
        if addition.outgoing is not None:
            for index, section in enumerate(sections):
                if section.kind == addition.kind and section.idle and section.peer_receives:
                    return index, section.mid
        # Chromium moves the transport to whatever live section comes first, with a new handshake. So places before that
        # one are left alone, until the description grows long.
        carrier = next((index for index, section in enumerate(sections) if section.live), 0)
        first = carrier if len(sections) < SECTIONS_KEPT else 0
        agreed_dead = {index for index, section in enumerate(self.sections) if index >= first and not section.live}
        mid = self._new_mid(sections)
        for index, section in enumerate(sections):
            if index in agreed_dead and not section.live:
                return index, mid
        if len(sections) == sdp.SECTIONS_MAX:
            raise LimitExceeded("the session has no media section left")
        return len(sections), mid

    def _new_mid(self, sections: Iterable[Section]) -> str:
        taken = {section.mid for section in sections}
        while str(self._next_mid) in taken:
            self._next_mid += 1
        mid = str(self._next_mid)
        self._next_mid += 1
        return mid

    def read_answer(self, text: str) -> tuple[PeerDescription, Draft]:
        """Parse the answer to our outstanding offer and work out what was agreed.

        Raises:
            InvalidSessionDescription: no offer is outstanding, not SDP, or it does not answer that offer.
        """
        if self.pending is None:
            raise InvalidSessionDescription("no offer is outstanding")
        answer = self._parse(text)
        if len(answer.sections) != len(self.pending):
            raise InvalidSessionDescription("the answer has another number of m-sections than the offer")
        sections = tuple(map(_agreed, self.pending, answer.sections))
        return PeerDescription(answer, _check_bundle(answer)), Draft(sections, self.bundle)

    # -- both -----------------------------------------------------------------------------------------------------

    def commit(self, draft: Draft) -> None:
        """Take the step."""
        self.bundle = draft.bundle
        if draft.is_offer:
            self.pending = draft.sections
        else:
            self.sections, self.pending = draft.sections, None

    def rollback(self) -> list[str]:
        """Forget our outstanding offer. Returns the mids that existed only in it."""
        pending, self.pending = self.pending or (), None
        kept = {(section.mid, section.outgoing) for section in self.sections}
        return [section.mid for section in pending if section.live and (section.mid, section.outgoing) not in kept]

    def stop(self, mid: str) -> None:
        """Nothing flows on this section any more; the next description will say so."""
        self.sections = tuple(_stopped(section) if section.mid == mid else section for section in self.sections)
        if self.pending is not None:
            self.pending = tuple(_stopped(section) if section.mid == mid else section for section in self.pending)

    def _parse(self, text: str) -> Description:
        try:
            return sdp.parse(text, bytes_max=self._sdp_bytes_max)
        except SdpError as error:
            raise InvalidSessionDescription(f"SDP: {error.reason}") from None

    def _serialize(
        self, sections: Sequence[Section], bundle: tuple[str, ...], local: LocalParameters, *, answering: bool
    ) -> str:
        self._version += 1
        return sdp.serialize(
            Description(
                sections=tuple(_describe(section, local, answering=answering) for section in sections),
                bundle=bundle,
                session_id=self._session_id,
                version=self._version,
                ice_lite=True,
                extmap_allow_mixed=self._allow_mixed,
            )
        )


def _check_bundle(description: Description) -> RemoteParameters | None:
    """What RFC 9143 and SDP-1 ask of every description; the transport of its BUNDLE group."""
    live = [section for section in description.sections if not section.rejected]
    if not description.sections:
        raise InvalidSessionDescription("no m-section")
    if not live:
        return None
    codecs: dict[int, tuple[str, int, int]] = {}
    for section in live:
        if section.mid is None or section.mid not in description.bundle:
            raise InvalidSessionDescription("every m-section must have a mid in one BUNDLE group")
        if len(section.mid) > MID_BYTES_MAX:
            raise InvalidSessionDescription("a mid is too long")
        if section.kind not in ("audio", "video"):
            continue
        if len(section.simulcast_send) > LAYERS_MAX or any(len(rid.id) > RID_BYTES_MAX for rid in section.rids):
            raise InvalidSessionDescription("too many simulcast layers, or a rid is too long")
        if section.protocol not in RTP_PROTOCOLS:
            raise InvalidSessionDescription("media must be RTP over DTLS-SRTP")
        if not section.rtcp_mux:
            raise InvalidSessionDescription("rtcp-mux is required")
        for codec in section.codecs:
            meaning = (codec.name.lower(), codec.clock_rate, codec.channels)
            if codecs.setdefault(codec.payload_type, meaning) != meaning:
                raise InvalidSessionDescription("a payload type has two meanings within the BUNDLE group")
    carrier = next(section for section in live if section.mid == _first_live(description.bundle, live))
    if not carrier.ice_ufrag or not carrier.ice_pwd:
        raise InvalidSessionDescription("ICE credentials are missing")
    if not (4 <= len(carrier.ice_ufrag) <= 256 and 22 <= len(carrier.ice_pwd) <= 256):
        raise InvalidSessionDescription("ICE credentials have a wrong length")
    if not carrier.fingerprints:
        raise InvalidSessionDescription("the fingerprint is missing")
    return RemoteParameters(carrier.ice_ufrag, carrier.ice_pwd, carrier.fingerprints, carrier.setup or Setup.ACTPASS)


def _first_live(bundle: Sequence[str], live: Sequence[MediaSection]) -> str:
    mids = {section.mid for section in live}
    return next(mid for mid in bundle if mid in mids)


def _rejected(offered: MediaSection) -> Section:
    return Section(
        mid=offered.mid or "",
        kind=offered.kind,
        live=False,
        offered_by_peer=True,
        formats=offered.formats,
        protocol=offered.protocol,
    )


def _answered(offered: MediaSection, known: Section | None, wish: Wish) -> Section:
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
        return _rejected(offered)
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


def _agreed(offered: Section, answered: MediaSection) -> Section:
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


def _stopped(section: Section) -> Section:
    return replace(section, receives=False, outgoing=None)


def _describe(section: Section, local: LocalParameters, *, answering: bool) -> MediaSection:
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


def _allocate_codecs(sections: Iterable[Section], addition: Addition) -> tuple[Codec, ...]:
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


def _allocate_extensions(sections: Iterable[Section], uris: Iterable[str]) -> tuple[tuple[int, str], ...]:
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
