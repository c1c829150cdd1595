"""Runs one storm: sites on hosts of their own, faults by schedule, and a site that ends is started again."""

from __future__ import annotations

import heapq
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.files import write_whole
from benchmarks.harness.results import without_places
from benchmarks.harness.workers import RunFailedError
from benchmarks.hosts import HostCluster, address
from benchmarks.storm.raw import Raw, read_traces
from benchmarks.storm.schedule import Fault
from benchmarks.storm.task import Job

System = Literal["parablock", "torchft"]
PORT = 29510
POLL_S = 0.05
LOOK_S = 0.5
AGAIN_S = 1.0
"""After this time a process that has ended by itself is started again."""
SETTLE_S = 90.0
"""How long to wait, after the last fault, until all sites are members, and then until all have ended."""
START_S = 120.0
ROUNDS_LEFT = 4
LAST_WORDS = 300
NO_LAUNCHER = [word for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK") for word in ("-u", name)]


@dataclass(frozen=True)
class Weather:
    """What happens to a run.

    Attributes:
        minutes: How long it lasts, from the first commit to the naming of the last round.
        faults: What happens in it; ``at_s`` counts from the first commit.
        rate_mbit: Rate of every site's link in both directions.
    """

    minutes: float
    faults: Sequence[Fault]
    rate_mbit: float


def storm(system: System, job: Job, weather: Weather, logs: Path | None = None) -> Raw:
    """Run it and return what was recorded.

    Args:
        system: Whose program the sites run.
        job: What they are given; site, folder and lighthouse are filled in.
        weather: Length, faults and links.
        logs: Folder in which the logs are kept; None to keep none.

    Raises:
        RunFailedError: the sites have not begun, or not ended; the message has the last lines of the logs.
    """
    rates = [f"{round(1000 * weather.rate_mbit)}kbit"] * job.sites + [None]
    with (
        tempfile.TemporaryDirectory() as folder,
        HostCluster(job.sites + 1, rate=rates, log_dir=logs) as cluster,
    ):
        job = replace(job, folder=folder, lighthouse=f"{address(job.sites)}:{PORT}")
        return _Storm(system, job, weather, cluster).run()


class _Storm:
    def __init__(self, system: System, job: Job, weather: Weather, cluster: HostCluster) -> None:
        self._system, self._job, self._weather, self._cluster = system, job, weather, cluster
        self._folder = Path(job.folder)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._starts: list[list[float]] = [[] for _ in range(job.sites)]
        self._exits: list[dict[str, Any]] = []
        self._faults: list[dict[str, Any]] = []
        self._is_up = [False] * job.sites

    def run(self) -> Raw:
        """Begin, let the faults happen, end."""
        job = self._job
        self._cluster.start(job.sites, ["env", *NO_LAUNCHER, *self._lighthouse()])
        time.sleep(1.0)
        for site in range(job.sites):
            self._start(site)
        self._until(lambda: all(self._committed(site) for site in range(job.sites)), START_S, "first commits")
        began_s, load_before = time.time(), os.getloadavg()[0]
        for number, fault in enumerate(self._weather.faults):
            self._at(began_s + fault.at_s, lambda number=number, fault=fault: self._begin(number, fault))
        ends_s = began_s + 60 * self._weather.minutes
        self._until(lambda: time.time() >= ends_s and not self._due, 60 * self._weather.minutes + START_S, "the end")
        self._until(self._all_are_back, SETTLE_S, "all sites to be members", is_needed=False)
        ended_s, load = time.time(), os.getloadavg()[0]
        lines = [line for lines in read_traces(self._folder).values() for line in lines]
        newest = max(line["round"] for line in lines if line["what"] == "commit")
        write_whole(self._folder / "last", str(newest + ROUNDS_LEFT))
        finished = self._until(self._is_over, SETTLE_S, "all sites to end", is_needed=False)
        return {
            "system": self._system,
            "began_s": began_s,
            "ended_s": ended_s,
            "finished": finished,
            "load": [load_before, load],
            "starts_s": self._starts,
            "exits": self._exits,
            "faults": self._faults,
            "traces": read_traces(self._folder),
            "last_words": [] if finished else [self._words(site) for site in range(job.sites)],
        }

    # --- processes ----------------------------------------------------------------------------------------------------

    def _lighthouse(self) -> list[str]:
        job, python = self._job, sys.executable
        if self._system == "parablock":
            words = ["lightning_parablock", "lighthouse", "--port", str(PORT), "--silence_s", f"{job.silence_s:g}"]
        else:
            words = ["benchmarks.storm.lighthouse", str(PORT), str(job.min_sites), f"{job.silence_s:g}"]
        return [python, "-m", *words]

    def _start(self, site: int) -> None:
        job = replace(self._job, site=site, process=len(self._starts[site]))
        program = f"benchmarks.storm.by_{self._system}"
        self._starts[site].append(round(time.time(), 4))
        self._cluster.start(site, ["env", *NO_LAUNCHER, sys.executable, "-m", program, job.to_json()])
        self._is_up[site] = True

    def _look(self) -> None:
        """Start each site again that has ended before the end of the run."""
        for site in range(self._job.sites):
            status = self._cluster.hosts[site].poll() if self._is_up[site] else None
            if status is None:
                continue
            self._is_up[site] = False
            if not self._is_done(site):
                words = self._words(site)
                self._exits.append({"at_s": round(time.time(), 4), "site": site, "status": status, "words": words})
                self._at(time.time() + AGAIN_S, lambda site=site: self._start(site))

    def _words(self, site: int) -> str:
        return without_places(self._cluster.hosts[site].log_text())[-LAST_WORDS:]

    # --- faults -------------------------------------------------------------------------------------------------------

    def _begin(self, number: int, fault: Fault) -> None:
        site, cluster = fault.site, self._cluster
        told = {"number": number, "at_s": round(time.time(), 4), "kind": fault.kind, "site": site}
        told |= {"for_s": fault.for_s, "is_long": fault.is_long, "was_member": self._is_member(site)}
        self._faults.append(told)
        if fault.kind == "kill":
            cluster.kill(site)
            undo = (lambda: self._start(site)) if self._is_up[site] else (lambda: None)
            self._is_up[site] = False
        elif fault.kind == "stop":
            cluster.stop(site)
            undo = lambda: cluster.resume(site)  # noqa: E731
        else:
            cluster.cut_link(site)
            undo = lambda: cluster.restore_link(site)  # noqa: E731
        self._at(time.time() + fault.for_s, undo)

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_s, len(self._faults) + time.monotonic_ns(), action))

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _until(self, is_so: Callable[[], bool], limit_s: float, what: str, *, is_needed: bool = True) -> bool:
        deadline_s, look_s = time.time() + limit_s, 0.0
        while time.time() < deadline_s:
            while self._due and self._due[0][0] <= time.time():
                heapq.heappop(self._due)[2]()
            if time.time() >= look_s:
                look_s = time.time() + LOOK_S
                self._look()
                if is_so():
                    return True
            time.sleep(POLL_S)
        if is_needed:
            words = " | ".join(self._words(site) for site in range(self._job.sites))
            raise RunFailedError(f"{self._system}: {what}: not within {limit_s:g} s: {words}")
        return False

    def _lines(self, site: int) -> str:
        path = self._folder / f"trace-{site}-{len(self._starts[site]) - 1}.jsonl"
        return path.read_text() if path.exists() else ""

    def _is_member(self, site: int) -> bool:
        # A site that was dropped starts again in the same process.
        return self._is_up[site] and '"what": "member"' in self._lines(site).rpartition('"what": "imported"')[2]

    def _committed(self, site: int) -> bool:
        return '"what": "commit"' in self._lines(site)

    def _all_are_back(self) -> bool:
        return all(self._is_member(site) for site in range(self._job.sites))

    def _is_done(self, site: int) -> bool:
        return '"what": "done"' in self._lines(site)

    def _is_over(self) -> bool:
        return all(self._is_done(site) and not self._is_up[site] for site in range(self._job.sites))
