"""SIGKILL of every rank at seeded moments: what is resumed from the last checkpoint ends with the same bits."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from tests.support.launch import Rank, start_ranks

WORKER = ["-m", "tests.faults.worker_killed"]
EVENTS = ("compute", "exchange", "save", "validation")
N_KILLS, N_RANKS, LIMIT_S = 10, 2, 300.0


def begin(folder: Path, name: str) -> tuple[list[Rank], list[Path]]:
    logs = [folder / f"{name}-{rank}.log" for rank in range(N_RANKS)]
    return start_ranks(WORKER, logs), logs


def finish(ranks: list[Rank], logs: list[Path]) -> list[str]:
    """Wait for the end and return each rank's hash of its weights and buffers, which are its own."""
    deadline_s = time.monotonic() + LIMIT_S
    while any(rank.code() is None for rank in ranks) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    codes = [rank.code() for rank in ranks]
    for rank in ranks:
        rank.end()
    assert codes == [0] * N_RANKS, "\n".join(log.read_text()[-3000:] for log in logs)
    return [re.findall(r"hash (\w+)", log.read_text())[0] for log in logs]


def kill_at(ranks: list[Rank], log: Path, event: str, count: int, delay_s: float) -> None:
    """Kill every rank once the first one has begun ``event`` for the ``count``-th time."""
    deadline_s = time.monotonic() + LIMIT_S
    while not log.exists() or log.read_text().count(f"EVENT {event}\n") < count:
        assert ranks[0].code() is None, f"it ended before {event} {count}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline_s, f"no {event} {count}:\n{log.read_text()[-3000:]}"
        time.sleep(0.001)
    time.sleep(delay_s)
    for rank in ranks:
        rank.end()


def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    monkeypatch.setenv("SCRATCH", str(whole))
    expected = finish(*begin(whole, "whole"))

    monkeypatch.setenv("SCRATCH", str(killed))
    moments, resumed = random.Random(2511), 0
    for kill in range(N_KILLS):
        ranks, logs = begin(killed, f"kill{kill}")
        event = EVENTS[kill % len(EVENTS)]
        # A few events from where it resumed, so that it gets on; one checkpoint save is six of them.
        count = moments.randint(1, 14) if event == "save" else moments.randint(1, 2)
        kill_at(ranks, logs[0], event, count, moments.uniform(0, 0.01))
        resumed += "Restored all states" in logs[0].read_text()
    assert resumed >= N_KILLS - 3, "most of the killed runs must themselves have been resumed ones"
    ranks, logs = begin(killed, "last")
    assert finish(ranks, logs) == expected
    assert "Restored all states" in logs[0].read_text()
    assert len(set(expected)) == N_RANKS  # running statistics are each client's own, and were compared, too
