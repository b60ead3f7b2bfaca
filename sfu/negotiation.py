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

from sfu.errors import InvalidSessionDescription, LimitExceeded
from sfu.sections import (
    LAYERS_MAX,
    Addition,
    LocalParameters,
    Section,
    Wish,
    agreed,
    allocate_codecs,
    allocate_extensions,
    answered,
    describe,
    rejected,
    stopped,
)
from sfu.transport import RemoteParameters
from wire import sdp
from wire.errors import SdpError
from wire.sdp import Description, MediaSection, Setup

RTP_PROTOCOLS: Final = frozenset({"UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "RTP/SAVPF", "RTP/SAVP"})
MID_BYTES_MAX: Final = 32
RID_BYTES_MAX: Final = 16
SECTIONS_KEPT: Final = 32
"""From here on a rejected section is recycled even where that makes the peer build its transport anew."""


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
            accept_data: accept new data channel sections, so that the transport can come up on one alone.
        """
        known = {section.mid: section for section in self.sections if section.live}
        sections = []
        for offered in offer.sections:
            mid = offered.mid or ""
            is_media = offered.kind in ("audio", "video")
            if offered.rejected or not (is_media or (offered.is_data and (accept_data or mid in known))):
                sections.append(rejected(offered))
            else:
                sections.append(answered(offered, known.get(mid), wishes.get(mid, Wish())))
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
                codecs=allocate_codecs(sections, addition),
                extensions=allocate_extensions(sections, addition.extensions),
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
        sections = tuple(map(agreed, self.pending, answer.sections))
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
        self.sections = tuple(stopped(section) if section.mid == mid else section for section in self.sections)
        if self.pending is not None:
            self.pending = tuple(stopped(section) if section.mid == mid else section for section in self.pending)

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
                sections=tuple(describe(section, local, answering=answering) for section in sections),
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
