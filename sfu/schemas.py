"""The JSON shapes of the HTTPS API: what a body may hold, what an answer holds, and the OpenAPI text of both.

Requests are checked strictly (no `"1"` for a number) and generously where clients differ: unknown keys are ignored,
`null` counts as absent. Answers omit what is absent. `messages` has the same values in the words of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sfu import messages
from sfu.errors import DecodingError, InvalidParams, RemoteProtocolError

if TYPE_CHECKING:
    from sfu.service import SessionStats

TRACKS_MAX = 64
NAME_MAX = 1024

Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX)]
Mid = Annotated[str, Field(min_length=1, max_length=NAME_MAX + 1, description="A string, echoed as it came")]
Sdp = Annotated[str, Field(min_length=1, description="RFC 8866, verbatim")]


def example(*examples: dict[str, Any]) -> ConfigDict:
    """What the OpenAPI document shows of a shape."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


OFFER = {"type": "offer", "sdp": "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\n…"}
ANSWER = {"type": "answer", "sdp": "v=0\r\no=- 8116452037118735220 1 IN IP4 203.0.113.7\r\n…"}
SESSION_ID = "5f0c0e7ad9b64b1b8f2d3f4c5a6b7c8d"
PUBLISHER_ID = "c1a9e2b44d3f4e0a9b8c7d6e5f4a3b2c"


class Schema(BaseModel):
    """Base of all shapes: camelCase on the wire, strict types, unknown keys ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, strict=True, extra="ignore", frozen=True)


SchemaT = TypeVar("SchemaT", bound=Schema)


class SessionDescription(Schema):
    """An SDP offer or answer. Clients need not list candidates: the server learns them from connectivity checks."""

    type: Literal["offer", "answer"]
    sdp: Sdp

    def to_message(self) -> messages.SessionDescription:
        """The same as a value of the core."""
        return messages.SessionDescription(self.type, self.sdp)

    @classmethod
    def from_message(cls, description: messages.SessionDescription | None) -> SessionDescription | None:
        """The core's value as a shape."""
        return None if description is None else cls(type=description.type, sdp=description.sdp)


class Simulcast(Schema):
    """Which layer a subscriber wants. No object, or an empty `preferredRid`: the server chooses by bandwidth."""

    preferred_rid: Annotated[str, Field(max_length=255)] = ""
    priority_ordering: Literal["none", "asciibetical"] = Field(
        "none", description="On bandwidth shortage: keep the preferred layer, or step along a to z"
    )
    rid_not_available: Literal["none", "asciibetical"] = Field(
        "none", description="When the layer stops: send nothing else, or the next one a to z"
    )

    def to_message(self) -> messages.SimulcastPreference:
        """The same as a value of the core."""
        return messages.SimulcastPreference(
            self.preferred_rid,
            messages.Ordering(self.priority_ordering),
            messages.Ordering(self.rid_not_available),
        )


class Track(Schema):
    """One entry of `tracks/new`: publish (`local`) or pull (`remote`)."""

    location: Literal["local", "remote"]
    mid: Mid | None = None
    track_name: Name | None = None
    session_id: Name | None = Field(None, description="The publisher's session, for `remote`")
    kind: Literal["audio", "video"] | None = None
    bidirectional_media_stream: bool | None = None
    simulcast: Simulcast | None = None

    def to_message(self) -> messages.TrackRequest:
        """The same as a value of the core."""
        return messages.TrackRequest(
            location=messages.Location(self.location),
            mid=self.mid,
            track_name=self.track_name,
            session_id=None if self.session_id is None else messages.SessionId(self.session_id),
            kind=None if self.kind is None else messages.Kind(self.kind),
            bidirectional=bool(self.bidirectional_media_stream),
            simulcast=None if self.simulcast is None else self.simulcast.to_message(),
        )


class TrackUpdate(Track):
    """One entry of `tracks/update`: another layer, or another track for the receiving `mid`."""

    location: Literal["local", "remote"] = "remote"


class TrackClose(Schema):
    """One entry of `tracks/close`."""

    mid: Mid


class SessionsNewRequest(Schema):
    """Body of `sessions/new`; may be absent."""

    model_config = example({}, {"sessionDescription": OFFER})

    session_description: SessionDescription | None = None


