"""Errors of `turn`.

TurnError
├── StunRefusal         a request is answered with an error response; carries the code
├── ConfigurationError  the settings contradict each other or the machine; the server does not start
├── StreamError         a client's byte stream left the framing; its connection is closed
├── TlsError            it does not speak TLS, or not ours; its connection is closed
├── UsageError          our own code called a method at the wrong moment
└── ApiError            the HTTP API refuses; carries status and `errorCode`
    ├── DecodingError       400 decoding_error: the body is not what the schema says
    ├── Unauthorized        401 unauthorized
    ├── UnknownKey          404 not_found: no such key
    ├── UnknownCredential   404 not_found: not issued here, or not under this key
    ├── InvalidParams       406 invalid_params: a value outside its limits
    └── PayloadTooLarge     413 payload_too_large
"""

from __future__ import annotations

from collections.abc import Sequence


class TurnError(Exception):
    """Base of all errors here."""


class StunRefusal(TurnError):
    """The request is answered with ERROR-CODE `code` and `attributes` (RFC 8489 §14.8, RFC 8656 §19)."""

    def __init__(self, code: int, attributes: Sequence[tuple[int, bytes]] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.attributes = attributes

    def __str__(self) -> str:
        return f"refused with {self.code}"


class ConfigurationError(TurnError):
    """The settings cannot be served; the message names the setting."""


class StreamError(TurnError):
    """A byte that starts neither STUN nor ChannelData: the framing is lost for good."""


class TlsError(TurnError):
    """A handshake or a record failed; the alert that says so waits to be sent."""


class UsageError(TurnError):
    """A method was called before `start`, or twice."""


class ApiError(TurnError):
    """Base of what the HTTP API answers. `status` is the HTTP status, `code` the API's `errorCode`."""

    status = 500
    code = "internal_error"

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


class DecodingError(ApiError):
    """The body is not JSON, or a field has the wrong type."""

    status = 400
    code = "decoding_error"


class Unauthorized(ApiError):
    """Missing or wrong bearer for this key."""

    status = 401
    code = "unauthorized"


class UnknownKey(ApiError):
    """No key of this id is configured."""

    status = 404
    code = "not_found"


class UnknownCredential(ApiError):
    """No credential of this name was issued under this key."""

    status = 404
    code = "not_found"


class InvalidParams(ApiError):
    """A field is outside its limits; the description names it."""

    status = 406
    code = "invalid_params"


class PayloadTooLarge(ApiError):
    """The body is above the limit."""

    status = 413
    code = "payload_too_large"
