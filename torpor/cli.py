"""The `torpor` command: `serve`, `dev`, `check`, `rooms`, `load`, `openapi`.

Exit codes: 0 done or stopped by a signal, 1 failed, 2 wrong settings or usage, 128 + n killed by a second signal n.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

import torpor
from sfu.service import Sfu, SfuSettings
from torpor import logs, sources
from torpor.app import openapi_document
from torpor.config import DEVELOPMENT_APP_ID, DEVELOPMENT_APP_SECRET, Settings
from torpor.dev import develop
from torpor.errors import StartRefused, TorporError
from torpor.lifespan import Ports, serve
from torpor.load import load
from torpor.parties import load_parties, name_parties
from torpor.room_list import ask, table
from turn.service import TurnService, TurnSettings

logger = logging.getLogger("torpor")

EXIT_USAGE = 2
SHORT_FLAGS = {"http.host": "--host", "http.port": "--port"}


def main() -> None:
    """Run the command line and exit."""
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if arguments[:1] == ["load"]:
        return run_load(arguments[1:])
    options = vars(parser().parse_args(arguments))
    command, file = options.pop("command"), options.pop("config", None)
    try:
        if command == "openapi":
            print(json.dumps(openapi_document(Settings(), Sfu(SfuSettings()), TurnService(TurnSettings())), indent=2))
            return 0
        if command == "dev":
            return develop(arguments[1:], Path.cwd())
        if command == "rooms":
            settings = sources.load(file=file, environment=os.environ, flags={})
            print(table(ask(settings, options["url"])))
            return 0
        parties = name_parties(options.pop("classes"))
        flags = {key: text for key, text in options.items() if text is not None}
        # The same file when it is read again: that it is gone is no wish for defaults.
        file = sources.chosen_file(file, os.environ)
        read = partial(sources.load, file=file, environment=os.environ, flags=flags, parties=parties)
        settings = read()
        if command == "check":
            return check(settings)
        logs.configure(settings.log, audit=settings.turn.audit_log)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, lambda ports: announce(settings, ports), read))
    except TorporError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def run_load(arguments: Sequence[str]) -> int:
    """`torpor load`, which has a grammar of its own."""
    try:
        return load(arguments)
    except TorporError as error:
        print(f"torpor: {error}", file=sys.stderr)
        return EXIT_USAGE


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line; a flag per setting."""
    top = argparse.ArgumentParser(prog="torpor", description="Self-hosted realtime server.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"torpor {torpor.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("openapi", help="print the OpenAPI document", allow_abbrev=False)
    commands.add_parser("load", help="put a server under load: see torpor load --help", add_help=False)
    rooms = commands.add_parser("rooms", help="list the rooms of a running server", allow_abbrev=False)
    rooms.add_argument("--url", help="where it is (default: where the settings say)")
    rooms.add_argument("--config", type=Path, metavar="FILE", help="its TOML file (default: torpor.toml, if there)")
    for name, text in (
        ("serve", "serve until stopped"),
        ("dev", "serve, and again whenever a Python file below this folder is saved"),
        ("check", "check the settings and print those in force"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            allow_abbrev=False,
            epilog="Secrets have no flag, since others can read a command line: use TORPOR_APP_SECRET and the like, "
            "or the file.",
        )
        command.add_argument(
            "classes",
            nargs="*",
            metavar="[NAME=]MODULE[:CLASS]",
            help="rooms: classes of a module or .py file, in place of [parties]; the first without a name is main",
        )
        command.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: torpor.toml, if there)")
        for setting in sources.all_settings():
            if setting.is_secret:
                continue
            names = [SHORT_FLAGS[setting.key]] if setting.key in SHORT_FLAGS else []
            help_text = setting.text.replace("%", "%%").replace("`", "")
            command.add_argument(*names, setting.flag, dest=setting.key, metavar=setting.name.upper(), help=help_text)
    return top


def check(settings: Settings) -> int:
    """Print the settings in force, load the classes of rooms; 2 when serving with them would be refused."""
    print(sources.describe(settings, apps=list(settings.apps)))
    load_parties(settings.parties)
    if reason := settings.refusal():
        raise StartRefused(reason)
    return 0


def announce(settings: Settings, ports: Ports) -> None:
    """Tell the operator where the server is, and in development how to use it."""
    # What the start has made stays to the end: without this, full collections walk over it, some ms each.
    gc.collect()
    gc.freeze()
    scheme = "https" if settings.http.tls_certificate else "http"
    host = f"[{settings.http.host}]" if ":" in settings.http.host else settings.http.host
    url = f"{scheme}://{host}:{ports.http}"
    served = {"url": url, "udp_port": ports.media, "turn_port": ports.turn, "version": torpor.__version__}
    logger.info("serving", extra=served)
    if settings.development:
        print(
            f"Torpor {torpor.__version__} for development, on this machine only\n"
            f"  page        {url}/\n"
            f"  API         {url}/v1/apps/{DEVELOPMENT_APP_ID}\n"
            f"  app id      TORPOR_APP_ID={DEVELOPMENT_APP_ID}\n"
            f"  app secret  TORPOR_APP_SECRET={DEVELOPMENT_APP_SECRET}"
            + "".join(f"\n  room        {url}/parties/{party}/<room>" for party in settings.parties)
            + ("" if ports.turn is None else f"\n  TURN        port {ports.turn}, credentials with app id and secret"),
            flush=True,
        )
