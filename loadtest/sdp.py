"""The few lines of SDP that a light client needs: it writes its own offers and answers and reads a server's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from loadtest.dtls import fingerprint

MID_EXTENSION = "urn:ietf:params:rtp-hdrext:sdes:mid"

CODECS = {
    "audio": (111, ["a=rtpmap:111 opus/48000/2", "a=fmtp:111 minptime=10;useinbandfec=1"]),
    "video": (96, ["a=rtpmap:96 VP8/90000", "a=rtcp-fb:96 nack", "a=rtcp-fb:96 nack pli"]),
}


@dataclass(frozen=True, slots=True)
class Section:
    """One m-section of ours: `direction` is `sendonly` or `recvonly`; `ssrc` only when sending."""

    kind: str
    mid: str
    direction: str
    ssrc: int = 0


@dataclass(frozen=True, slots=True)
class RemoteDescription:
    """What we need of the server's description."""

    ufrag: str
    password: str
    fingerprint: str
    candidates: tuple[tuple[str, int], ...]
    setup: str
    sections: tuple[Section, ...] = field(default=())


def parse(sdp: str) -> RemoteDescription:
    """Read a server's offer or answer. Raises `ValueError` naming the line that is missing."""

    def first(name: str, pattern: str) -> str:
        match = re.search(pattern, sdp, re.MULTILINE)
        if match is None:
            raise ValueError(f"the server's description has no {name}")
        return match[1]

    sections = []
    for block in re.split(r"^(?=m=)", sdp, flags=re.MULTILINE)[1:]:
        mid = re.search(r"^a=mid:(\S+)", block, re.MULTILINE)
        ssrc = re.search(r"^a=ssrc:(\d+)", block, re.MULTILINE)
        direction = re.search(r"^a=(sendonly|recvonly|sendrecv|inactive)", block, re.MULTILINE)
        sections.append(
            Section(
                kind=block[2 : block.index(" ")],
                mid=mid[1] if mid else "",
                direction=direction[1] if direction else "sendrecv",
                ssrc=int(ssrc[1]) if ssrc else 0,
            )
        )
    return RemoteDescription(
        ufrag=first("a=ice-ufrag", r"^a=ice-ufrag:(\S+)"),
        password=first("a=ice-pwd", r"^a=ice-pwd:(\S+)"),
        fingerprint=first("SHA-256 a=fingerprint", r"^a=fingerprint:sha-256 (\S+)"),
        candidates=tuple(
            (host, int(port))
            for host, port in re.findall(r"^a=candidate:\S+ 1 udp \d+ (\S+) (\d+) ", sdp, re.MULTILINE | re.IGNORECASE)
        ),
        setup=first("a=setup", r"^a=setup:(\S+)"),
        sections=tuple(sections),
    )


def serialize(sections: list[Section], *, ufrag: str, password: str, setup: str) -> str:
    """Our offer (`setup` "actpass") or answer ("active")."""
    lines = [
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE " + " ".join(section.mid for section in sections),
        "a=msid-semantic: WMS *",
    ]
    for section in sections:
        payload_type, codec_lines = CODECS[section.kind]
        lines += [
            f"m={section.kind} 9 UDP/TLS/RTP/SAVPF {payload_type}",
            "c=IN IP4 0.0.0.0",
            f"a=mid:{section.mid}",
            f"a={section.direction}",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            f"a=ice-ufrag:{ufrag}",
            f"a=ice-pwd:{password}",
            f"a=fingerprint:sha-256 {fingerprint()}",
            f"a=setup:{setup}",
            f"a=extmap:1 {MID_EXTENSION}",
            *codec_lines,
        ]
        if section.ssrc:
            lines += [f"a=msid:load load-{section.mid}", f"a=ssrc:{section.ssrc} cname:load"]
    return "\r\n".join(lines) + "\r\n"
