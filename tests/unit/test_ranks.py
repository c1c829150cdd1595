"""A scenario that fails, hangs or dies on a rank fails its own case, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ranks as support
from tests.support.ranks import Ranks, started

FILE = "tests.unit.failing_scenarios"


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    with started(FILE, 2, tmp_path) as opened:
        yield opened


def processes(outputs: list[str]) -> list[int]:
    return [int(re.findall(r"of process (\d+)", output)[0]) for output in outputs]


def are_there(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_same_processes_run_one_scenario_after_another(ranks: Ranks) -> None:
    first = processes(ranks.run("holds"))
    assert first[0] != first[1]
    ranks.run("leaves a file")
    assert processes(ranks.run("spoils")) == first
    assert not are_there(first)


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("one is wrong", r"--- rank 1 of 2: Traceback(.*\n)*AssertionError: wrong on one rank"),
        ("one dies", r"--- rank 1 of 2: ended with exit code 7\n"),
        ("one leaves", r"--- rank 1 of 2: Traceback(.*\n)*SystemExit: 0"),
    ],
)
def test_the_rank_that_fails_is_named_and_the_next_scenario_gets_new_ranks(
    ranks: Ranks, scenario: str, said: str
) -> None:
    first = processes(ranks.run("holds"))
    for _ in range(2):  # the second time without another run
        with pytest.raises(AssertionError) as caught:
            ranks.run(scenario)
        assert re.search(said, str(caught.value))
        assert "rank 0 of 2" not in str(caught.value)
        assert not are_there(first)
    assert not set(processes(ranks.run("spoils"))) & set(first)


def test_a_rank_that_does_not_end_is_ended_with_its_stacks(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "LIMIT_S", 5.0)
    with pytest.raises(AssertionError) as caught:
        ranks.run("one never ends")
    assert re.search("rank 1 of 2: had not ended at the limit", str(caught.value))
    assert re.search(
        r"output of rank 1\nwaiting\n(.*\n)*  File .*failing_scenarios.py.* in one_never_ends", str(caught.value)
    )
    ranks.run("holds")


def test_what_a_scenario_needs_is_run_before_it(ranks: Ranks) -> None:
    ranks.run("finds it")
    with pytest.raises(AssertionError, match=r"'one is wrong' of .* failed"):
        ranks.run("needs what failed")


def test_ranks_that_leave_threads_do_not_end_well(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit code 1"), started(FILE, 2, tmp_path) as ranks:
        ranks.run("leaves a thread")
