"""One worker per host runs job after job, so imports are paid for once and paired runs follow each other closely.

    with Workers(2) as workers:
        answers = workers.run("benchmarks.harness.fits:fit", {"rounds": 4, ...}, rate_mbit=100)  # one answer per host

A job is a function ``module:name`` of this repository that takes the plan (a dictionary) and returns JSON. It is called
on every host at once, with the environment of a distributed launch. A job that fails on one host fails as a whole, and
the next one gets fresh processes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

from benchmarks.harness.files import write_whole
from benchmarks.harness.local import LocalCluster
from benchmarks.harness.results import without_places
from benchmarks.hosts import HostCluster, HostsError

LIMIT_S = 1200.0
AFTER_A_FAILURE_S = 30.0
POLL_S = 0.02
STARTER_POLL_S = 1.0
LAST_WORDS = 1500

P = ParamSpec("P")


class RunFailedError(RuntimeError):
    """A job that did not finish on every host; the message says why."""


class Workers:
    """``n`` hosts with a worker each, started at the first job; a context manager.

    Args:
        n: Number of hosts.
        linked: Whether each is a host with its own link, or all are plain processes on this machine.
        pin: Whether each is pinned to one core.
        env: Additional environment variables.
    """

    def __init__(self, n: int, *, linked: bool = True, pin: bool = True, env: Mapping[str, str] | None = None) -> None:
        self.n = n
        self._linked, self._pin, self._env = linked, pin, dict(env or {})
        self._cluster: HostCluster | LocalCluster | None = None
        self._folder = Path()
        self._jobs = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers; the next job starts new ones."""
        if self._cluster is not None:
            self._cluster.__exit__()
            self._cluster = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, job: str, plan: Mapping[str, Any], *, rate_mbit: float | None, limit_s: float = LIMIT_S) -> list[Any]:
        """Run one job on every host; returns the answers in order of host.

        Args:
            job: ``module:name`` of the function.
            plan: The function's argument.
            rate_mbit: Rate of every host's link in both directions; None leaves it unchanged (initially unshaped).
            limit_s: Time limit for the whole job.

        Raises:
            RunFailedError: with the message of the host that failed first.
        """
        try:
            cluster = self._cluster or self._open()
            if rate_mbit is not None:
                for host in range(self.n):
                    cluster.set_rate(host, f"{max(1, round(1000 * rate_mbit))}kbit")
            number, self._jobs = self._jobs, self._jobs + 1
            write_whole(self._folder / f"job-{number}.json", json.dumps({"job": job, "plan": dict(plan)}))
            return self._collect(cluster, number, limit_s)
        except HostsError as error:
            self.close()
            raise RunFailedError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def first_answer(self, job: str, plan: Mapping[str, Any], *, limit_s: float = LIMIT_S) -> Any:
        """Like :meth:`run` with unchanged links, but returns only the first host's answer."""
        return self.run(job, plan, rate_mbit=None, limit_s=limit_s)[0]

    @property
    def is_open(self) -> bool:
        """Whether there are workers, since a job has been run and none has failed after it."""
        return self._cluster is not None

    def bytes_sent(self) -> list[int]:
        """Bytes each host has put on its link since its worker was started, headers included."""
        assert self._cluster is not None, "no job has been run"
        return [self._cluster.bytes_sent(host) for host in range(self.n)]

    def _open(self) -> HostCluster | LocalCluster:
        self._folder, self._jobs = Path(tempfile.mkdtemp(prefix="workers-")), 0
        cluster = self._cluster = (HostCluster if self._linked else LocalCluster)(self.n, pin=self._pin)
        cluster.__enter__()
        for host in range(self.n):
            # As torchrun would start one process on each of several machines.
            env = {"TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": str(host), "LOCAL_WORLD_SIZE": "1"} | self._env
            cluster.start(host, [sys.executable, "-m", "benchmarks.harness.workers", str(self._folder)], env=env)
        return cluster

    def _collect(self, cluster: HostCluster | LocalCluster, number: int, limit_s: float) -> list[Any]:
        paths = [self._folder / f"answer-{number}-{host}.json" for host in range(self.n)]
        deadline_s, failure = time.monotonic() + limit_s, ""
        while not all(path.exists() for path in paths):
            failure = failure or _first_error(paths) or _ended(cluster, paths)
            if failure:
                deadline_s = min(deadline_s, time.monotonic() + AFTER_A_FAILURE_S)
            if time.monotonic() > deadline_s:
                raise RunFailedError(failure or f"not finished after {limit_s:g} s")
            time.sleep(POLL_S)
        if failure := failure or _first_error(paths):
            raise RunFailedError(failure)
        return [json.loads(path.read_text())["ok"] for path in paths]


def attempt(action: Callable[P, dict[str, Any]], *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
    """The action's values with ``"failed": None``; if it fails, only ``"failed"`` with the message."""
    try:
        return {"failed": None, **action(*args, **kwargs)}
    except RunFailedError as error:
        print(f"failed: {error}", flush=True)
        return {"failed": without_places(str(error))}


def _first_error(paths: list[Path]) -> str:
    for path in paths:
        if path.exists():
            answer = json.loads(path.read_text())
            if "error" in answer:
                return answer["error"]
    return ""


def _ended(cluster: HostCluster | LocalCluster, paths: list[Path]) -> str:
    for host, path in zip(cluster.hosts.values(), paths, strict=True):
        status = host.poll()
        if status is not None and not path.exists():
            return f"host {host.index} ended with {status}: {host.log_text()[-LAST_WORDS:]}"
    return ""


def _serve(folder: Path) -> None:
    """A worker's main loop: wait for the next job and answer it, until stopped, a job fails, or the starter is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    host, number = os.environ["RANK"], 0
    while True:
        path = folder / f"job-{number}.json"
        while not path.exists():
            time.sleep(POLL_S)
        order = json.loads(path.read_text())
        answer = folder / f"answer-{number}-{host}.json"
        module, _, name = order["job"].partition(":")
        try:
            found = getattr(importlib.import_module(module), name)(order["plan"])
            write_whole(answer, json.dumps({"ok": found}))
        except Exception as error:  # reported to the starter; the failed job may have left anything behind
            last = traceback.format_exc()[-LAST_WORDS:]
            write_whole(answer, json.dumps({"error": f"host {host}: {type(error).__name__}: {error}\n{last}"}))
            sys.exit(1)
        number += 1


def _end_with(starter: int) -> None:
    """Exit once the starter is gone, even in the middle of a job: nothing awaits the answer, and it may take hours."""
    while os.getppid() == starter:
        time.sleep(STARTER_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
