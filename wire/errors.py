"""Errors of `wire`: bytes or text that break their format, and values that do not fit into it.

WireError (a ValueError)
├── StunError     not a well-formed STUN message (RFC 8489): drop it
│   └── StunAttributeError  the message is whole, one attribute is not: answer 400
├── RtpError      not a well-formed RTP packet, or header extensions that do not fit (RFC 3550, RFC 8285)
├── RtcpError     not a well-formed RTCP packet, or a report that does not fit into one (RFC 3550, RFC 4585)
└── SdpError      not a session description that can be read safely (RFC 8866)

Parsers raise nothing else, whatever the input.
"""

from __future__ import annotations


class WireError(ValueError):
    """The input breaks the format; `reason` says how, in words fit for a log line (never the input itself)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StunError(WireError):
    """Not a well-formed STUN message."""


class StunAttributeError(StunError):
    """One attribute of a well-formed message has a value that its type does not allow."""

    def __init__(self, attribute: int) -> None:
        super().__init__(f"malformed attribute {attribute:#06x}")
        self.attribute = attribute


class RtpError(WireError):
    """Not a well-formed RTP packet, or values that do not fit into one."""


class RtcpError(WireError):
    """Not a well-formed RTCP packet, or values that do not fit into one."""


class SdpError(WireError):
    """Not a session description that can be read safely."""
