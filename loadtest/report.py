"""Reports: one self-contained HTML page of a run, or of several side by side; and the same as a table for a terminal.

Several runs of one target are rounds: their median is shown, with the range in which they lie.
"""

from __future__ import annotations

import html as markup
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest import svg
from loadtest.figures import Figures
from loadtest.histogram import Histogram
from loadtest.record import Number, Unit, generator_numbers, numbers, show

Run = Mapping[str, Any]
_STYLE = Path(__file__).with_name("report.css")

DISTRIBUTIONS = {
    "rooms.delivery": "Delivery delay",
    "rooms.echo": "Echo",
    "rooms.wake": "Wake-up and echo",
    "rooms.write": "Write and answer",
    "rooms.http": "HTTP request",
    "subscribe.video.delay": "Video, end to end",
    "subscribe.audio.delay": "Audio, end to end",
    "turn.round_trip": "Round trip through the relay",
}
RATES = (
    ("rooms.delivered", "deliveries"),
    ("subscribe.video.packets", "video packets"),
    ("subscribe.audio.packets", "audio packets"),
    ("turn.echoed", "echoes"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One number of several targets: for each the median and range of its rounds, or None."""

    title: str
    unit: Unit
    better: str
    cells: tuple[tuple[float, float, float] | None, ...]

    def text(self, index: int) -> str:
        """A cell as people read it: the median, and the range where rounds differ."""
        cell = self.cells[index]
        if cell is None:
            return "–"
        middle, least, most = cell
        shown = show(middle, self.unit)
        if least == most:
            return shown
        (low, _, low_unit), (high, _, high_unit) = (show(end, self.unit).partition(" ") for end in (least, most))
        same = low_unit == high_unit == shown.partition(" ")[2]
        return f"{shown} ({low} – {high})" if same else f"{shown} ({low} {low_unit} – {high} {high_unit})"

    @property
    def best(self) -> int | None:
        """Which target did best, where that can be said."""
        known = [(cell[0], index) for index, cell in enumerate(self.cells) if cell is not None]
        if not self.better or len(known) < 2 or len({value for value, _ in known}) == 1:
            return None
        return (min if self.better == "less" else max)(known)[1]


def name_of(run: Run) -> str:
    """The target of a run."""
    return str(run["target"].get("name") or run["target"].get("url") or "server")


def by_target(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by target, in order of appearance. Records of one target made at different commits are different targets."""
    commits = {
        name_of(run): {other["machine"]["commit"] for other in runs if name_of(other) == name_of(run)} for run in runs
    }
    groups: dict[str, list[Run]] = {}
    for run in runs:
        name = name_of(run)
        title = f"{name} {run['machine']['commit']}" if len(commits[name]) > 1 else name
        groups.setdefault(title, []).append(run)
    return groups


def rows(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    """All numbers that any target has, in the order in which they are first seen."""
    tables = [[{number.key: number for number in numbers(run)} for run in runs] for runs in groups.values()]
    known: dict[str, Number] = {}
    for rounds in tables:
        for table in rounds:
            for key, number in table.items():
                known.setdefault(key, number)
    return [
        Row(number.title, number.unit, number.better, tuple(_cell(rounds, key) for rounds in tables))
        for key, number in known.items()
    ]


def _cell(rounds: Sequence[Mapping[str, Number]], key: str) -> tuple[float, float, float] | None:
    values = [table[key].value for table in rounds if key in table]
    return (statistics.median(values), min(values), max(values)) if values else None


def table(runs: Sequence[Run]) -> str:
    """For a terminal: a line for each number, a column for each target."""
    groups = by_target(runs)
    lines = [["", *(f"{name}{_invalid(group)}" for name, group in groups.items())]]
    lines += [[row.title, *(row.text(index) for index in range(len(groups)))] for row in rows(groups)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _invalid(runs: Sequence[Run]) -> str:
    bad = sum(not run["valid"] for run in runs)
    return "" if not bad else " (INVALID)" if bad == len(runs) else f" ({bad} of {len(runs)} INVALID)"


def html(runs: Sequence[Run]) -> str:
    """The page. Rounds of a target are shown by their median; plots over time are those of its first round."""
    groups = by_target(runs)
    first = runs[0]
    title = f"{first['profile']}: {' and '.join(groups) if len(groups) < 3 else ', '.join(groups)}"
    body = [
        f"<header><h1>{_e(first['profile'])}</h1><p>{_e(first['text'])}</p>{_badges(groups)}</header>",
        _tiles(groups),
        f'<section class="plots">{"".join(_plots(groups))}</section>',
        _numbers_table(groups),
        _generator(groups),
        _locust(runs) if len(groups) == 1 else "",
        _failures(groups),
        _about(runs),
    ]
    return _PAGE.format(title=_e(title), style=_STYLE.read_text(encoding="utf-8"), body="".join(body))


def _badges(groups: Mapping[str, Sequence[Run]]) -> str:
    badges = []
    for name, runs in groups.items():
        version = runs[0]["target"].get("version", "")
        bad = [reason for run in runs for reason in run["invalid"]]
        died = [run["target_died"] for run in runs if run["target_died"]]
        state = "bad" if bad or died else "good"
        word = "server died" if died else "INVALID" if bad else "valid"
        badges.append(f'<li class="{state}"><b>{_e(name)}</b> {_e(version)} <em>{word}</em></li>')
    problems = "".join(
        f'<p class="problem"><b>{_e(name)}</b>: {_e(reason)}</p>'
        for name, runs in groups.items()
        for reason in dict.fromkeys(
            [*(r for run in runs for r in run["invalid"]), *(run["target_died"] for run in runs)]
        )
        if reason
    )
    return f'<ul class="badges">{"".join(badges)}</ul>{problems}'


_HEADLINES = (
    "connections",
    "delivered",
    "delivery_p50",
    "delivery_p99",
    "wake_p50",
    "echo_p99",
    "video_packets",
    "video_delay_p50",
    "video_delay_p99",
    "subscribe_join_p50",
    "audio_delay_p99",
    "relayed",
    "relay_round_trip_p99",
    "server_cpu",
    "server_resident",
    "bytes_per_connection",
)


def _tiles(groups: Mapping[str, Sequence[Run]]) -> str:
    if len(groups) != 1:
        return ""
    (runs,) = groups.values()
    known = {number.key: number for number in numbers(runs[0])}
    shown = {row.title: row for row in rows(groups)}
    tiles = []
    for number in [known[key] for key in _HEADLINES if key in known][:6]:
        cell = shown[number.title].cells[0]
        middle = cell[0] if cell is not None else math.nan
        tiles.append(f"<div><dt>{_e(number.title)}</dt><dd>{_e(show(middle, number.unit))}</dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _plots(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    plots = []
    for key, title in DISTRIBUTIONS.items():
        merged = [(name, _merged(runs, key)) for name, runs in groups.items()]
        plots.append(svg.distribution(f"{title}: share above", merged))
    single = len(groups) == 1
    firsts = {name: runs[0] for name, runs in groups.items()}
    shade = max((_measured_from(run) for run in firsts.values()), default=0.0)
    for key, title in RATES:
        lines = [
            svg.Line(title if single else name, [(s["at"], s["counters"].get(key, 0.0)) for s in run["samples"]])
            for name, run in firsts.items()
            if any(key in s["counters"] for s in run["samples"])
        ]
        plots.append(svg.over_time(f"{title.capitalize()} a second", lines, lambda v: f"{v:,.0f}", shade))
    if single:
        plots += _single_plots(next(iter(firsts.values())), shade)
    else:
        for key in ("cpu_per_delivery", "cpu_per_packet", "cpu_per_relayed", "server_cpu", "bytes_per_connection"):
            plots.append(_bars(groups, key))
    axes: tuple[tuple[str, str, Unit], ...] = (
        ("server_cpu", "Server CPU", "core"),
        ("server_resident", "Server memory", "bytes"),
    )
    for what, title, unit in axes:
        lines = [
            svg.Line(
                name, [(s["at"], s.get(what, math.nan) / (2**20 if unit == "bytes" else 1)) for s in run["samples"]]
            )
            for name, run in firsts.items()
        ]
        plots.append(svg.over_time(title, lines, partial(_on_axis, unit), shade))
    return plots


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _on_axis(unit: Unit, value: float) -> str:
    return f"{value:g} MiB" if unit == "bytes" else show(value, unit).replace(" of a core", "")


def _single_plots(run: Run, shade: float) -> list[str]:
    samples = run["samples"]
    plots = []
    for key, title in DISTRIBUTIONS.items():
        lines = [
            svg.Line(q, [(s["at"], _known(s["times"].get(key, {}).get(q))) for s in samples])
            for q in ("p50", "p95", "p99")
        ]
        if any(key in s["times"] for s in samples) and key != "rooms.wake":
            plots.append(svg.over_time(title, lines, lambda v: show(v, "ms"), shade))
    plots.append(
        svg.over_time(
            "Users", [svg.Line("users", [(s["at"], s["users"]) for s in samples])], lambda v: f"{v:,.0f}", shade
        )
    )
    names = (("locust_cpu", "Locust process"), ("engine_cpu", "engine loop"), ("plane_cpu", "media thread"))
    lines = [
        svg.Line(title, [(s["at"], s.get(key, 0.0)) for s in samples])
        for key, title in names
        if any(s.get(key) for s in samples)
    ]
    plots.append(svg.over_time("The generator's own CPU", lines, lambda v: f"{v * 100:.0f} %", shade))
    return plots


def _bars(groups: Mapping[str, Sequence[Run]], key: str) -> str:
    known = [number for runs in groups.values() for run in runs for number in numbers(run) if number.key == key]
    if not known:
        return ""
    values: list[tuple[str, float, float, float]] = []
    for name, runs in groups.items():
        found = [number.value for run in runs for number in numbers(run) if number.key == key] or [math.nan]
        values.append((name, statistics.median(found), min(found), max(found)))
    return svg.bars(known[0].title, values, lambda v: show(v, known[0].unit))


def _merged(runs: Sequence[Run], key: str) -> Histogram:
    merged = Histogram()
    for run in runs:
        if (histogram := Figures.from_json(run["figures"]).times.get(key)) is not None:
            merged.merge(histogram)
    return merged


def _measured_from(run: Run) -> float:
    first = next((sample["at"] for sample in run["samples"] if sample["measured"]), 0.0)
    return max(0.0, float(first) - 1.0) if first > 2 else 0.0


def _numbers_table(groups: Mapping[str, Sequence[Run]]) -> str:
    head = "".join(f"<th>{_e(name)}</th>" for name in groups)
    lines = []
    for row in rows(groups):
        best = row.best if len(groups) > 1 else None
        cells = "".join(
            f"<td{' class=best' if index == best else ''}>{_e(row.text(index))}</td>" for index in range(len(groups))
        )
        lines.append(f"<tr><th>{_e(row.title)}</th>{cells}</tr>")
    rounds = max(len(runs) for runs in groups.values())
    note = f"<p>Medians of {rounds} rounds, in which targets took turns; ranges in brackets.</p>" if rounds > 1 else ""
    return (
        f'<section><h2>Measured</h2>{note}<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _generator(groups: Mapping[str, Sequence[Run]]) -> str:
    tables = {name: [{n.key: n for n in generator_numbers(run)} for run in runs] for name, runs in groups.items()}
    known: dict[str, Number] = {}
    for rounds in tables.values():
        for one in rounds:
            for key, number in one.items():
                known.setdefault(key, number)
    head = "".join(f"<th>{_e(name)}</th>" for name in groups)
    lines = []
    for key, number in known.items():
        row = Row(number.title, number.unit, "", tuple(_cell(rounds, key) for rounds in tables.values()))
        cells = "".join(f"<td>{_e(row.text(index))}</td>" for index in range(len(groups)))
        lines.append(f"<tr><th>{_e(number.title)}</th>{cells}</tr>")
    return (
        "<section><h2>The load generator itself</h2><p>When it is short of CPU or late, the run says nothing about the "
        "server and is marked INVALID (<code>docs/loadtest.md</code>).</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _locust(runs: Sequence[Run]) -> str:
    columns = ("requests", "failures", "p50", "p95", "p99")
    head = "".join(f"<th>{column}</th>" for column in columns)
    lines = []
    for entry in runs[0]["entries"]:
        cells = [f"{entry['requests']:,}", f"{entry['failures']:,}"]
        cells += [_ms(entry[f"{quantile}_ms"]) for quantile in columns[2:]]
        name = _e(f"{entry['type']} {entry['name']}")
        lines.append(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        "<section><h2>Locust's statistics</h2><p>Of the whole run, the coming of users included.</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _ms(value: float | None) -> str:
    return "–" if not value else f"{value:,.0f} ms"


def _failures(groups: Mapping[str, Sequence[Run]]) -> str:
    lines = "".join(
        f"<tr><th>{_e(name)}</th><td>{_e(failure['type'])} {_e(failure['name'])}</td><td>{_e(failure['reason'])}</td>"
        f"<td>{failure['times']:,}</td></tr>"
        for name, runs in groups.items()
        for run in runs
        for failure in run["failures"]
    )
    if not lines:
        return ""
    return (
        '<section><h2>Failures</h2><div class="scroll"><table class="words">'
        "<thead><tr><th>target</th><th>what</th><th>why</th><th>times</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div></section>"
    )


def _about(runs: Sequence[Run]) -> str:
    first = runs[0]
    machine = first["machine"]
    facts = {
        "started": ", ".join(str(run["started_at"]) for run in runs),
        "measured": f"{first['measured_seconds']:.0f} s each"
        if len(runs) > 1
        else f"{first['measured_seconds']:.0f} s",
        "parameters": ", ".join(f"{key} {value:g}" for key, value in first["parameters"].items()),
        "users": ", ".join(f"{count:,} {name}" for name, count in first["users"].items()),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 1024**3:.0f} GiB",
        "kernel": f"{machine['kernel']}, UDP GSO {'on' if machine['gso'] else 'OFF'}",
        "commit": ", ".join(dict.fromkeys(str(run["machine"]["commit"]) for run in runs)),
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "command": " | ".join(dict.fromkeys(str(run["command"]) for run in runs)),
    }
    lines = "".join(f"<dt>{_e(key)}</dt><dd>{_e(value)}</dd>" for key, value in facts.items() if value)
    return f'<section><h2>How</h2><dl class="facts">{lines}</dl></section>'


def _e(text: object) -> str:
    return markup.escape(str(text))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""
