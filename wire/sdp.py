"""Session descriptions as WebRTC uses them: text to values and back (RFC 8866, RFC 9429).

`parse` reads what an offer/answer engine needs and ignores every line it does not know. It is bounded (`Limits`,
SDP-10) and all or nothing: a description comes back whole, or `SdpError` does. `serialize` writes a description of
our own in the order browsers write it. What an answer may hold is not decided here.

Session-level ICE credentials, fingerprints, setup and direction are copied into every media section that has none of
its own (RFC 8839 §5.4, RFC 8842 §5.1), so readers look in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from wire.errors import SdpError

BYTES_MAX: Final = 512 * 1024  # `SECTIONS_MAX` sections as a browser answers them
LINE_BYTES_MAX: Final = 2048
LINES_MAX: Final = 16 * 1024
SECTIONS_MAX: Final = 256
CODECS_MAX: Final = 64  # per section, as every limit below
EXTENSIONS_MAX: Final = 32
SSRCS_MAX: Final = 64
RIDS_MAX: Final = 16
CANDIDATES_MAX: Final = 64
FINGERPRINTS_MAX: Final = 8
FEEDBACK_MAX: Final = 512

DATA_PROTOCOLS: Final = frozenset({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP", "DTLS/SCTP"})

# Payload types with a meaning of their own (RFC 3551 §6), as far as WebRTC knows them: they need no rtpmap.
_STATIC: Final = {0: ("PCMU", 8000), 8: ("PCMA", 8000), 9: ("G722", 8000), 13: ("CN", 8000)}


class Direction(StrEnum):
    """Which way media flows, from the point of view of the description's author (RFC 8866 §6.7)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"

    @property
    def sends(self) -> bool:
        """Whether the author sends."""
        return self in (Direction.SENDRECV, Direction.SENDONLY)

    @property
    def receives(self) -> bool:
        """Whether the author receives."""
        return self in (Direction.SENDRECV, Direction.RECVONLY)

    @staticmethod
    def of(*, sends: bool, receives: bool) -> Direction:
        """The direction made of two halves."""
        if sends:
            return Direction.SENDRECV if receives else Direction.SENDONLY
        return Direction.RECVONLY if receives else Direction.INACTIVE


class Setup(StrEnum):
    """Who starts the DTLS handshake (RFC 4145 §4, RFC 8842 §5.3)."""

    ACTIVE = "active"
    PASSIVE = "passive"
    ACTPASS = "actpass"


@dataclass(frozen=True, slots=True)
class Codec:
    """One payload type: `a=rtpmap`, `a=fmtp` and `a=rtcp-fb`."""

    payload_type: int
    name: str
    """As written; compare without case."""
    clock_rate: int
    channels: int = 1
    parameters: str = ""
    """The format parameters, verbatim."""
    feedback: tuple[str, ...] = ()
    """Such as `nack pli`; those given for all payload types (`*`) are included."""

    def parameter(self, name: str) -> str | None:
        """One format parameter by its lower-case name, or None."""
        for item in self.parameters.split(";"):
            key, _, value = item.partition("=")
            if key.strip().lower() == name:
                return value.strip()
        return None

    @property
    def apt(self) -> int | None:
        """The payload type that this RTX codec repairs (RFC 4588 §8.6); None for other codecs or nonsense."""
        if self.name.lower() != "rtx":
            return None
        value = self.parameter("apt")
        return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) <= 3 else None


@dataclass(frozen=True, slots=True)
class Rid:
    """`a=rid` (RFC 8851): a simulcast encoding in one direction, `send` or `recv`."""

    id: str
    direction: str


