from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sfu import codecs as codec_rules
from sfu.errors import LimitExceeded
from sfu.negotiation import Negotiation
from sfu.sections import Addition, LocalParameters, Outgoing, Wish
from tests.support.sdp_offers import EXTENSIONS, FINGERPRINT, NAMES, OPUS, VP8, VP8_RTX, Peer, load, offer, section
from wire import sdp
from wire.sdp import Codec, Direction, MediaSection, Setup

LOCAL = LocalParameters("ufrag", "p" * 32, FINGERPRINT, Setup.PASSIVE, ("1 1 udp 1 127.0.0.1 4000 typ host",))


def outgoing(number: int, *, video: bool = True) -> Outgoing:
    return Outgoing(2 * number + 1, 2 * number + 2 if video else 0, "cname", "stream", f"track{number}")


def addition(number: int, kind: str = "video", codecs: tuple[Codec, ...] | None = None) -> Addition:
    return Addition(
        kind,
        codecs or ((VP8, VP8_RTX) if kind == "video" else (OPUS,)),
        tuple(codec_rules.offered_extension_uris(EXTENSIONS)),
        outgoing=outgoing(number, video=kind == "video"),
    )


def answered(text: str, wishes: dict[str, Wish] | None = None) -> sdp.Description:
    negotiation = Negotiation()
    return sdp.parse(negotiation.answer(negotiation.read_offer(text), wishes or {}, LOCAL).sdp)


def check_answer(offered: sdp.Description, answer: sdp.Description) -> None:
    """SDP-1 to SDP-4, for any offer."""
    assert answer.ice_lite
    assert len(answer.sections) == len(offered.sections)
    assert set(answer.bundle) == {s.mid for s in answer.sections if not s.rejected}
    assert not answer.extmap_allow_mixed or offered.extmap_allow_mixed
    for theirs, ours in zip(offered.sections, answer.sections, strict=True):
        assert (ours.kind, ours.protocol) == (theirs.kind, theirs.protocol)
        assert ours.rejected or not theirs.rejected
        if ours.rejected:
            continue
        assert ours.mid == theirs.mid
        payload_types = [c.payload_type for c in theirs.codecs]
        kept = [c.payload_type for c in ours.codecs]
        assert kept == [p for p in payload_types if p in kept]
        by_number = {c.payload_type: c for c in theirs.codecs}
        for codec in ours.codecs:
            assert codec.parameters == by_number[codec.payload_type].parameters
            assert set(codec.feedback) <= set(by_number[codec.payload_type].feedback)
            assert codec.apt is None or codec.apt in kept
        assert set(ours.extensions) <= set(theirs.extensions)
        assert not ours.direction.sends or theirs.direction.receives
        assert not ours.direction.receives or theirs.direction.sends
        assert ours.rtcp_mux
        assert ours.rtcp_rsize
        assert (ours.ice_ufrag, ours.fingerprints) == (LOCAL.ufrag, (LOCAL.fingerprint,))
        assert [stream[0] for stream in ours.simulcast_recv] == [
            stream[0] for stream in theirs.simulcast_send if ours.direction.receives
        ]


