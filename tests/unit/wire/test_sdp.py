from __future__ import annotations

import pytest

from tests.support.sdp_offers import NAMES, load, offer, section
from wire import sdp
from wire.errors import SdpError
from wire.sdp import Direction

HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"


def parse(*lines: str) -> sdp.Description:
    return sdp.parse(HEAD + "\r\n".join(lines) + "\r\n")


def video(*lines: str) -> sdp.MediaSection:
    return parse("m=video 9 UDP/TLS/RTP/SAVPF 96 97", *lines).sections[0]


class TestBrowserOffers:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_read_and_survive_being_written_again(self, name: str) -> None:
        description = sdp.parse(load(name))
        assert description.sections
        assert sdp.parse(sdp.serialize(description)) == description

    @pytest.mark.parametrize("name", NAMES)
    def test_mean_the_same_with_bare_line_feeds(self, name: str) -> None:
        assert sdp.parse(load(name).replace("\r\n", "\n")) == sdp.parse(load(name))

    def test_chrome_lists_simulcast_layers_in_order(self) -> None:
        section = sdp.parse(load("chrome-156-simulcast")).sections[0]
        assert section.simulcast_send == (("h",), ("m",), ("l",))
        assert [rid.id for rid in section.rids] == ["h", "m", "l"]

    def test_session_level_fingerprint_reaches_each_section(self) -> None:
        """Firefox writes it once (RFC 8842 §5.1)."""
        description = sdp.parse(load("firefox-shape-publish"))
        assert all(section.fingerprints for section in description.sections)

    def test_section_direction_beats_session_direction(self) -> None:
        assert sdp.parse(load("firefox-shape-publish")).sections[0].direction is Direction.SENDONLY

    def test_safari_pairs_media_with_rtx(self) -> None:
        section = sdp.parse(load("safari-shape-publish")).sections[1]
        assert section.ssrc_groups == (sdp.SsrcGroup("FID", (3141592653, 2718281828)),)
        assert [ssrc for ssrc, _ in section.ssrcs] == [3141592653, 2718281828]


class TestCodecs:
    def test_come_in_the_order_of_the_m_line(self) -> None:
        section = video("a=rtpmap:97 VP9/90000", "a=rtpmap:96 VP8/90000")
        assert [codec.payload_type for codec in section.codecs] == [96, 97]

    def test_static_payload_types_need_no_rtpmap(self) -> None:
        section = parse("m=audio 9 UDP/TLS/RTP/SAVPF 0 8").sections[0]
        assert [(codec.name, codec.clock_rate) for codec in section.codecs] == [("PCMU", 8000), ("PCMA", 8000)]

    def test_dynamic_payload_type_without_rtpmap_is_left_out(self) -> None:
        assert [codec.payload_type for codec in video("a=rtpmap:96 VP8/90000").codecs] == [96]

    def test_feedback_for_all_reaches_every_payload_type_once(self) -> None:
        section = video("a=rtpmap:96 VP8/90000", "a=rtpmap:97 VP9/90000", "a=rtcp-fb:* nack", "a=rtcp-fb:96 nack")
        assert [codec.feedback for codec in section.codecs] == [("nack",), ("nack",)]

    def test_parameters_are_found_without_case_and_blanks(self) -> None:
        codec = video("a=rtpmap:96 H264/90000", "a=fmtp:96 Packetization-Mode=1; profile-level-id=42e01f").codecs[0]
        assert codec.parameter("packetization-mode") == "1"
        assert codec.parameter("profile-level-id") == "42e01f"
        assert codec.parameter("absent") is None

    @pytest.mark.parametrize(("parameters", "apt"), [("apt=96", 96), ("apt=x", None), ("apt=" + "9" * 40, None)])
    def test_rtx_names_what_it_repairs(self, parameters: str, apt: int | None) -> None:
        section = video("a=rtpmap:96 VP8/90000", "a=rtpmap:97 rtx/90000", f"a=fmtp:97 {parameters}")
        assert section.codecs[1].apt == apt


class TestSections:
    def test_port_zero_is_rejected_unless_bundle_only(self) -> None:
        """RFC 9143 §6."""
        assert parse("m=video 0 UDP/TLS/RTP/SAVPF 96").sections[0].rejected
        assert not parse("m=video 0 UDP/TLS/RTP/SAVPF 96", "a=bundle-only").sections[0].rejected

    def test_simulcast_keeps_alternatives_and_pauses(self) -> None:
        """SDP-4."""
        section = video("a=rid:h send", "a=rid:l send", "a=simulcast:send h,m;~l")
        assert section.simulcast_send == (("h", "m"), ("~l",))

    def test_data_channel_section(self) -> None:
        section = parse(
            "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "a=sctp-port:5000", "a=max-message-size:262144"
        ).sections[0]
        assert section.is_data
        assert (section.sctp_port, section.max_message_size) == (5000, 262144)

    def test_unknown_lines_are_ignored(self) -> None:
        assert parse("b=AS:500", "z=0 0", "a=x-new-thing:1", "m=video 9 UDP/TLS/RTP/SAVPF 96", "i=title").sections

    def test_direction_halves(self) -> None:
        assert Direction.of(sends=True, receives=True) is Direction.SENDRECV
        assert Direction.of(sends=False, receives=False) is Direction.INACTIVE
        assert Direction.SENDONLY.sends
        assert not Direction.SENDONLY.receives


