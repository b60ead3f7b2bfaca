"""What runs beside the users in every Locust process: the engine, the figures, a sample a second, the verdict.

A worker sends its figures to the master with Locust's own reports; there, or in the only process, they are added up,
so quantiles are those of all processes together. Figures count from the moment all users of a profile are there (or
from the start, where a profile is about how they come) until the test is told to stop; the engines then first settle,
so that what was sent has arrived before anything is cut off.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.lock import RLock
from locust.env import Environment
from locust.runners import STATE_INIT, MasterRunner, WorkerRunner
from locust.stats import StatsEntry

from loadtest import report
from loadtest.engine.remote import CallFailed, EngineGone, RemoteEngine
from loadtest.figures import Figures
from loadtest.histogram import Histogram
from loadtest.peers.process import process_cpu_ns, process_tree, resident_bytes
from loadtest.profiles import NAMES, Profile, profile
from loadtest.record import PROGRESS_VARIABLE, describe_run, rounded
from loadtest.verdict import EXIT_INVALID, Verdict, judge

logger = logging.getLogger("loadtest")

SETTLE: Final = 0.5
"""Seconds between the last message and the end of counting."""
EXIT_TARGET_DIED: Final = 1
SHOWN: Final[Mapping[str, tuple[str, str]]] = {
    "rooms.delivery": ("WS", "deliver"),
    "subscribe.video.delay": ("MEDIA", "frame delay"),
    "subscribe.audio.delay": ("MEDIA", "frame delay (audio)"),
    "turn.round_trip": ("TURN", "round trip"),
}
"""Histograms that are entries of Locust's statistics too."""


TOLD: Final = "loadtest"
"""Under this name workers are told, among the options of their master, what they cannot know."""
_BURN_SECONDS: Final = 24 * 3600.0
NOBODY_WITHIN: Final = 20.0
"""Seconds after which a run whose users only fail to join is not waited for any longer."""
JOINING: Final = frozenset(
    {
        "publish.join_seconds",
        "subscribe.join_seconds",
        "browser.join_seconds",
        "subscribe.video.first_frame",
        "subscribe.audio.first_frame",
        "turn.allocate_seconds",
        "rooms.connect",
    }
)
"""Times that are measured while users come, whenever that is."""


