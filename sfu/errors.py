"""Errors of `sfu`, each with the status and code that the HTTPS API answers.

SfuError
├── RemoteProtocolError            the peer or the caller broke a rule
│   ├── DecodingError              400 decoding_error: the body is not what the schema says
│   ├── InvalidParams              406 invalid_params: valid JSON, wrong field, combination or count
│   ├── InvalidSessionDescription  406 invalid_session_description: SDP unparsable or out of order
│   ├── Unauthorized               401 unauthorized
│   ├── AppNotFound                404 not_found: the *app* is unknown
│   └── PayloadTooLarge            413 payload_too_large
├── SessionGone                    410 session_error: expired, closed or never existed
├── TransportNotReady              425 session_error: finish the setup and retry
├── LimitExceeded                  429 too_many_requests, or a table is full
├── UsageError                     our own code misused a core; 500 internal_error
└── TrackError                     never top-level: becomes the error of one item inside a 200
    ├── TrackNotFound              not_found_track_error
    ├── TrackEmpty                 empty_track_error: known, but no media in time
    ├── TrackNotUpdatable          update_track_error
    └── TrackAlreadyClosed         close_track_error
"""

from __future__ import annotations


class SfuError(Exception):
    """Base of all errors here. `status` is the HTTP status, `code` the API's `errorCode`."""

    status = 500
    code = "internal_error"

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


class RemoteProtocolError(SfuError):
    """The other side broke a rule; `description` names the field or the rule."""

    status = 406
    code = "invalid_params"


class DecodingError(RemoteProtocolError):
    """The body is not JSON, or a field has the wrong type."""

    status = 400
    code = "decoding_error"


class InvalidParams(RemoteProtocolError):
    """Valid JSON with a wrong field, combination or count."""


class InvalidSessionDescription(RemoteProtocolError):
    """The SDP cannot be parsed, breaks a rule, or came at the wrong moment of offer and answer."""

    code = "invalid_session_description"


class Unauthorized(RemoteProtocolError):
    """Missing or wrong bearer for this app."""

    status = 401
    code = "unauthorized"


class AppNotFound(RemoteProtocolError):
    """No app of this id is configured."""

    status = 404
    code = "not_found"


class PayloadTooLarge(RemoteProtocolError):
    """The request body is above the configured limit."""

    status = 413
    code = "payload_too_large"


class SessionGone(SfuError):
    """The session expired, was closed, or never existed: make a new one."""

    status = 410
    code = "session_error"


class TransportNotReady(SfuError):
    """The operation needs a connected transport and waited for it in vain: finish the setup and retry."""

    status = 425
    code = "session_error"


class LimitExceeded(SfuError):
    """A rate or a table is at its limit; nothing was changed."""

    status = 429
    code = "too_many_requests"


class UsageError(SfuError):
    """Our own code called a core in a state that does not allow it."""


class TrackError(SfuError):
    """Concerns one item of a batch: reported inside a 200."""

    status = 200
    code = "track_error"


class TrackNotFound(TrackError):
    """No such track is published, or its publisher is gone."""

    code = "not_found_track_error"


class TrackEmpty(TrackError):
    """The track is known, but no media arrived in time."""

    code = "empty_track_error"


class TrackNotUpdatable(TrackError):
    """The track cannot be updated as asked."""

    code = "update_track_error"


class TrackAlreadyClosed(TrackError):
    """The mid is unknown on this session or closed already."""

    code = "close_track_error"