@dataclass(frozen=True, slots=True)
class SsrcGroup:
    """`a=ssrc-group` (RFC 5576 §4.2): FID pairs media with its RTX, SIM lists layers."""

    semantics: str
    ssrcs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`a=fingerprint` (RFC 8122 §5): `algorithm` in lower case, `value` as upper-case hex pairs."""

    algorithm: str
    value: str


@dataclass(frozen=True, slots=True)
class MediaSection:
    """One m-section. `port` 0 means rejected, or offered for bundling only when `bundle_only` is set."""

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    mid: str | None = None
    direction: Direction = Direction.SENDRECV
    bundle_only: bool = False
    ice_ufrag: str | None = None
    ice_pwd: str | None = None
    setup: Setup | None = None
    fingerprints: tuple[Fingerprint, ...] = ()
    rtcp_mux: bool = False
    rtcp_rsize: bool = False
    codecs: tuple[Codec, ...] = ()
    """In the order of the m-line, which is the author's preference."""
    extensions: tuple[tuple[int, str], ...] = ()
    """Header extensions: id and URI (RFC 8285 §5)."""
    rids: tuple[Rid, ...] = ()
    simulcast_send: tuple[tuple[str, ...], ...] = ()
    """RFC 8853: streams in order, each a tuple of alternatives; `~` marks a paused one."""
    simulcast_recv: tuple[tuple[str, ...], ...] = ()
    msid: str | None = None
    """`<stream> <track>` (RFC 8830), verbatim."""
    ssrcs: tuple[tuple[int, str], ...] = ()
    """SSRC and CNAME, each SSRC once, in order of appearance."""
    ssrc_groups: tuple[SsrcGroup, ...] = ()
    candidates: tuple[str, ...] = ()
    """Verbatim, after `candidate:`."""
    end_of_candidates: bool = False
    sctp_port: int | None = None
    max_message_size: int | None = None

    @property
    def rejected(self) -> bool:
        """Port 0 that does not merely say "bundled" (RFC 9143 §6)."""
        return self.port == 0 and not self.bundle_only

    @property
    def is_data(self) -> bool:
        """A data channel section (RFC 8841)."""
        return self.kind == "application" and self.protocol in DATA_PROTOCOLS


@dataclass(frozen=True, slots=True)
class Description:
    """A whole session description."""

    sections: tuple[MediaSection, ...] = ()
    bundle: tuple[str, ...] = ()
    """The mids of the one BUNDLE group, in order; the first carries the transport (RFC 9143 §7)."""
    session_id: int = 0
    version: int = 0
    ice_lite: bool = False
    extmap_allow_mixed: bool = False
    origin_name: str = "-"


@dataclass(slots=True)
class _Attributes:
    """The `a=` lines of one level: names to values, both in order; flags have an empty value."""

    media: str = ""
    values: dict[str, list[str]] = field(default_factory=dict)

    def add(self, line: str) -> None:
        name, _, value = line.partition(":")
        self.values.setdefault(name, []).append(value)

    def all(self, name: str) -> Sequence[str]:
        return self.values.get(name, ())

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def __contains__(self, name: str) -> bool:
        return name in self.values


def parse(text: str, *, bytes_max: int = BYTES_MAX) -> Description:
    """Read a description; lines end in LF or CRLF.

    The work is linear in the size of `text`, which is bounded first.

    Raises:
        SdpError: above a limit, not SDP, or a line we must understand is malformed.
    """
    if len(text) > bytes_max or len(text.encode(errors="replace")) > bytes_max:
        raise SdpError("above the size limit")
    session = _Attributes()
    media: list[_Attributes] = []
    level = session
    origin = ""
    lines = text.replace("\r\n", "\n").split("\n")
    if len(lines) > LINES_MAX:
        raise SdpError("too many lines")
    if lines[0] != "v=0":
        raise SdpError("does not begin with v=0")
    for line in lines:
        if not line:
            continue
        if len(line) > LINE_BYTES_MAX:
            raise SdpError("line above the size limit")
        if not line.isprintable() and not line.replace("\t", " ").isprintable():
            raise SdpError("control characters")
        kind, equals, value = line[:1], line[1:2], line[2:]
        if equals != "=":
            raise SdpError("a line is not <type>=<value>")
        if kind == "o":
            origin = value
        elif kind == "m":
            if len(media) == SECTIONS_MAX:
                raise SdpError("too many media sections")
            level = _Attributes(value)
            media.append(level)
        elif kind == "a":
            level.add(value)
    if not origin:
        raise SdpError("no origin")
    sections = tuple(_parse_section(section, session) for section in media)
    mids = [section.mid for section in sections if section.mid is not None]
    if len(mids) != len(set(mids)):
        raise SdpError("duplicate mid")
    session_id, version = _parse_origin(origin)
    return Description(
        sections=sections,
        bundle=_parse_bundle(session, frozenset(mids)),
        session_id=session_id,
        version=version,
        ice_lite="ice-lite" in session,
        extmap_allow_mixed="extmap-allow-mixed" in session,
        origin_name=origin.split(" ", 1)[0],
    )