class RenegotiateRequest(Schema):
    """Body of `renegotiate`: the answer to the server's outstanding offer, or an offer that asks for an answer."""

    model_config = example({"sessionDescription": ANSWER})

    session_description: SessionDescription


class TracksNewRequest(Schema):
    """Body of `tracks/new`."""

    model_config = example(
        {"sessionDescription": OFFER, "tracks": [{"location": "local", "mid": "0", "trackName": "camera"}]},
        {"tracks": [{"location": "remote", "sessionId": PUBLISHER_ID, "trackName": "camera"}]},
    )

    session_description: SessionDescription | None = Field(None, description="An offer")
    auto_discover: bool | None = Field(None, description="Publish every new sending section under a random name")
    tracks: Annotated[tuple[Track, ...], Field(min_length=1, max_length=TRACKS_MAX)] | None = None


class TracksUpdateRequest(Schema):
    """Body of `tracks/update`."""

    model_config = example(
        {
            "tracks": [
                {
                    "location": "remote",
                    "mid": "1",
                    "sessionId": PUBLISHER_ID,
                    "trackName": "camera",
                    "simulcast": {"preferredRid": "h"},
                }
            ]
        }
    )

    tracks: Annotated[tuple[TrackUpdate, ...], Field(min_length=1, max_length=TRACKS_MAX)]


class TracksCloseRequest(Schema):
    """Body of `tracks/close`: with `force` no SDP, else an offer."""

    model_config = example(
        {"tracks": [{"mid": "1"}], "force": True}, {"tracks": [{"mid": "1"}], "sessionDescription": OFFER}
    )

    tracks: Annotated[tuple[TrackClose, ...], Field(min_length=1, max_length=TRACKS_MAX)]
    force: bool | None = None
    session_description: SessionDescription | None = Field(None, description="An offer")


class ErrorResponse(Schema):
    """Every error, as the whole answer."""

    model_config = example({"errorCode": "session_error", "errorDescription": "no such session"})

    error_code: str
    error_description: str


class SessionsNewResponse(Schema):
    """Answer of `sessions/new`."""

    model_config = example({"sessionId": SESSION_ID})

    session_id: str
    session_description: SessionDescription | None = Field(None, description="Answers the offer, if one came")


class RenegotiateResponse(Schema):
    """Answer of `renegotiate`; holds an SDP answer only when an offer came."""

    model_config = example({})

    session_description: SessionDescription | None = None


class TrackResult(Schema):
    """One entry of an answer, in request order. A failed one has `errorCode` and `errorDescription`."""

    track_name: str | None = None
    mid: str | None = None
    session_id: str | None = None
    location: Literal["local", "remote"] | None = None
    kind: Literal["audio", "video"] | None = None
    error_code: str | None = None
    error_description: str | None = None

    @classmethod
    def from_message(cls, result: messages.TrackResult) -> TrackResult:
        """The core's value as a shape."""
        return cls(
            track_name=result.track_name,
            mid=result.mid,
            session_id=result.session_id,
            location=None if result.location is None else result.location.value,
            kind=None if result.kind is None else result.kind.value,
            error_code=result.error_code,
            error_description=result.error_description,
        )


class TracksResponse(Schema):
    """Answer of `tracks/new`, `tracks/update` and `tracks/close`."""

    model_config = example(
        {
            "requiresImmediateRenegotiation": False,
            "tracks": [{"trackName": "camera", "mid": "0"}],
            "sessionDescription": ANSWER,
        },
        {
            "requiresImmediateRenegotiation": False,
            "tracks": [
                {
                    "trackName": "camera",
                    "sessionId": PUBLISHER_ID,
                    "errorCode": "not_found_track_error",
                    "errorDescription": "no such track",
                }
            ],
        },
    )

    requires_immediate_renegotiation: bool
    tracks: tuple[TrackResult, ...]
    session_description: SessionDescription | None = None

    @classmethod
    def from_message(cls, result: messages.TracksResult) -> TracksResponse:
        """The core's value as a shape."""
        return cls(
            requires_immediate_renegotiation=result.requires_immediate_renegotiation,
            tracks=tuple(TrackResult.from_message(track) for track in result.tracks),
            session_description=SessionDescription.from_message(result.session_description),
        )


