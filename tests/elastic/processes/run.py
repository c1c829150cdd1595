"""Runs a lighthouse and sites as processes of this machine, and strikes them in the phase that a test names."""

from __future__ import annotations

import functools
import json
import multiprocessing.process
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lightning_parablock.regroup.log import MembershipLog
from tests.elastic.processes.replaying import check_bits
from tests.support.launch import ROOT, Fork, free_port, run_module

LIMIT_S = 60.0
"""Bounds a hang on a busy machine."""
_POLL_S = 0.005
_TOLD = (None, 0, -signal.SIGKILL, 128 + signal.SIGTERM)
"""Exit codes of sites that run, or ended because they were to."""


class Started(Protocol):
    """A process that has been started."""

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        ...

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        ...

    def end(self) -> object:
        """Kill it if it runs."""
        ...


Start = Callable[[list[str], Path], Started]
"""Starts ``python`` with these words; its output goes to the file."""


class SiteProcess:
    """One site; started again, it is another process of the same site.

    Args:
        folder: Of the run.
        name: Of the site.
        start: Starts its process.
    """

    def __init__(self, folder: Path, name: str, start: Start) -> None:
        self.name, self._folder, self._start = name, folder, start
        self._process: Started | None = None
        self._starts = 0

    def start(self) -> None:
        """Start it, or start it again with the same command."""
        words = ["-m", "tests.elastic.processes.worker", str(self._folder), self.name]
        self._starts += 1
        with self._trace.open("a") as file:
            file.write("starting\n")
        log = self._folder / f"{self.name}-{self._starts}.log"
        self._process = self._start(words, log)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs, or has not been started."""
        return None if self._process is None else self._process.code()

    @property
    def trace(self) -> list[str]:
        """What it has said so far."""
        return self._trace.read_text().splitlines() if self._trace.exists() else []

    @property
    def _trace(self) -> Path:
        return self._folder / f"{self.name}.trace"

    @property
    def starts(self) -> int:
        """How often it has begun."""
        return self.trace.count("started")

    @property
    def round(self) -> int:
        """The newest round that it has begun since it was started last; -1 for none."""
        for line in reversed(self.trace):
            if line in ("starting", "started"):
                break
            if line.startswith("round "):
                return int(line.split()[1])
        return -1

    @property
    def output(self) -> str:
        """What its newest process has printed."""
        log = self._folder / f"{self.name}-{self._starts}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.signal(number)

    def end(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self._process.end()

    # --- strikes ------------------------------------------------------------------------------------------------------

    @property
    def _arm(self) -> Path:
        return self._folder / f"{self.name}.arm"

    def arm(self, phase: str, times: int = 1) -> None:
        """Let it stop when it comes into the phase next, or the ``times``-th time from now on."""
        self._armed = self.trace.count(f"ARRIVED {phase}")
        self._phase = phase
        temporary = self._arm.with_suffix(".new")
        temporary.write_text(f"{phase} {times}")
        temporary.rename(self._arm)

    @property
    def has_arrived(self) -> bool:
        """Whether it is in the phase for which it was armed."""
        return self.trace.count(f"ARRIVED {self._phase}") > self._armed

    def disarm(self) -> None:
        """Let it continue."""
        self._arm.unlink(missing_ok=True)


class Places(Protocol):
    """Where a run's processes are."""

    @property
    def address(self) -> str:
        """Address of the lighthouse."""
        ...

    def start(self, site: str | None) -> Start:
        """How a site is started; None stands for the lighthouse."""
        ...


class Here(Places):
    """All of them are forked on this machine."""

    address = "127.0.0.1"

    def start(self, site: str | None) -> Start:
        return lambda words, log: Fork(functools.partial(_run, words), environment(), log)


