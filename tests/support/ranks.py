"""Ranks that stay for all test cases of a scenario file, and run each case's scenario when it is asked for."""

from __future__ import annotations

import contextlib
import functools
import importlib
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import Fork, context, free_port, rank_environment
from tests.support.scenarios import DUMP_STACKS, serve

LIMIT_S = 300.0
"""For one scenario, on a busy machine; the longest takes half a minute on an idle one."""
GRACE_S = 15.0
"""For the other ranks to come to the scenario's end, once one has failed."""
END_S = 60.0
"""For all ranks to end, after the last scenario."""
SHOWN = 6000
"""Characters of a rank's output in the report of a failure."""


class Ranks:
    """The ranks of a scenario file. The first scenario starts them, and one that fails or spoils them ends them.

    Args:
        file: The module's name.
        n_ranks: How many ranks.
        scratch: A folder that they share, ``SCRATCH`` in their environment.
    """

    def __init__(self, file: str, n_ranks: int, scratch: Path) -> None:
        self._file, self._n_ranks, self._scratch = file, n_ranks, scratch
        self._scenarios: dict[str, Any] = importlib.import_module(file).SCENARIOS
        self._outputs: dict[str, list[str]] = {}
        self._failures: dict[str, str] = {}
        self._started = contextlib.ExitStack()
        self._ranks: list[Fork] = []
        self._commands: list[Connection] = []
        self._logs: list[Path] = []

    def run(self, name: str) -> list[str]:
        """Run a scenario on every rank, unless that has been done, and return what each has printed meanwhile.

        Raises:
            AssertionError: it failed on some rank, or did not end within the limit; names the ranks and shows their
                tracebacks in the order in which they failed, and their output.
        """
        if name not in self._outputs and name not in self._failures:
            scenario = self._scenarios[name]
            for needed in getattr(scenario, "needs", ()):
                self.run(needed)
            self._run(name)
            if name in self._failures or getattr(scenario, "spoils", False):
                self._kill()
        assert name not in self._failures, self._failures[name]
        return self._outputs[name]

    def run_all(self) -> list[str]:
        """Run every scenario, and return all that each rank has printed."""
        outputs = [self.run(name) for name in self._scenarios]
        return ["".join(parts) for parts in zip(*outputs, strict=True)]

    def close(self) -> None:
        """Let the ranks end.

        Raises:
            AssertionError: one does not, or not well.
        """
        self._tell(None)
        deadline_s = time.monotonic() + END_S
        while any(rank.code() is None for rank in self._ranks) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        codes = [rank.code() for rank in self._ranks]
        texts = [log.read_text(errors="replace") for log in self._logs]
        self._kill()
        assert not any(codes) and None not in codes, "\n".join(
            f"--- rank {rank}: exit code {code}\n{text[-SHOWN:]}"
            for rank, (code, text) in enumerate(zip(codes, texts, strict=True))
        )

    def _run(self, name: str) -> None:
        if not self._ranks:
            self._start()
        sizes = [log.stat().st_size for log in self._logs]
        self._tell(name)
        failed = self._collect()
        texts = [log.read_bytes()[size:].decode(errors="replace") for log, size in zip(self._logs, sizes, strict=True)]
        if not failed:
            self._outputs[name] = texts
            return
        printed = (f"--- output of rank {rank}\n{text[-SHOWN:]}" for rank, text in enumerate(texts))
        how = (f"--- rank {rank} of {self._n_ranks}: {said}" for rank, said in failed.items())
        self._failures[name] = "\n".join((f"{name!r} of {self._file} failed", *how, *printed))

    def _tell(self, name: str | None) -> None:
        for commands in self._commands:
            with contextlib.suppress(OSError):  # of a rank that has ended, which is noticed where it does not answer
                commands.send(name)

    def _collect(self) -> dict[int, str]:
        """What each rank that has not come through says, the first one first."""
        failed: dict[int, str] = {}
        pending = set(range(self._n_ranks))
        deadline_s = time.monotonic() + LIMIT_S
        while pending and (left_s := deadline_s - time.monotonic()) > 0:
            wait([thing for rank in pending for thing in (self._commands[rank], self._ranks[rank].sentinel)], left_s)
            for rank in sorted(pending):
                said = self._heard(rank)
                if said == "":
                    continue
                pending.remove(rank)
                if said is not None:
                    failed[rank] = said
                    deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        for rank in pending:
            self._ranks[rank].signal(DUMP_STACKS)
            failed[rank] = "had not ended at the limit; its stacks are in its output"
        time.sleep(1.0 if pending else 0.0)
        return failed

    def _heard(self, rank: int) -> str | None:
        """What a rank answers: None when all is well, and nothing, "", while it runs."""
        ended = self._ranks[rank].code() is not None  # asked first: an answer may be the last that it does
        with contextlib.suppress(EOFError, ConnectionError):
            if self._commands[rank].poll():
                return self._commands[rank].recv()
            if not ended:
                return ""
        return f"ended with exit code {self._ranks[rank].end()}"

    def _start(self) -> None:
        folder = Path(self._started.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        for rank in range(self._n_ranks):
            environment = {**rank_environment(rank, self._n_ranks, port), "SCRATCH": str(self._scratch)}
            here, there = context.Pipe()
            self._logs.append(folder / f"rank{rank}.log")
            self._ranks.append(Fork(functools.partial(serve, self._file, there), environment, self._logs[-1]))
            self._started.callback(self._ranks[-1].end)
            there.close()  # else its end would go unnoticed here
            self._commands.append(self._started.enter_context(here))

    def _kill(self) -> None:
        self._started.close()
        for of_each_rank in (self._ranks, self._commands, self._logs):
            of_each_rank.clear()


@contextlib.contextmanager
def started(file: str, n_ranks: int, scratch: Path) -> Generator[Ranks]:
    """Ranks for a while; they must end well."""
    ranks = Ranks(file, n_ranks, scratch)
    try:
        yield ranks
    except BaseException:
        ranks._kill()  # pyright: ignore[reportPrivateUsage]
        raise
    ranks.close()


def ranks_of(file: str, n_ranks: int = 2) -> Any:
    """A fixture of a test module: the ranks of its scenario file."""

    @pytest.fixture(scope="module")
    def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
        with started(file, n_ranks, tmp_path_factory.mktemp("ranks")) as opened:
            yield opened

    return ranks


def each_of(file: str, but: Sequence[str] = ()) -> pytest.MarkDecorator:
    """A test case for each scenario of a file, by its name, except for some."""
    names = importlib.import_module(file).SCENARIOS
    return pytest.mark.parametrize("scenario", [name for name in names if name not in but])


def alone(file: str, name: str) -> list[str]:
    """The arguments of a launch for one of the file's scenarios that no process survives."""
    return ["-m", "tests.support.scenarios", file, name]