class TestRefusals:
    """SDP-10 and table 17 row 14: an error with a reason, never a partial description."""

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "v=0"),
            ("v=1\n", "v=0"),
            ("v=0\n", "no origin"),
            ("v=0\no=- x 1 IN IP4 0\n", "origin"),
            ("v=0\no=- 1\n", "origin"),
            (HEAD + "nonsense\n", "<type>=<value>"),
            (HEAD + "a=x\0y\n", "control characters"),
            (HEAD + "a=" + "x" * 3000, "line above"),
            (HEAD + "a=x\n" * 20_000, "too many lines"),
            (HEAD + "x" * 11_000_000, "size limit"),
            (HEAD + "a=" + "é" * 280_000, "size limit"),
            (HEAD + "m=video 9 UDP/TLS/RTP/SAVPF 96\n" * 257, "too many media sections"),
            (HEAD + "m=video 9\n", "m-line"),
            (HEAD + "m=video -1 UDP/TLS/RTP/SAVPF 96\n", "port"),
            (HEAD + "m=video 70000 UDP/TLS/RTP/SAVPF 96\n", "port"),
            (HEAD + "m=video 9 UDP/TLS/RTP/SAVPF 96 96\n", "twice"),
            (HEAD + "m=video 9 UDP/TLS/RTP/SAVPF 128\n", "payload type"),
            (HEAD + "m=video 9 UDP/TLS/RTP/SAVPF " + " ".join(map(str, range(65))) + "\n", "payload types"),
            (HEAD + "m=video 9 X 96\na=mid:0\nm=video 9 X 96\na=mid:0\n", "duplicate mid"),
            (HEAD + "m=video 9 X 96\na=mid:\n", "mid"),
            (HEAD + "a=group:BUNDLE 0\na=group:BUNDLE 1\nm=video 9 X 96\na=mid:0\n", "more than one BUNDLE"),
            (HEAD + "a=group:BUNDLE 7\nm=video 9 X 96\na=mid:0\n", "unknown"),
            (HEAD + "a=group:BUNDLE 0 0\nm=video 9 X 96\na=mid:0\n", "repeated"),
            (HEAD + "m=video 9 X 96\na=setup:sideways\n", "setup"),
            (HEAD + "m=video 9 X 96\na=fingerprint:sha-256\n", "fingerprint"),
            (HEAD + "m=video 9 X 96\n" + "a=fingerprint:sha-256 AB\n" * 9, "too many fingerprint"),
            (HEAD + "m=video 9 X 96\na=extmap:1\n", "extmap"),
            (HEAD + "m=video 9 X 96\na=extmap:1 urn:a\na=extmap:1 urn:b\n", "twice"),
            (HEAD + "m=video 9 X 96\n" + "".join(f"a=extmap:{n} urn:{n}\n" for n in range(1, 40)), "too many extmap"),
            (HEAD + "m=video 9 X 96\na=rid:a b c\n", "rid"),
            (HEAD + "m=video 9 X 96\na=rid:h send\na=rid:h send\n", "twice"),
            (HEAD + "m=video 9 X 96\na=simulcast:both h\n", "simulcast"),
            (HEAD + "m=video 9 X 96\na=simulcast:send\n", "simulcast"),
            (HEAD + "m=video 9 X 96\na=simulcast:send " + ";".join("abcdefghijklmnopqr") + "\n", "simulcast"),
            (HEAD + "m=video 9 X 96\na=simulcast:send a\u0663b\n", "simulcast"),
            (HEAD + "m=video 9 X 96\na=ssrc:x cname:y\n", "ssrc"),
            (HEAD + "m=video 9 X 96\n" + "".join(f"a=ssrc:{n} cname:y\n" for n in range(65)), "SSRCs"),
            (HEAD + "m=video 9 X 96\na=rtpmap:96 VP8/fast\n", "rtpmap"),
            (HEAD + "m=application 9 UDP/DTLS/SCTP x\na=sctp-port:99999\n", "sctp-port"),
        ],
        ids=lambda value: value if value.isalpha() else "text",
    )
    def test_has_a_reason(self, text: str, reason: str) -> None:
        with pytest.raises(SdpError) as error:
            sdp.parse(text)
        assert reason in error.value.reason

    def test_reason_never_repeats_the_input(self) -> None:
        with pytest.raises(SdpError) as error:
            sdp.parse(HEAD + "m=video 9 X 96\na=setup:s3cret\n")
        assert "s3cret" not in str(error.value)

    def test_limit_on_size_can_be_lowered(self) -> None:
        with pytest.raises(SdpError):
            sdp.parse(offer(section("0")), bytes_max=100)


def test_no_line_of_a_description_can_smuggle_another() -> None:
    """What is echoed came out of lines, so it holds no line end: even lone carriage returns are refused."""
    with pytest.raises(SdpError):
        sdp.parse(HEAD + "m=video 9 X 96\na=mid:0\ra=setup:active\n")
