"""`torpor load`: the short way to a load test, with servers started beside it, and a report.

Exit codes: 0 all runs count and the server held; 1 the server died or a run could not be made; 2 wrong usage; 3 a run
does not count (`loadtest.verdict`). Failures that users saw are in the report; alone they do not change the code.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from loadtest import machine, record, report, runs
from loadtest.peers import hosts
from loadtest.peers.debian import NotInstalled
from loadtest.peers.packages import PeerUnavailable
from loadtest.peers.process import StartFailed
from loadtest.peers.targets import NEEDS_HOSTS, TARGETS, Target, TargetError, target
from loadtest.profiles import PARAMETERS, Profile, ProfileError, describe, names_of, profile
from loadtest.verdict import EXIT_INVALID

PARTS: Final = ("rooms", "media", "turn")
EXIT_FAILED, EXIT_USAGE = 1, 2
FOLDER: Final = Path("load-reports")
_DEFAULTS: Final = {"rooms": "rooms", "media": "livestream", "turn": "relay"}


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.compare:
            return compare(options)
        if options.part is None:
            parser().error(f"name a part: {', '.join(PARTS)}; or --compare two records")
        return measure(options, arguments)
    except (ProfileError, TargetError, record.RecordError) as error:
        _say(f"torpor load: {error}")
        return EXIT_USAGE
    except (runs.RunFailed, StartFailed, PeerUnavailable, NotInstalled) as error:
        _say(f"torpor load: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _say("\ntorpor load: interrupted")
        return 130


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    profiles = "\n".join(f"  {part:6} {name:11} {describe(name)}" for part in PARTS for name in names_of(part))
    targets = "\n".join(f"  {part:6} {', '.join(TARGETS[part])}, or an address" for part in PARTS)
    top = argparse.ArgumentParser(
        prog="torpor load",
        description="Put a server under load, and report what it did.",
        epilog=f"profiles:\n{profiles}\n\ntargets:\n{targets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("part", nargs="?", choices=PARTS, help="what is loaded")
    top.add_argument("--profile", help="the load (below); default: " + ", ".join(_DEFAULTS.values()))
    top.add_argument(
        "--target", action="append", default=[], help="server to start here, or its address; several are compared"
    )
    top.add_argument(
        "--rounds", type=int, default=1, help="runs of each target, which take turns; medians are reported"
    )
    top.add_argument("--processes", type=int, default=1, help="Locust processes, each with an engine of its own")
    top.add_argument(
        "--server-core", default="0", help="pin started servers to this core and the load to the others; or: none"
    )
    top.add_argument("--out", type=Path, default=FOLDER, help=f"folder of reports (default: {FOLDER})")
    top.add_argument("--name", help="of the report, after date and commit (default: profile and targets)")
    top.add_argument("--compare", nargs="+", type=Path, metavar="RECORD", help="put records side by side in one report")
    for parameter in PARAMETERS.values():
        top.add_argument(parameter.flag, type=float, help=parameter.text)
    return top


def compare(options: argparse.Namespace) -> int:
    """Put records side by side."""
    made = [record.load(path) for path in options.compare]
    if len({one["profile"] for one in made}) > 1:
        raise record.RecordError("records of different profiles cannot be compared")
    if len({report.name_of(one) for one in made}) == 1 < len(made):
        stems = {path.stem for path in options.compare}
        for path, one in zip(options.compare, made, strict=True):
            one["target"] = {**one["target"], "name": path.stem if len(stems) == len(made) else str(path)}
    print(report.table(made))  # noqa: T201
    folder = options.out / f"{machine.today()}-{machine.commit().rstrip('+')}-{options.name or 'compare'}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(report.html(made), encoding="utf-8")
    print(f"\n{folder / 'report.html'}")  # noqa: T201
    return 0


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Make runs, print the table, write the report."""
    given = {name: getattr(options, name) for name in PARAMETERS}
    chosen = profile(options.profile or _DEFAULTS[options.part], given)
    if chosen.part != options.part:
        raise ProfileError(
            f"profile {chosen.name} is for {chosen.part}; {options.part} has {', '.join(names_of(options.part))}"
        )
    if options.rounds < 1 or options.processes < 1:
        raise ProfileError("--rounds and --processes are at least 1")
    names = options.target or ["torpor"]
    core, client_cores = _cores(options.server_core)
    on_hosts = bool(NEEDS_HOSTS & set(names))
    for name in names:  # before anything starts
        target(options.part, name, core=core, on_hosts=on_hosts)
    if on_hosts and not hosts.inside():
        return hosts.on_client_host("torpor", ["load", *arguments])
    command = shlex.join(["torpor", "load", *arguments])
    made = asyncio.run(_rounds(options, chosen, names, core, client_cores, on_hosts, command))
    return _finish(options, chosen, names, made)


async def _rounds(
    options: argparse.Namespace,
    chosen: Profile,
    names: Sequence[str],
    core: int | None,
    client_cores: str,
    on_hosts: bool,
    command: str,
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        order = [*names[turn % len(names) :], *names[: turn % len(names)]]
        for name in order:
            one: Target = target(options.part, name, core=core if "://" not in name else None, on_hosts=on_hosts)
            title = f"{chosen.name} {name}" + (f" {turn + 1}/{options.rounds}" if options.rounds > 1 else "")
            bar = runs.Bar(title, chosen)
            run = await runs.run(
                one,
                chosen,
                client_cores=client_cores if one.server is not None else "",
                processes=options.processes,
                command=command,
                progress=bar,
            )
            bar.end(run["target_died"] or ("done" if run["valid"] else "INVALID: " + "; ".join(run["invalid"])))
            made.append(run)
    return sorted(made, key=lambda run: names.index(run["target"]["name"]))


def _finish(options: argparse.Namespace, chosen: Profile, names: Sequence[str], made: Sequence[dict[str, Any]]) -> int:
    print(report.table(made))  # noqa: T201
    title = options.name or "-".join([chosen.name, *("remote" if "://" in name else name for name in names)])
    folder = options.out / f"{machine.today()}-{machine.commit().rstrip('+')}-{title}"
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for run in made:
        name = "remote" if "://" in run["target"]["name"] else run["target"]["name"]
        counts[name] = counts.get(name, 0) + 1
        path = folder / (f"{name}-{counts[name]}.json" if options.rounds > 1 else f"{name}.json")
        path.write_bytes(orjson.dumps(record.rounded(run)) + b"\n")
    (folder / "report.html").write_text(report.html(made), encoding="utf-8")
    for run in made:
        for failure in run["failures"]:
            what = f"{failure['times']} × {failure['type']} {failure['name']}: {failure['reason']}"
            _say(f"{run['target']['name']}: {what}")
    print(f"\n{folder / 'report.html'}")  # noqa: T201
    if any(run["target_died"] for run in made):
        return EXIT_FAILED
    return 0 if all(run["valid"] for run in made) else EXIT_INVALID


def _cores(server_core: str) -> tuple[int | None, str]:
    """The server's core, and the list of the others; nothing is pinned with `none` or on a single core."""
    available = sorted(os.sched_getaffinity(0))
    if server_core == "none" or len(available) == 1:
        return None, ""
    if not server_core.isdigit() or int(server_core) not in available:
        raise ProfileError(f"--server-core is one of {', '.join(map(str, available))}, or none")
    others = [core for core in available if core != int(server_core)]
    return int(server_core), ",".join(map(str, others))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
