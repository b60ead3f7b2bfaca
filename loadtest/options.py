"""Options that every locustfile with our users has: how servers are spoken to, and what is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser

_ID, _SECRET = (
    "0123456789abcdef0123456789abcdef",
    "development-secret-for-loopback-only-never-use-it-anywhere-else.",
)
DEVELOPMENT: Final = {"app_id": _ID, "app_secret": _SECRET, "turn_key_id": _ID, "turn_key_token": _SECRET}
"""What `torpor serve` takes without configuration, on loopback alone; used where nothing else is given."""


def add(parser: LocustArgumentParser) -> None:
    """Add them to Locust's parser; secrets come from the environment, as others can read a command line."""
    add: Any = parser.add_argument  # Locust's takes more than argparse's
    add("--dialect", choices=["text", "socket.io"], default="text", help="how rooms are spoken to")
    add("--room-path", default="/parties/main/{room}", help="path of a room, with {room} in it")
    add("--media-kind", choices=["torpor", "janus"], default="torpor", help="what serves media")
    add("--app-id", env_var="TORPOR_APP_ID", default=None, help="app of the sessions API")
    add("--app-secret", env_var="TORPOR_APP_SECRET", default=None, is_secret=True, help="its secret")
    add("--turn-key-id", env_var="TORPOR_TURN_KEY_ID", default=None, help="TURN key of the HTTP API")
    add("--turn-key-token", env_var="TORPOR_TURN_KEY_TOKEN", default=None, is_secret=True, help="its token")
    add("--turn-server", default=None, help="host:port of a TURN server without the HTTP API")
    add("--turn-username", default="", help="its user")
    add("--turn-password", env_var="LOADTEST_TURN_PASSWORD", default="", is_secret=True, help="and password")
    add("--server-pid", type=int, default=None, include_in_web_ui=False, help="server process on this machine to watch")
    add("--record", default=None, include_in_web_ui=False, help="write the run's record (JSON) to this file")
    add("--report", default=None, include_in_web_ui=False, help="write the run's report (HTML) to this file")
    add("--burn", type=float, default=0, include_in_web_ui=False, help="waste this share of each engine's core")


def complete(options: Any) -> None:
    """Fill in what was not given."""
    for name, value in DEVELOPMENT.items():
        setattr(options, name, getattr(options, name, None) or value)