def _parse_origin(origin: str) -> tuple[int, int]:
    fields = origin.split()
    if len(fields) != 6:
        raise SdpError("malformed origin")
    return _number(fields[1], 2**64 - 1, "origin"), _number(fields[2], 2**64 - 1, "origin")


def _parse_bundle(session: _Attributes, mids: frozenset[str]) -> tuple[str, ...]:
    groups = [value.split()[1:] for value in session.all("group") if value.split()[:1] == ["BUNDLE"]]
    if len(groups) > 1:
        raise SdpError("more than one BUNDLE group")
    bundle = tuple(groups[0]) if groups else ()
    if len(set(bundle)) != len(bundle) or not mids.issuperset(bundle):
        raise SdpError("BUNDLE names an unknown or repeated mid")
    return bundle


def _parse_section(attributes: _Attributes, session: _Attributes) -> MediaSection:
    fields = attributes.media.split()
    if len(fields) < 4:
        raise SdpError("malformed m-line")
    kind, port, protocol, *formats = fields
    if len(formats) > CODECS_MAX:
        raise SdpError("too many payload types")
    mid = attributes.first("mid")
    if mid is not None and (not _is_token(mid) or len(mid) > 64):
        raise SdpError("malformed mid")
    return MediaSection(
        kind=kind,
        port=_number(port.partition("/")[0], 65535, "port"),
        protocol=protocol,
        formats=tuple(formats),
        mid=mid,
        direction=_parse_direction(attributes, session),
        bundle_only="bundle-only" in attributes,
        ice_ufrag=attributes.first("ice-ufrag") or session.first("ice-ufrag"),
        ice_pwd=attributes.first("ice-pwd") or session.first("ice-pwd"),
        setup=_parse_setup(attributes, session),
        fingerprints=_parse_fingerprints(attributes) or _parse_fingerprints(session),
        rtcp_mux="rtcp-mux" in attributes,
        rtcp_rsize="rtcp-rsize" in attributes,
        codecs=_parse_codecs(attributes, formats) if kind in ("audio", "video") else (),
        extensions=_parse_extensions(attributes),
        rids=_parse_rids(attributes),
        simulcast_send=_parse_simulcast(attributes, "send"),
        simulcast_recv=_parse_simulcast(attributes, "recv"),
        msid=attributes.first("msid"),
        ssrcs=_parse_ssrcs(attributes),
        ssrc_groups=_parse_ssrc_groups(attributes),
        candidates=_bounded(attributes, "candidate", CANDIDATES_MAX),
        end_of_candidates="end-of-candidates" in attributes,
        sctp_port=_optional_number(attributes, "sctp-port", 65535),
        max_message_size=_optional_number(attributes, "max-message-size", 2**63 - 1),
    )


def _parse_direction(attributes: _Attributes, session: _Attributes) -> Direction:
    for level in (attributes, session):
        for direction in Direction:
            if direction in level:
                return direction
    return Direction.SENDRECV


def _parse_setup(attributes: _Attributes, session: _Attributes) -> Setup | None:
    value = attributes.first("setup") or session.first("setup")
    if value is None:
        return None
    try:
        return Setup(value)
    except ValueError:
        raise SdpError("unknown setup") from None


def _parse_fingerprints(attributes: _Attributes) -> tuple[Fingerprint, ...]:
    found = []
    for line in _bounded(attributes, "fingerprint", FINGERPRINTS_MAX):
        algorithm, _, value = line.partition(" ")
        if not _is_token(algorithm) or not value:
            raise SdpError("malformed fingerprint")
        found.append(Fingerprint(algorithm.lower(), value.strip().upper()))
    return tuple(found)