class Observer:
    """One per Locust process; `observer_of(environment)` finds it."""

    def __init__(self, environment: Environment, profile: Profile) -> None:
        self.environment = environment
        self.profile = profile
        self.figures = Figures()
        """Of the measured part."""
        self.samples: list[dict[str, Any]] = []
        self.verdict: Verdict | None = None
        self.target_died = ""
        self._engine: RemoteEngine | None = None
        self._engine_starting = RLock()
        self._engine_gone = ""
        self._pending = Figures()
        self._second = Figures()
        self._loads: dict[str, dict[str, Any]] = {}
        self._reported_at: dict[str, float] = {}
        self._numbers: dict[str, itertools.count[int]] = {}
        self._board: dict[str, dict[str, dict[str, Any]]] = {}
        self._posted = Event()
        self._workers = 1
        self._measuring = False
        self._stopping = False
        self._ready = 0
        self._started_at = 0.0
        self._unix_started = 0.0
        self._measured_seconds = 0.0
        self._measuring_since = 0.0
        self._sampler: gevent.Greenlet | None = None
        self._server_pid: int | None = getattr(environment.parsed_options, "server_pid", None)
        self._progress = os.environ.get(PROGRESS_VARIABLE)
        self._listen()

    # The process's part in the test.

    @property
    def is_worker(self) -> bool:
        """Whether another process adds up."""
        return isinstance(self.environment.runner, WorkerRunner)

    @property
    def is_master(self) -> bool:
        """Whether other processes have the users."""
        return isinstance(self.environment.runner, MasterRunner)

    def _listen(self) -> None:
        events, runner = self.environment.events, self.environment.runner
        assert runner is not None
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)
        events.quitting.add_listener(self._on_quitting)
        if self.is_worker:
            events.report_to_master.add_listener(self._on_report_to_master)
            runner.register_message("loadtest.board", self._on_board)
        elif self.is_master:
            events.worker_report.add_listener(self._on_worker_report)
            runner.register_message("loadtest.announce", self._on_announce)

    # What users ask for.

    @property
    def stopping(self) -> bool:
        """Whether the whole test ends: then the engine leaves everything at once, and users need not."""
        return self._stopping

    @property
    def engine(self) -> RemoteEngine:
        """The engine of this process; started when it is first needed."""
        with self._engine_starting:  # starting lets other greenlets run
            if self._engine is None:
                if self._engine_gone:
                    raise EngineGone(self._engine_gone)
                self._engine = RemoteEngine(self._on_engine_report, self._on_engine_gone)
            return self._engine

    def next_user(self, kind: str) -> int:
        """Number of a new user of a class: 0, 1, 2... over all workers, as Locust deals users out in turn."""
        local = next(self._numbers.setdefault(kind, itertools.count()))
        index = getattr(self.environment.runner, "worker_index", 0) if self.is_worker else 0
        return local * self._workers + max(0, int(index))

    def parameter(self, name: str) -> Any:
        """A parameter of the profile."""
        return self.profile.parameters[name]

    def record(self, name: str, seconds: float) -> None:
        """Count a time that a user got from the engine."""
        figures = Figures()
        figures.record(name, seconds)
        self._on_engine_report(figures, {})

    def media_target(self, address: str) -> dict[str, str]:
        """The server for media, as the engine needs it."""
        options = self.environment.parsed_options
        return {
            "kind": str(getattr(options, "media_kind", None) or "torpor"),
            "url": address,
            "app_id": str(getattr(options, "app_id", "") or ""),
            "app_secret": str(getattr(options, "app_secret", "") or ""),
        }

    def turn_server(self, address: str) -> dict[str, Any]:
        """The TURN server, as the engine needs it: by a key of the HTTP API, or itself with a fixed user."""
        options: Any = self.environment.parsed_options
        if getattr(options, "turn_server", None):
            host, _, port = str(options.turn_server).rpartition(":")
            return {
                "host": host,
                "port": int(port),
                "username": str(options.turn_username),
                "password": str(options.turn_password),
            }
        return {
            "url": address,
            "key_id": str(getattr(options, "turn_key_id", "") or ""),
            "key_token": str(getattr(options, "turn_key_token", "") or ""),
        }

    def announce(self, stage: str, name: str, ref: dict[str, Any]) -> None:
        """Tell subscribers in all processes of a publication."""
        data = {"stage": stage, "name": name, "ref": ref}
        if self.is_worker:
            assert self.environment.runner is not None
            self.environment.runner.send_message("loadtest.announce", data)
        self._post(data)

    def publications(self, stage: str, wanted: int, besides: str, within: float) -> list[dict[str, Any]]:
        """References of what is published under `stage`, but for `besides`; waits for `wanted`, at most so long."""
        end = time.monotonic() + within
        while len(self._board.get(stage, {})) < wanted and (left := end - time.monotonic()) > 0:
            self._posted.wait(min(left, 1.0))
        board = self._board.get(stage, {})
        return [ref for name, ref in sorted(board.items()) if name != besides]

    def _post(self, data: Mapping[str, Any]) -> None:
        self._board.setdefault(data["stage"], {})[data["name"]] = data["ref"]
        self._posted.set()
        self._posted.clear()

    def _on_announce(self, environment: Environment, msg: Any, **_: Any) -> None:
        assert environment.runner is not None
        environment.runner.send_message("loadtest.board", msg.data)

    def _on_board(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._post(msg.data)

    # Figures on their way.

    def _on_engine_report(self, figures: Figures, load: dict[str, Any]) -> None:
        for name, (method, title) in SHOWN.items():
            if (histogram := figures.times.get(name)) is not None:
                extend_entry(self.environment.stats.get(title, method), histogram)
        if self.is_worker:
            self._pending.merge(figures)
            self._loads["engine"] = load or self._loads.get("engine", {})
        else:
            self._add("local", figures, load)

    def _on_report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        data["loadtest"] = {
            "figures": self._pending.take().to_json(),
            "load": {**self._loads.get("engine", {}), "ready": self._ready},
            "gone": self._engine_gone,
        }

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        report = data.get("loadtest")
        if report is not None:
            self._engine_gone = self._engine_gone or report["gone"]
            self._add(client_id, Figures.from_json(report["figures"]), report["load"])

    def _add(self, source: str, figures: Figures, load: dict[str, Any]) -> None:
        self._second.merge(figures)
        if load:
            self._loads[source] = load
            self._reported_at[source] = time.monotonic()
        if self._measuring:
            self.figures.merge(figures)
        else:
            for name in JOINING & figures.times.keys():
                self.figures.time(name).merge(figures.times[name])

    def _on_engine_gone(self) -> None:
        self._engine = None
        self._engine_gone = "an engine ended in the middle of the run"
        logger.error("%s", self._engine_gone)
        if not self.is_worker:
            gevent.spawn(self._give_up)

    def _give_up(self) -> None:
        runner = self.environment.runner
        assert runner is not None
        if self.environment.web_ui is None:
            runner.quit()
        else:
            runner.stop()

    # The course of a test.

    def _on_start(self, **_: Any) -> None:
        self.figures, self._second, self.samples, self.verdict = Figures(), Figures(), [], None
        self._board.clear()
        self._numbers.clear()
        self.target_died = ""
        self._stopping, self._ready = False, 0
        self._loads.clear()
        self._reported_at.clear()
        self._measured_seconds = 0.0
        self._started_at, self._unix_started = time.monotonic(), time.time()
        self._tell_workers()
        self._measuring = self.profile.measured_from_start
        self._measuring_since = time.monotonic()
        if not self.is_master:
            try:
                self.engine.call("resume")
            except (EngineGone, CallFailed) as error:
                logger.error("%s", error)
        if self._sampler is None:
            self._sampler = gevent.spawn(self._sample_every_second)
        share = float(getattr(self.environment.parsed_options, "burn", 0) or 0)
        if share and not self.is_master:
            gevent.spawn(self.engine.call, "burn", share, _BURN_SECONDS, within=_BURN_SECONDS)

    def ready(self, users: int = 1) -> None:
        """That many users of this process more have joined (or fewer, when negative)."""
        self._ready += users

    @property
    def joined(self) -> int:
        """Users of the profile that have joined, in all processes."""
        return self._ready + sum(int(load.get("ready", 0)) for load in self._loads.values())

    def all_ready(self) -> bool:
        """Whether all users of the profile have joined."""
        return self.joined >= self.profile.total

    def nobody_joins(self, seconds: float) -> bool:
        """Whether waiting is of no use: after `seconds` there are failures, and not one user has joined."""
        runner = self.environment.runner
        return seconds > NOBODY_WITHIN and not self.joined and runner is not None and bool(runner.errors)

    def catch_up(self) -> None:
        """Start if the test has: a master may be quicker than its worker's locustfile."""
        runner = self.environment.runner
        if isinstance(runner, WorkerRunner) and runner.worker_state != STATE_INIT:
            with self._engine_starting:  # users may be there already, and have to wait for the engine's start
                self._on_start()

    def _tell_workers(self) -> None:
        # Beside the options, which come with the order to spawn: a message would have to wait for its reader.
        options, runner = self.environment.parsed_options, self.environment.runner
        if isinstance(runner, MasterRunner):
            self._workers = max(1, runner.worker_count)
            parameters = dict(self.profile.parameters)
            vars(options)[TOLD] = {"workers": self._workers, "profile": self.profile.name, "parameters": parameters}
        elif self.is_worker and (told := vars(options).get(TOLD)):
            self._workers = told["workers"]
            if told["profile"] in NAMES:  # not an author's locustfile, which the worker has as well
                self.profile = profile(told["profile"], told["parameters"])

    def full(self) -> None:
        """All users are there: what counts begins now. If not one could join, nothing does."""
        if not self._measuring and self.joined:
            self._measuring = True
            # The next reports bring what was counted since the last ones, which came a little before now.
            reported = self._reported_at.values()
            self._measuring_since = sum(reported) / len(reported) if reported else time.monotonic()
            if missing := self.profile.total - self.joined:
                logger.error("%d of %d users could not join", missing, self.profile.total)
                self.figures.add("users.missing", missing)

    def _on_stopping(self, **_: Any) -> None:
        """What was sent arrives; then counting ends, before the first user is stopped."""
        self._stopping = True
        if self._measuring:
            self._measured_seconds = time.monotonic() - self._measuring_since
        if not self.is_master and self._engine is not None:
            try:
                self._engine.call("settle", SETTLE)
            except (EngineGone, CallFailed) as error:
                logger.error("%s", error)
        if not self.is_master:
            self._measuring = False

    def _on_stop(self, **_: Any) -> None:
        self._measuring = False
        if self._sampler is not None:
            self._sampler.kill()
            self._sampler = None
        if self._engine is not None:
            with contextlib.suppress(EngineGone, CallFailed):
                self._engine.call("leave")
        if self.is_worker:
            return
        gone = self._engine_gone
        self.verdict = judge([s for s in self.samples if s["measured"]], self.figures, gone)
        runner = self.environment.runner
        if self.target_died:
            logger.error("%s", self.target_died)
            self.environment.process_exit_code = EXIT_TARGET_DIED
        elif not self.verdict.valid:
            logger.error("this run does not count. %s", self.verdict)
            self.environment.process_exit_code = EXIT_INVALID
        elif runner is not None and not runner.errors:
            logger.info("the generator had room: this run counts")
        self._write_record()

    def _on_quitting(self, **_: Any) -> None:
        if self._sampler is not None:
            self._sampler.kill()
        if self._engine is not None:
            self._engine.close()

    # Samples.

    def _sample_every_second(self) -> None:
        cpu, server_cpu, wall = time.process_time(), self._server_cpu(), time.monotonic()
        while True:
            gevent.sleep(1.0)
            now = time.monotonic()
            own, server = time.process_time(), self._server_cpu()
            seconds = now - wall
            if self.is_worker:
                self._loads["engine"] = {**self._loads.get("engine", {}), "locust_cpu": (own - cpu) / seconds}
            else:
                self._take_sample(now, (own - cpu) / seconds, (server - server_cpu) / 1e9 / seconds)
            cpu, server_cpu, wall = own, server, now

    def _take_sample(self, now: float, own_cpu: float, server_cpu: float) -> None:
        runner = self.environment.runner
        assert runner is not None
        second = self._second.take()
        loads = list(self._loads.values())
        plane = second.count("plane.cpu_seconds") / max(1e-9, second.count("plane.seconds") or 1.0)
        sample: dict[str, Any] = {
            "at": now - self._started_at,
            "measured": self._measuring and not self._stopping,
            "users": runner.user_count,
            "connections": sum(int(load.get("connections", 0)) for load in loads),
            "locust_cpu": max([own_cpu, *(float(load.get("locust_cpu", 0.0)) for load in loads)]),
            "engine_cpu": max((float(load.get("cpu", 0.0)) for load in loads), default=0.0),
            "plane_cpu": plane,
            "engine_resident": sum(int(load.get("resident", 0)) for load in loads),
            "failures": runner.stats.total.num_failures,
            "counters": {name: amount for name, amount in second.counters.items() if not name.startswith("plane.")},
            "times": {
                name: {q: histogram.quantile(share) for q, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
                for name, histogram in second.times.items()
            },
        }
        if self._server_pid is not None:
            sample["server_cpu"] = server_cpu
            sample["server_resident"] = sum(resident_bytes(pid) for pid in process_tree(self._server_pid))
            if not os.path.exists(f"/proc/{self._server_pid}") or _is_zombie(self._server_pid):
                self._on_target_died()
        self.samples.append(sample)
        self._show_progress(sample)

    def _server_cpu(self) -> int:
        if self._server_pid is None:
            return 0
        return sum(process_cpu_ns(pid) for pid in process_tree(self._server_pid))

    def _on_target_died(self) -> None:
        if not self.target_died:
            self.target_died = f"the server under test ended {time.monotonic() - self._started_at:.0f} s into the run"
            gevent.spawn(self._give_up)

    def _show_progress(self, sample: Mapping[str, Any]) -> None:
        if self._progress is not None:
            line = json.dumps({"state": getattr(self.environment.runner, "state", ""), **sample}, default=str)
            try:
                os.write(int(self._progress), line.encode() + b"\n")
            except OSError:
                self._progress = None

    def _write_record(self) -> None:
        options = self.environment.parsed_options
        if path := getattr(options, "record", None):
            Path(path).write_text(json.dumps(rounded(self.to_json())), encoding="utf-8")
        if path := getattr(options, "report", None):
            Path(path).write_text(report.html([rounded(self.to_json())]), encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """The run so far as a record (`loadtest.record`)."""
        assert self.environment.runner is not None
        stats = self.environment.runner.stats
        entries = [
            {
                "type": entry.method,
                "name": entry.name,
                "requests": entry.num_requests,
                "failures": entry.num_failures,
                "p50_ms": entry.get_response_time_percentile(0.5),
                "p95_ms": entry.get_response_time_percentile(0.95),
                "p99_ms": entry.get_response_time_percentile(0.99),
            }
            for entry in sorted(stats.entries.values(), key=lambda entry: (entry.method, entry.name))
        ]
        failures = [
            {"type": error.method, "name": error.name, "reason": str(error.error), "times": error.occurrences}
            for error in stats.errors.values()
        ]
        verdict = self.verdict or judge([s for s in self.samples if s["measured"]], self.figures, self._engine_gone)
        return describe_run(
            profile=self.profile,
            started_at=self._unix_started,
            measured_seconds=self._measured_seconds or time.monotonic() - self._measuring_since,
            figures=self.figures,
            samples=self.samples,
            entries=entries,
            failures=failures,
            invalid=list(verdict.reasons),
            target_died=self.target_died,
            workers=self._workers if self.is_master else 0,
        )


_observers: dict[int, Observer] = {}


def observer_of(environment: Environment) -> Observer:
    """The observer of an environment; made when it is first asked for, at the latest when Locust is ready."""
    if id(environment) not in _observers:
        observer = _observers[id(environment)] = Observer(
            environment, Profile.of_locustfile(environment.parsed_options)
        )
        observer.catch_up()
    return _observers[id(environment)]


def extend_entry(entry: StatsEntry, histogram: Histogram) -> None:
    """Add a histogram to an entry of Locust's statistics, as if each time had been logged."""
    now = time.time()
    if entry.use_response_times_cache and entry.last_request_timestamp and int(now) > int(entry.last_request_timestamp):
        entry._cache_response_times(int(now) - 1)
    for low, high, count in histogram.items():
        milliseconds = (low + high) / 2 * 1000
        rounded = round(milliseconds) if milliseconds < 100 else int(float(f"{milliseconds:.2g}"))
        entry.response_times[rounded] += count
        smallest = entry.min_response_time
        entry.min_response_time = milliseconds if smallest is None else min(smallest, milliseconds)  # type: ignore[assignment]  # Locust keeps floats here too
    entry.num_requests += histogram.count
    entry.total_response_time += histogram.sum * 1000  # type: ignore[assignment]  # as above
    entry.max_response_time = max(entry.max_response_time, histogram.max * 1000)  # type: ignore[assignment]  # as above
    entry.num_reqs_per_sec[int(now)] += histogram.count
    entry.last_request_timestamp = now


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
