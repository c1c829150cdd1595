"""Start N ranks of a worker module on this machine and wait for them, with a limit.

Most launches fork from a server that has made the imports, which cost each process several seconds. A launch
``from_scratch`` starts every rank as a user's launcher does: with its own hash seed, and with Python's own way out.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preloaded"])
LIMIT_S = 600.0
"""Bounds a hang on a busy machine; the longest launch takes a minute or two on an idle one."""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set, for ranks on this machine."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "GROUP_RANK": "0",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


class Rank(Protocol):
    """One started rank."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    def code(self) -> int | None:
        """Its exit code; None while it runs."""

    def end(self) -> object:
        """Kill it, if it still runs, and collect it."""


class _Scratch:
    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def code(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@functools.cache
def _start_server() -> None:
    """Start it where it finds what it is to import, whatever the working directory is: it ignores an ImportError."""
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()


class Fork:
    """A rank that is forked: it calls ``work``, with this environment, and its output goes to ``log``."""

    def __init__(self, work: Callable[[], None], environment: Mapping[str, str], log: Path) -> None:
        _start_server()
        log.touch()
        self._process = context.Process(target=_run_forked, args=(work, dict(environment), log))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None
        return self._process.pid

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.exitcode

    def end(self) -> int | None:
        """Kill it, if it still runs, collect it, and return its exit code."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signum)

    @property
    def sentinel(self) -> int:
        """A descriptor that is ready to read when the rank has ended."""
        return self._process.sentinel


def _run_forked(work: Callable[[], None], environment: dict[str, str], log: Path) -> None:
    """Make a child of the fork server what a process that was started with this environment would be."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only  # pyright: ignore[reportPrivateUsage]

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    setattr(rank_zero_only, "rank", _get_rank() or 0)  # noqa: B010  # Lightning reads it when it is imported
    work()


def run_module(arguments: Sequence[str]) -> None:
    """What ``python -m module ...`` does."""
    flag, module, *sys.argv[1:] = arguments
    assert flag == "-m", arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_ranks(
    n_ranks: int,
    arguments: Sequence[str],
    *,
    expect_code: int | None = 0,
    from_scratch: bool = False,
    own_arguments: Callable[[int], Sequence[str]] = lambda _: (),
    environment_of: Callable[[int, int, int], Mapping[str, str]] = rank_environment,
) -> list[str]:
    """Run ``python -m module ...`` once a rank and return each rank's output.

    Args:
        n_ranks: How many.
        arguments: ``-m``, the module's name, and its arguments.
        expect_code: Every rank's exit code; None stands for any but 0.
        from_scratch: Start new interpreters rather than fork.
        own_arguments: Further arguments of one rank.
        environment_of: The environment of a rank, given its number, the number of ranks and a free port.

    Raises:
        AssertionError: a rank ended with another code than expected, or had to be killed at the limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(n_ranks)]
        starting: dict[str, Any] = {
            "from_scratch": from_scratch,
            "own_arguments": own_arguments,
            "environment_of": environment_of,
        }
        codes = _wait(start_ranks(arguments, logs, **starting))
        texts = [log.read_text(errors="replace") for log in logs]
    bad = [r for r, code in enumerate(codes) if code is None or (expect_code is not None and code != expect_code)]
    report = "\n".join(f"--- rank {rank}: exit code {codes[rank]}\n{texts[rank][-6000:]}" for rank in range(n_ranks))
    assert not bad, f"ranks {bad} did not end with {expect_code}:\n{report}"
    if expect_code is None:
        assert all(codes), f"every rank must end with an error:\n{report}"
    return texts


def start_ranks(
    arguments: Sequence[str],
    logs: Sequence[Path],
    *,
    from_scratch: bool = False,
    own_arguments: Callable[[int], Sequence[str]] = lambda _: (),
    environment_of: Callable[[int, int, int], Mapping[str, str]] = rank_environment,
) -> list[Rank]:
    """Start one rank a log; the caller ends them. The arguments are those of :func:`run_ranks`."""
    port, ranks = free_port(), list[Rank]()
    for rank, log in enumerate(logs):
        words, environment = [*arguments, *own_arguments(rank)], environment_of(rank, len(logs), port)
        forked = functools.partial(run_module, words)
        ranks.append(_Scratch(words, environment, log) if from_scratch else Fork(forked, environment, log))
    return ranks


def _wait(ranks: Sequence[Rank]) -> list[int | None]:
    """Exit codes; None for a rank that was killed at the limit. One failed rank leaves the others 60 s to notice."""
    deadline_s = time.monotonic() + LIMIT_S
    while any(rank.code() is None for rank in ranks) and time.monotonic() < deadline_s:
        time.sleep(0.05)
        if any(rank.code() for rank in ranks):
            deadline_s = min(deadline_s, time.monotonic() + 60)
    codes = [rank.code() for rank in ranks]
    for rank in ranks:
        rank.end()
    return codes
