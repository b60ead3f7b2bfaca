from __future__ import annotations

import pytest

from sfu import codecs
from sfu._dataplane import plane
from sfu.negotiation import Negotiation
from sfu.sections import Addition, LocalParameters, Outgoing
from tests.support.sdp_offers import FINGERPRINT, H264, OPUS, VP8, VP8_RTX, load
from wire import sdp
from wire.sdp import Codec


def h264(profile_level_id: str, mode: str = "1") -> Codec:
    return Codec(100, "H264", 90000, parameters=f"packetization-mode={mode};profile-level-id={profile_level_id}")


class TestSame:
    """SDP-8, FWD-1."""

    @pytest.mark.parametrize(
        ("a", "b", "same"),
        [
            (h264("42e01f"), h264("42e034"), True),  # another level
            (h264("42e01f"), h264("42c01f"), True),  # two spellings of constrained baseline
            (h264("42e01f"), h264("4d801f"), True),
            (h264("42e01f"), h264("42001f"), False),  # baseline
            (h264("42e01f"), h264("640c1f"), False),
            (h264("64001f"), h264("640c1f"), False),  # high, constrained high
            (h264("42e01f"), h264("42e01f", "0"), False),
            (h264("zz"), h264("ZZ"), True),
            (Codec(1, "VP9", 90000), Codec(2, "vp9", 90000, parameters="profile-id=0"), True),
            (Codec(1, "VP9", 90000), Codec(2, "VP9", 90000, parameters="profile-id=2"), False),
            (Codec(1, "AV1", 90000, parameters="profile=0;level-idx=5"), Codec(2, "AV1", 90000), True),
            (Codec(1, "AV1", 90000, parameters="profile=1"), Codec(2, "AV1", 90000), False),
            (Codec(1, "H265", 90000, parameters="level-id=93"), Codec(2, "H265", 90000), True),
            (Codec(1, "H265", 90000, parameters="tier-flag=1"), Codec(2, "H265", 90000), False),
            (OPUS, Codec(96, "OPUS", 48000, 2, "stereo=1"), True),
            (OPUS, Codec(96, "opus", 48000, 1), False),
        ],
    )
    def test_levels_and_spelling_do_not_matter(self, a: Codec, b: Codec, same: bool) -> None:
        assert codecs.same(a, b) is same
        assert codecs.same(b, a) is same


class TestSupported:
    def test_keeps_the_offered_order_and_drops_red_fec_and_tones(self) -> None:
        audio, video = sdp.parse(load("chrome-156-publish")).sections
        assert [c.name for c in codecs.supported(audio.codecs, "audio")] == ["opus", "PCMU", "PCMA"]
        names = {c.name for c in codecs.supported(video.codecs, "video")}
        assert names == {"VP8", "rtx", "H264", "AV1", "VP9"}

    def test_rtx_of_a_dropped_codec_is_dropped(self) -> None:
        red = [Codec(118, "red", 90000), Codec(119, "rtx", 90000, parameters="apt=118")]
        assert codecs.supported([VP8, VP8_RTX, *red], "video") == (VP8, VP8_RTX)

    def test_rtx_with_another_clock_is_dropped(self) -> None:
        assert codecs.supported([VP8, Codec(97, "rtx", 0, parameters="apt=96")], "video") == (VP8,)

    def test_feedback_we_do_not_speak_is_dropped(self) -> None:
        strange = Codec(96, "VP8", 90000, feedback=("nack", "ack rpsi", "transport-cc"))
        assert codecs.supported([strange], "video")[0].feedback == ("nack", "transport-cc")

    def test_extension_takes_its_first_id(self) -> None:
        mid = "urn:ietf:params:rtp-hdrext:sdes:mid"
        assert codecs.supported_extensions([(1, mid), (2, mid), (3, "urn:x")]) == ((1, mid),)

    def test_dependency_descriptor_is_never_agreed(self) -> None:
        """COD-3: we do not rewrite it."""
        assert not [uri for uri in codecs.EXTENSIONS if "dependency-descriptor" in uri]


class TestFirstOfEach:
    def test_one_variant_of_each_codec_with_its_rtx(self) -> None:
        video = codecs.supported(sdp.parse(load("chrome-156-publish")).sections[1].codecs, "video")
        chosen = codecs.first_of_each(video)
        assert [c.name for c in chosen if c.apt is None] == ["VP8", "H264", "AV1", "VP9"]
        assert {c.apt for c in chosen if c.apt is not None} == {c.payload_type for c in chosen if c.apt is None}

    def test_sixty_four_cameras_fit_into_half_a_description(self) -> None:
        """SDP-10 bounds the client's answer too: a batch of pulls must not make it too long."""
        video = codecs.supported(sdp.parse(load("chrome-156-publish")).sections[1].codecs, "video")
        extensions = tuple(codecs.EXTENSIONS)
        additions = [
            Addition(
                "video", codecs.first_of_each(video), extensions, outgoing=Outgoing(n + 1, n + 1000, "c", "s", "t")
            )
            for n in range(64)
        ]
        local = LocalParameters("u" * 24, "p" * 32, FINGERPRINT, sdp.Setup.ACTPASS, ())
        assert len(Negotiation().offer(additions, local).sdp) < sdp.BYTES_MAX / 2


class TestPlaneView:
    def test_codec_says_how_to_read_and_repair_it(self) -> None:
        read = codecs.plane_codecs([VP8, VP8_RTX, H264], "video")
        assert read[96] == {
            "codec": plane.CODEC_VP8,
            "clock_rate": 90000,
            "apt": -1,
            "nack": True,
            "pli": True,
            "fir": True,
        }
        assert read[97]["apt"] == 96
        assert read[102]["codec"] == plane.CODEC_H264
        assert not read[102]["nack"]

    def test_layers_extensions_go_in_and_never_out(self) -> None:
        rid = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
        assert codecs.receive_extensions([(2, rid)]) == {2: plane.EXT_RID}
        assert codecs.send_extensions([(2, rid)]) == {}
        assert rid not in codecs.offered_extension_uris([(2, rid)])

    def test_every_extension_has_a_number_of_its_own(self) -> None:
        assert len(set(codecs.EXTENSIONS.values())) == len(codecs.EXTENSIONS)