def _parse_codecs(attributes: _Attributes, formats: Sequence[str]) -> tuple[Codec, ...]:
    payload_types = [_number(value, 127, "payload type") for value in formats]
    if len(set(payload_types)) != len(payload_types):
        raise SdpError("payload type listed twice")
    listed = set(payload_types)
    maps: dict[int, tuple[str, int, int]] = {
        number: (*_STATIC[number], 1) for number in payload_types if number in _STATIC
    }
    for line in attributes.all("rtpmap"):
        number_text, _, encoding = line.partition(" ")
        name, _, rest = encoding.strip().partition("/")
        rate, _, channels = rest.partition("/")
        number = _number(number_text, 127, "rtpmap")
        if not _is_token(name):
            raise SdpError("malformed rtpmap")
        maps[number] = name, _number(rate, 2**32 - 1, "rtpmap"), _number(channels, 255, "rtpmap") if channels else 1
    parameters: dict[int, str] = {}
    for line in attributes.all("fmtp"):
        number_text, _, value = line.partition(" ")
        if number_text.isascii() and number_text.isdigit() and len(number_text) <= 3 and value:
            parameters[int(number_text)] = value.strip()
    feedback: dict[int, list[str]] = {number: [] for number in payload_types}
    for line in _bounded(attributes, "rtcp-fb", FEEDBACK_MAX):
        number_text, _, value = line.partition(" ")
        targets = payload_types if number_text == "*" else [_number(number_text, 127, "rtcp-fb")]
        for number in targets:
            if number in listed and value not in feedback[number] and len(feedback[number]) < 16:
                feedback[number].append(value)
    return tuple(
        Codec(number, *maps[number], parameters.get(number, ""), tuple(feedback[number]))
        for number in payload_types
        if number in maps
    )


def _parse_extensions(attributes: _Attributes) -> tuple[tuple[int, str], ...]:
    found: dict[int, str] = {}
    for line in _bounded(attributes, "extmap", EXTENSIONS_MAX):
        fields = line.split()
        if len(fields) < 2:
            raise SdpError("malformed extmap")
        # "/<direction>" after the id is legal and unused by browsers: an extension is taken in both directions.
        number = _number(fields[0].partition("/")[0], 4351, "extmap")
        if number in found:
            raise SdpError("extmap id used twice")
        found[number] = fields[1]
    return tuple((number, uri) for number, uri in found.items() if 1 <= number <= 255 and number != 15)


def _parse_rids(attributes: _Attributes) -> tuple[Rid, ...]:
    found: dict[str, Rid] = {}
    for line in _bounded(attributes, "rid", RIDS_MAX):
        fields = line.split()
        if len(fields) < 2 or not _is_rid(fields[0]) or fields[1] not in ("send", "recv"):
            raise SdpError("malformed rid")
        if fields[0] in found:
            raise SdpError("rid used twice")
        found[fields[0]] = Rid(fields[0], fields[1])
    return tuple(found.values())


def _parse_simulcast(attributes: _Attributes, direction: str) -> tuple[tuple[str, ...], ...]:
    fields = (attributes.first("simulcast") or "").split()
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    if not pairs.keys() <= {"send", "recv"} or len(fields) % 2:
        raise SdpError("malformed simulcast")
    if direction not in pairs:
        return ()
    streams = tuple(tuple(stream.split(",")) for stream in pairs[direction].split(";"))
    if sum(map(len, streams)) > RIDS_MAX:
        raise SdpError("too many simulcast streams")
    if not all(_is_rid(rid.removeprefix("~")) for stream in streams for rid in stream):
        raise SdpError("malformed simulcast")
    return streams


def _parse_ssrcs(attributes: _Attributes) -> tuple[tuple[int, str], ...]:
    found: dict[int, str] = {}
    for line in attributes.all("ssrc"):
        number_text, _, attribute = line.partition(" ")
        ssrc = _number(number_text, 2**32 - 1, "ssrc")
        name, _, value = attribute.partition(":")
        if ssrc not in found and len(found) == SSRCS_MAX:
            raise SdpError("too many SSRCs")
        found.setdefault(ssrc, "")
        if name == "cname":
            found[ssrc] = value
    return tuple(found.items())


def _parse_ssrc_groups(attributes: _Attributes) -> tuple[SsrcGroup, ...]:
    groups = []
    for line in _bounded(attributes, "ssrc-group", SSRCS_MAX):
        semantics, *ssrcs = line.split() or [""]
        if len(ssrcs) > SSRCS_MAX:
            raise SdpError("too many SSRCs")
        groups.append(SsrcGroup(semantics, tuple(_number(ssrc, 2**32 - 1, "ssrc-group") for ssrc in ssrcs)))
    return tuple(groups)


def _bounded(attributes: _Attributes, name: str, limit: int) -> tuple[str, ...]:
    values = tuple(attributes.all(name))
    if len(values) > limit:
        raise SdpError(f"too many {name} lines")
    return values