class ElasticRun:
    """A lighthouse and sites; a context manager that leaves nothing behind.

    Args:
        folder: For logs and results.
        width: Of the network.
        pause_s: Seconds that a local step takes.
        places: Where the processes run; None for this machine.
        **strategy: Options of the strategy.
    """

    def __init__(
        self,
        folder: Path,
        *,
        width: int = 48,
        pause_s: float = 0.01,
        places: Places | None = None,
        **strategy: Any,
    ) -> None:
        self.folder, self.width, self.port = folder, width, free_port()
        self.places = places or Here()
        self.sites: dict[str, SiteProcess] = {}
        self.silence_s = 2.0
        options = {
            "lighthouse": f"{self.places.address}:{self.port}",
            "min_clients": 2,
            "silence_s": self.silence_s,
            "rejoin_timeout_s": 40.0,
            "chunk_bytes": 4096,
            "upload_bps": 100e6,
            **strategy,
        }
        said = {"width": width, "pause_s": pause_s, "strategy": options}
        (folder / "run.json").write_text(json.dumps(said))
        self.lighthouse: Started | None = None
        self._lighthouses = 0

    def __enter__(self) -> ElasticRun:
        self.start_lighthouse()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for site in self.sites.values():
            site.end()
        self.kill_lighthouse()

    def start_lighthouse(self) -> None:
        """Start it, or start it again."""
        words = ["-m", "lightning_parablock", "lighthouse", "--host", "0.0.0.0", "--port", str(self.port)]
        words += ["--silence_s", str(self.silence_s)]
        self._lighthouses += 1
        log = self.folder / f"lighthouse-{self._lighthouses}.log"
        self.lighthouse = self.places.start(None)(words, log)

    def kill_lighthouse(self) -> None:
        """kill -9."""
        if self.lighthouse is not None:
            self.lighthouse.end()

    def start(self, *names: str) -> None:
        """Start sites, or start them again."""
        for name in names:
            self.site(name).start()

    def site(self, name: str) -> SiteProcess:
        """A site, which need not have been started."""
        return self.sites.setdefault(name, SiteProcess(self.folder, name, self.places.start(name)))

    def found(self, *names: str, rounds: int = 3) -> None:
        """Let these sites found the run, and wait until they have trained some rounds."""
        (self.folder / "founders").write_text(str(len(names)))
        self.start(*names)
        self.until(lambda: all(self.sites[name].round >= rounds for name in names), f"round {rounds} at {names}")

    # --- waiting ------------------------------------------------------------------------------------------------------

    def until(self, is_so: Callable[[], bool], what: str, *, may_end: Sequence[str] = ()) -> None:
        """Wait, with a limit; a site that ends with an error meanwhile is an error, unless it is one of ``may_end``."""
        until_s = time.monotonic() + LIMIT_S
        while not is_so():
            bad = [n for n, s in self.sites.items() if n not in may_end and s.code not in _TOLD]
            if bad or time.monotonic() > until_s:
                raise AssertionError(f"{what}: not within {LIMIT_S:g} s, or {bad} has ended\n{self.outputs()}")
            time.sleep(_POLL_S)

    def outputs(self) -> str:
        """What all sites have printed last."""
        return "\n".join(
            f"--- {name}: code {site.code}, round {site.round}\n{site.output[-2500:]}"
            for name, site in self.sites.items()
        )

    def strike(self, name: str, phase: str, fault: Callable[[], object]) -> None:
        """Do something to a site while it is in a phase."""
        site = self.sites[name]
        site.arm(phase)
        self.until(lambda: site.has_arrived, f"{name} comes to {phase}")
        fault()
        site.disarm()

    def kill(self, name: str, phase: str) -> None:
        """kill -9 in a phase."""
        self.strike(name, phase, self.sites[name].end)

    def go_on(self, *names: str, rounds: int = 3) -> None:
        """Wait until sites have trained some more rounds."""
        before = {name: self.sites[name].round for name in names}
        self.until(
            lambda: all(self.sites[name].round >= before[name] + rounds for name in names),
            f"{rounds} rounds more at {names}",
        )

    def come_back(self, name: str, rounds: int = 2) -> None:
        """Start a site again, or a new one, and wait until it trains with the others."""
        self.start(name)
        self.until(lambda: self.sites[name].round >= 0, f"{name} joins")
        self.go_on(name, rounds=rounds)

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self, *names: str, rounds: int = 12) -> MembershipLog:
        """End the run soon; the sites named have the same bits, and those of the plain loop."""
        self.announce_end(rounds)
        return self.ended(*names)

    def announce_end(self, rounds: int = 12) -> None:
        """Tell all sites the last round."""
        newest = max(site.round for site in self.sites.values())
        temporary = self.folder / "end.new"
        temporary.write_text(str(newest + rounds))
        temporary.rename(self.folder / "end")

    def ended(self, *names: str) -> MembershipLog:
        """Wait for the end of these sites, and compare them with each other and with the plain loop."""
        others = [name for name in self.sites if name not in names]
        self.until(lambda: all(self.sites[name].code is not None for name in names), "the end", may_end=others)
        codes = {name: self.sites[name].code for name in names}
        assert set(codes.values()) == {0}, f"{codes}\n{self.outputs()}"
        return check_bits(self.folder, list(names), self.width)


def _run(words: list[str]) -> None:
    # What the interpreter would say if it had been started with these words.
    sys.orig_argv = [sys.executable, *words]
    setattr(multiprocessing.process, "_parent_process", None)  # noqa: B010
    run_module(words)


def environment() -> dict[str, str]:
    """Of a process of a run."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in found.items() if not re.match("RANK|WORLD_SIZE|LOCAL_RANK", name)}