class TestAnswer:
    """SDP-2."""

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("receives", [False, True])
    def test_to_each_browser_holds_only_what_was_offered(self, name: str, receives: bool) -> None:
        offered = sdp.parse(load(name))
        wishes = {s.mid or "": Wish(receives, outgoing(i)) for i, s in enumerate(offered.sections)}
        answer = answered(load(name), wishes)
        check_answer(offered, answer)

    def test_odd_extension_ids_are_kept(self) -> None:
        uris = list(codec_rules.EXTENSIONS)
        ids = [14, 3, 9, 1, 12, 7, 2, 5, 11, 4, 8, 6]
        extensions = tuple(zip(ids, uris, strict=True))
        text = offer(replace(section("0"), extensions=(*extensions, (13, "urn:unknown"))))
        assert answered(text, {"0": Wish(receives=True)}).sections[0].extensions == extensions

    def test_section_without_a_common_codec_gets_port_zero(self) -> None:
        answer = answered(offer(section("0", codecs=[Codec(100, "theora", 90000)]), section("1")))
        assert [s.rejected for s in answer.sections] == [True, False]
        assert answer.bundle == ("1",)

    def test_paused_layer_and_alternatives(self) -> None:
        """SDP-4: `~` is kept; of alternatives the first declared."""
        offered = replace(section("0", rids=("h", "m", "l")), simulcast_send=(("x", "h"), ("~m",), ("l", "m")))
        layers = answered(offer(offered), {"0": Wish(receives=True)}).sections[0].simulcast_recv
        assert layers == (("h",), ("~m",), ("l",))

    def test_rids_without_simulcast_are_ignored(self) -> None:
        answer = answered(offer(replace(section("0", rids=("h",)), simulcast_send=())), {"0": Wish(receives=True)})
        assert answer.sections[0].rids == ()

    def test_bundle_only_section_uses_the_carriers_transport(self) -> None:
        bare = replace(section("1", "audio"), port=0, bundle_only=True, ice_ufrag=None, ice_pwd=None, fingerprints=())
        text = sdp.serialize(sdp.Description((section("0"), bare), ("0", "1"), 1, 1))
        assert [s.rejected for s in answered(text).sections] == [False, False]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["audio", "video", "application", "text"]),
                st.sampled_from(list(Direction)),
                st.booleans(),
                st.booleans(),
                st.sampled_from([0, 9, 9, 9]),
            ),
            min_size=1,
            max_size=12,
        ),
        st.permutations(range(1, 15)),
    )
    @settings(max_examples=150, deadline=None)
    def test_to_any_offer_holds_only_what_was_offered(
        self, shapes: list[tuple[str, Direction, bool, bool, int]], ids: list[int]
    ) -> None:
        sections: list[MediaSection] = []
        wishes: dict[str, Wish] = {}
        for number, (kind, direction, receives, sends, port) in enumerate(shapes):
            media = kind if kind != "text" else "video"
            made = section(f"m{number}", media, direction, port=port)
            extensions = tuple(zip(ids, codec_rules.EXTENSIONS, strict=False)) if kind in ("audio", "video") else ()
            sections.append(replace(made, kind=kind, extensions=extensions))
            wishes[f"m{number}"] = Wish(receives, outgoing(number) if sends else None)
        text = offer(*sections)
        check_answer(sdp.parse(text), answered(text, wishes))


class TestOffer:
    """SDP-6."""

    def test_receiver_sees_plain_streams(self) -> None:
        negotiation = Negotiation()
        draft = negotiation.offer([addition(0), addition(1, "audio")], replace(LOCAL, setup=Setup.ACTPASS))
        video, audio = sdp.parse(draft.sdp).sections
        assert draft.added == ("0", "1")
        assert (video.direction, audio.direction) == (Direction.SENDONLY, Direction.SENDONLY)
        assert (video.simulcast_recv, video.rids) == ((), ())
        assert [g.ssrcs for g in video.ssrc_groups] == [(1, 2)]
        assert video.setup is Setup.ACTPASS
        assert set(video.codecs[0].feedback) == {"nack", "nack pli", "ccm fir", "transport-cc", "goog-remb"}
        assert audio.codecs[0].parameters == OPUS.parameters

    def test_rtx_is_offered_even_when_the_publisher_has_none(self) -> None:
        draft = Negotiation().offer([addition(0, codecs=(VP8,))], LOCAL)
        assert [c.apt for c in sdp.parse(draft.sdp).sections[0].codecs] == [None, 96]

    def test_is_not_taken_before_commit(self) -> None:
        negotiation = Negotiation()
        negotiation.offer([addition(0)], LOCAL)
        assert negotiation.pending is None
        assert negotiation.find("0") is None

    def test_rollback_names_what_vanishes(self) -> None:
        negotiation = Negotiation()
        negotiation.commit(negotiation.offer([addition(0)], LOCAL))
        assert negotiation.find("0") is not None
        assert negotiation.rollback() == ["0"]
        assert negotiation.rollback() == []
        assert negotiation.find("0") is None

    def test_sections_run_out_with_an_error(self) -> None:
        negotiation = Negotiation()
        with pytest.raises(LimitExceeded):
            negotiation.offer([addition(n, "audio") for n in range(257)], LOCAL)
        assert negotiation.pending is None

    def test_payload_types_run_out_with_an_error(self) -> None:
        many = [Codec(96, "H264", 90000, parameters=f"profile-level-id=42e0{n:02x}") for n in range(40)]
        with pytest.raises(LimitExceeded):
            Negotiation().offer([addition(0, codecs=tuple(many))], LOCAL)