def _optional_number(attributes: _Attributes, name: str, maximum: int) -> int | None:
    value = attributes.first(name)
    return None if value is None else _number(value, maximum, name)


def _number(text: str, maximum: int, what: str) -> int:
    """A decimal without sign; the length check keeps a line of digits from costing a big conversion."""
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) > maximum:
        raise SdpError(f"bad number in {what}")
    return int(text)


def _is_token(text: str) -> bool:
    """RFC 8866 §9: visible ASCII without separators. `{}` are in: Firefox writes mids and track ids with them."""
    return bool(text) and text.isascii() and text.isprintable() and not any(c in ' "(),/:;<=>?@[\\]' for c in text)


def _is_rid(text: str) -> bool:
    """RFC 8851 §10 as errata and browsers have it."""
    return 0 < len(text) <= 255 and text.isascii() and all(c.isalnum() or c in "-_" for c in text)


def serialize(description: Description) -> str:
    """Write a description, lines ending in CRLF. Values are trusted: they are our own or came out of `parse`."""
    lines = [
        "v=0",
        f"o={description.origin_name} {description.session_id} {description.version} IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
    ]
    if description.bundle:
        lines.append("a=group:BUNDLE " + " ".join(description.bundle))
    if description.extmap_allow_mixed:
        lines.append("a=extmap-allow-mixed")
    lines.append("a=msid-semantic: WMS *")
    if description.ice_lite:
        lines.append("a=ice-lite")
    for section in description.sections:
        lines += _section_lines(section)
    return "\r\n".join(lines) + "\r\n"


def _section_lines(section: MediaSection) -> Iterator[str]:
    yield f"m={section.kind} {section.port} {section.protocol} {' '.join(section.formats)}"
    yield "c=IN IP4 0.0.0.0"
    if section.kind in ("audio", "video") and not section.rejected:
        yield "a=rtcp:9 IN IP4 0.0.0.0"
    for candidate in section.candidates:
        yield f"a=candidate:{candidate}"
    if section.end_of_candidates:
        yield "a=end-of-candidates"
    if section.ice_ufrag is not None:
        yield f"a=ice-ufrag:{section.ice_ufrag}"
        yield f"a=ice-pwd:{section.ice_pwd}"
    for fingerprint in section.fingerprints:
        yield f"a=fingerprint:{fingerprint.algorithm} {fingerprint.value}"
    if section.setup is not None:
        yield f"a=setup:{section.setup}"
    if section.mid is not None:
        yield f"a=mid:{section.mid}"
    if section.bundle_only:
        yield "a=bundle-only"
    for number, uri in section.extensions:
        yield f"a=extmap:{number} {uri}"
    if section.kind in ("audio", "video"):
        yield f"a={section.direction}"
    if section.msid is not None:
        yield f"a=msid:{section.msid}"
    if section.rtcp_mux:
        yield "a=rtcp-mux"
    if section.rtcp_rsize:
        yield "a=rtcp-rsize"
    for codec in section.codecs:
        yield from _codec_lines(codec)
    for rid in section.rids:
        yield f"a=rid:{rid.id} {rid.direction}"
    simulcast = [
        f"{direction} " + ";".join(",".join(stream) for stream in streams)
        for direction, streams in (("send", section.simulcast_send), ("recv", section.simulcast_recv))
        if streams
    ]
    if simulcast:
        yield "a=simulcast:" + " ".join(simulcast)
    for group in section.ssrc_groups:
        yield f"a=ssrc-group:{group.semantics} " + " ".join(map(str, group.ssrcs))
    for ssrc, cname in section.ssrcs:
        yield f"a=ssrc:{ssrc} cname:{cname}"
    if section.sctp_port is not None:
        yield f"a=sctp-port:{section.sctp_port}"
    if section.max_message_size is not None:
        yield f"a=max-message-size:{section.max_message_size}"


def _codec_lines(codec: Codec) -> Iterator[str]:
    channels = f"/{codec.channels}" if codec.channels != 1 else ""
    yield f"a=rtpmap:{codec.payload_type} {codec.name}/{codec.clock_rate}{channels}"
    for feedback in codec.feedback:
        yield f"a=rtcp-fb:{codec.payload_type} {feedback}"
    if codec.parameters:
        yield f"a=fmtp:{codec.payload_type} {codec.parameters}"