class TrackState(Schema):
    """One track of a session. `sessionId`, the publisher, only on `remote` ones."""

    location: Literal["local", "remote"]
    mid: str
    track_name: str
    session_id: str | None = None
    status: Literal["active", "inactive"] = Field(description="`active` does not promise packets")

    @classmethod
    def from_message(cls, state: messages.TrackState) -> TrackState:
        """The core's value as a shape."""
        return cls(
            location=state.location.value,
            mid=state.mid,
            track_name=state.track_name,
            session_id=state.session_id,
            status=state.status.value,
        )


class DataChannelState(Schema):
    """One data channel of a session."""

    location: Literal["local", "remote"]
    data_channel_name: str
    session_id: str | None = None
    id: int
    status: Literal["active", "inactive", "initializing"]


class SessionResponse(Schema):
    """Answer of `GET sessions/{sessionId}`."""

    model_config = example(
        {
            "tracks": [{"location": "local", "mid": "0", "trackName": "camera", "status": "active"}],
            "dataChannels": [],
        }
    )

    tracks: tuple[TrackState, ...]
    data_channels: Annotated[tuple[DataChannelState, ...], Field(description="Always empty: no data channels yet")] = ()


class TrackFigures(TrackState):
    """One track with its counters: a dictionary per simulcast layer when published, one when pulled."""

    kind: Literal["audio", "video"]
    layers: tuple[dict[str, int | float | str], ...]


class SessionStatsResponse(Schema):
    """Answer of `GET sessions/{sessionId}/stats`, an extension. Counters are listed in docs/operations.md."""

    model_config = example(
        {
            "transportState": "connected",
            "addressFamily": "ipv4",
            "transport": {"rtt": 0.012},
            "tracks": [
                {
                    "location": "local",
                    "mid": "0",
                    "trackName": "camera",
                    "status": "active",
                    "kind": "video",
                    "layers": [{"rid": "h", "packets": 8123}],
                }
            ],
        }
    )

    transport_state: Annotated[
        str, Field(description="`new`, `connecting`, `connected`, `disconnected`, `failed` or `closed`")
    ]
    address_family: str | None = Field(None, description="`ipv4` or `ipv6`, of the path in use")
    transport: dict[str, int | float]
    tracks: tuple[TrackFigures, ...]

    @classmethod
    def from_stats(cls, stats: SessionStats) -> SessionStatsResponse:
        """The service's figures as a shape."""
        return cls(
            transport_state=stats.transport_state,
            address_family=stats.address_family,
            transport=dict(stats.transport),
            tracks=tuple(
                TrackFigures(
                    **TrackState.from_message(track.state).model_dump(),
                    kind=track.kind.value,
                    layers=tuple(dict(layer) for layer in track.layers),
                )
                for track in stats.tracks
            ),
        )


REQUESTS: tuple[type[Schema], ...] = (
    SessionsNewRequest,
    RenegotiateRequest,
    TracksNewRequest,
    TracksUpdateRequest,
    TracksCloseRequest,
)

# What pydantic calls a wrong value as opposed to a wrong type: 406 and not 400.
_WRONG_VALUE = {"missing", "literal_error", "too_long", "too_short", "string_too_long", "string_too_short"}


def parse(shape: type[SchemaT], body: bytes) -> SchemaT:
    """The JSON `body` as `shape`.

    Raises:
        DecodingError: not JSON, or a field of the wrong type; the text names the field.
        InvalidParams: a field is missing, or its value is none of those allowed.
    """
    try:
        return shape.model_validate_json(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _first_problem(error) from None


def serialize(answer: Schema) -> bytes:
    """`answer` as JSON, absent keys left out."""
    return answer.model_dump_json(by_alias=True, exclude_none=True).encode()


def _first_problem(error: ValidationError) -> RemoteProtocolError:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"]).lstrip(".")
    text = f"{where or 'body'}: {problem['msg']}"
    return InvalidParams(text) if problem["type"] in _WRONG_VALUE else DecodingError(text)