class Signalling(RuleBasedStateMachine):
    """Any order of publishes, pulls, closes, stops and answers leaves one consistent session on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.negotiation = Negotiation()
        self.peer = Peer()
        self.number = 0
        self.outstanding: str | None = None
        self.peer_mid = 0

    def standing(self) -> dict[str, Wish]:
        return {s.mid: Wish(s.receives, s.outgoing) for s in self.negotiation.sections if s.live}

    def client_offers(self, wishes: dict[str, Wish], *new: MediaSection) -> None:
        text = self.peer.offer(*new)
        draft = self.negotiation.answer(self.negotiation.read_offer(text), {**self.standing(), **wishes}, LOCAL)
        self.negotiation.commit(draft)
        check_answer(sdp.parse(text), self.peer.take_answer(draft.sdp))

    @precondition(lambda self: self.outstanding is None)
    @rule(kind=st.sampled_from(["audio", "video"]), both=st.booleans())
    def publish(self, kind: str, both: bool) -> None:
        mid = f"p{self.peer_mid}"
        self.peer_mid += 1
        self.number += 1
        direction = Direction.SENDRECV if both else Direction.SENDONLY
        wish = Wish(receives=True, outgoing=outgoing(self.number) if both else None)
        self.client_offers({mid: wish}, section(mid, kind, direction))

    @rule(kind=st.sampled_from(["audio", "video"]), count=st.integers(1, 3))
    def pull(self, kind: str, count: int) -> None:
        additions = []
        for _ in range(count):
            self.number += 1
            additions.append(addition(self.number, kind))
        draft = self.negotiation.offer(additions, LOCAL)
        self.negotiation.commit(draft)
        self.outstanding = draft.sdp
        assert len(set(draft.added)) == count

    @precondition(lambda self: self.outstanding is not None)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        assert self.outstanding is not None
        live = [s.mid or "" for s in sdp.parse(self.outstanding).sections if not s.rejected]
        reject = data.draw(st.lists(st.sampled_from(live), max_size=1)) if live else []
        _, draft = self.negotiation.read_answer(self.peer.answer(self.outstanding, reject=reject))
        self.negotiation.commit(draft)
        self.outstanding = None

    @rule(data=st.data())
    def close_by_force(self, data: st.DataObject) -> None:
        mids = [s.mid for s in self.negotiation.pending or self.negotiation.sections if s.live]
        if mids:
            self.negotiation.stop(data.draw(st.sampled_from(mids)))

    @precondition(lambda self: self.outstanding is None)
    @rule(data=st.data(), how=st.sampled_from(["stop", "inactive", "as it is"]))
    def close_by_offer(self, data: st.DataObject, how: str) -> None:
        mids = [s.mid for s in self.negotiation.sections if s.live]
        if not mids:
            return
        mid = data.draw(st.sampled_from(mids))
        if how == "stop":
            self.peer.stop(mid)
        elif how == "inactive":
            self.peer.set_direction(mid, Direction.INACTIVE)
        self.negotiation.stop(mid)
        self.client_offers({})

    @invariant()
    def mids_are_unique(self) -> None:
        for sections in (self.negotiation.sections, self.negotiation.pending or ()):
            live = [s.mid for s in sections if s.live]
            assert len(live) == len(set(live))

    @invariant()
    def a_payload_type_means_one_thing(self) -> None:
        meanings: dict[int, str] = {}
        for s in self.negotiation.pending or self.negotiation.sections:
            for codec in s.codecs if s.live else ():
                meaning = f"{codec.name.lower()} {codec.parameters}"
                assert meanings.setdefault(codec.payload_type, meaning) == meaning

    @invariant()
    def an_ssrc_is_sent_on_one_section(self) -> None:
        ssrcs = [s.outgoing.ssrc for s in self.negotiation.pending or self.negotiation.sections if s.outgoing]
        assert len(ssrcs) == len(set(ssrcs))

    @invariant()
    def what_flows_is_alive(self) -> None:
        for s in self.negotiation.sections:
            assert s.live or s.described is Direction.INACTIVE


TestSignalling = Signalling.TestCase
TestSignalling.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
