"""A stranger who reaches every port of a run does not change one bit of its result.

Thousands of connections that send nothing, nonsense, or half of nothing, to the meeting's store and to gloo's listeners
in the middle of the run. What they cost is open files, whose limit each rank raises.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.strangers import Strangers, ports_of
from tests.faults.worker import HOLD_STEP
from tests.support.launch import LIMIT_S, Rank, rank_environment, start_ranks

CONNECTIONS, STEPS = 5000, 60
KINDS: dict[str, tuple[Callable[[Strangers, int], None], ...]] = {
    "silent": (Strangers.idle, Strangers.half_closed),
    "noisy": (Strangers.garbage, Strangers.broken),
}


def on_own_machine(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set if each rank had a machine."""
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(rank), "NODE_RANK": str(rank)}
    return {**rank_environment(rank, n_ranks, port), **alone}


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this machine permits, for the stranger."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def wait_for(done: Callable[[], bool], logs: Sequence[Path]) -> None:
    ends_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < ends_s, [log.read_text()[-3000:] for log in logs]
        time.sleep(0.05)


def run(folder: Path, disturb: Callable[[list[Rank]], None]) -> list[str]:
    """The last line of each of two ranks, which is the hash of its weights."""
    folder.mkdir()
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    worker = ["-m", "tests.faults.worker", "sharded", "60", str(STEPS)]
    until = {"HOLD_UNTIL": str(folder / "go on")}
    ranks = start_ranks(worker, logs, environment_of=lambda *rank: {**on_own_machine(*rank), **until})
    try:
        wait_for(lambda: all(f"step {HOLD_STEP}\n" in log.read_text() for log in logs), logs)
        disturb(ranks)
        (folder / "go on").touch()
        wait_for(lambda: all(rank.code() is not None for rank in ranks), logs)
        texts = [log.read_text() for log in logs]
        assert [rank.code() for rank in ranks] == [0, 0], texts
    finally:
        for rank in ranks:
            rank.end()
    return [[line for line in text.splitlines() if line.startswith("hash ")][-1] for text in texts]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run(tmp_path_factory.mktemp("undisturbed") / "run", lambda ranks: None)


@pytest.mark.parametrize("name", KINDS)
def test_thousands_of_connections_to_every_port_change_nothing(
    name: str, undisturbed: list[str], tmp_path: Path, many_files: None
) -> None:
    ports = set[int]()
    with contextlib.ExitStack() as stay:

        def disturb(ranks: list[Rank]) -> None:
            ports.update(*(ports_of(rank.pid) for rank in ranks))
            strangers = Strangers(ports)
            stay.callback(strangers.leave)
            for kind in KINDS[name]:
                kind(strangers, CONNECTIONS // len(KINDS[name]))

        assert run(tmp_path / "run", disturb) == undisturbed
    assert len(ports) == 3  # the store, and a listener of each rank
