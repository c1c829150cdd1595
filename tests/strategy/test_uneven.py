"""Clients whose data differ in size and kind, and clients that do something alone: nobody hangs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.launch import run_ranks
from tests.support.ranks import Ranks, alone, each_of, ranks_of

ENDED = r"PeerError: round \d+, block .*: client 1 \(rank 1 on .*\) ended its training after 2 rounds, by itself"


SUITE = "tests.strategy.scenarios.uneven"
ALONE = "tests.strategy.scenarios.alone"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


@pytest.mark.parametrize("how", ["stops", "stops before validation"])
def test_a_client_that_stops_alone_is_named_by_the_others(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ALONE, how), expect_code=None)
    for output in outputs:
        assert re.search(ENDED, output)
        assert "fitted" not in output


def test_a_client_that_stops_into_another_collective_is_named_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for output in run_ranks(2, alone(ALONE, "stops into a reduce"), expect_code=1):
        assert re.search(r"PeerError: .*client 1 \(rank 1 on .*\) ended its training after 1 rounds, by itself", output)


def test_clients_in_different_collectives_are_named_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ALONE, "logs alone"), expect_code=1)
    for output in outputs:
        assert re.search(
            r"ProtocolError: round 1, block .*: the clients are in different collective operations: client 0 .* in "
            r"'reduce \(mean\) of torch.float32 \(\)'; client 1 .* in 'all_gather of torch.float64 \(3,\)'",
            output,
        )


def test_a_client_that_is_alive_but_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for output in run_ranks(2, alone(ALONE, "is late"), expect_code=1):
        assert re.search(
            r"PeerTimeoutError: round 1, block .*: not finished after 3 s although every client is alive: client 1 "
            r"\(rank 1 on .*\) has not submitted round 1 \(it trains in round 1, its last step ended \d+ s ago",
            output,
        )


def test_a_client_that_ends_between_two_fits_ends_the_next_meeting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    arguments = alone(ALONE, "ends between two fits")
    first, other = run_ranks(2, arguments, expect_code=1)
    assert "PeerLostError: rank 0 (pid " in first and "one of them ended between two parts of the run" in first
    assert "ZeroDivisionError: client 1 is broken" in other


def test_a_flood_of_connections_ends_the_run_with_a_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    flooded, other = run_ranks(2, alone(ALONE, "is flooded"), expect_code=1)
    said = (
        r"ResourceError: this process, client 0 \(rank 0 on .*\), cannot continue in round \d+: \d+ of 512 open files"
    )
    assert re.search(said, flooded)
    assert re.search(
        r"PeerLostError: round \d+, block .*: client 0 .* error of its own: ResourceError: this process", other
    )
    assert (tmp_path / "rescued.ckpt").is_file()


def test_collectives_of_users_that_do_not_fit_end_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ALONE, "gathers by itself"), expect_code=1)
    said = r"ResourceError: this process, client \d \(rank \d on .*\), cannot continue in round 0: native code"
    assert re.search(said, outputs[0] + outputs[1])


def test_saving_on_an_exception_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    arguments = alone(ALONE, "fails")
    survivor, failed = run_ranks(2, arguments, expect_code=None)
    assert "ZeroDivisionError: client 1 is broken" in failed
    assert re.search(r"PeerLostError: round \d+, block .* ended on an error of its own: ZeroDivisionError", survivor)
    assert (tmp_path / "saved" / "exception.ckpt").is_file()


@pytest.mark.parametrize("how", ["meets after skipped epochs", "meets after idle epochs"])
def test_a_mean_over_epochs_in_which_a_client_may_have_no_step_is_refused_at_the_first(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ALONE, how), expect_code=None)
    for output in outputs:
        assert re.search(r"ConfigurationError: training_step logs 'value' over the epoch and all clients", output)
        assert "own_local_steps or own_local_s a rank may train no client in a whole epoch" in output
        assert "PeerTimeoutError" not in output and "fitted" not in output


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("meets without data", "different numbers of batches"),
        ("meets in passed steps", "own_local_steps or own_local_s"),
    ],
)
def test_a_meeting_in_steps_that_some_pass_by_is_refused_at_the_first(
    how: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ALONE, how), expect_code=None)
    for output in outputs:
        assert re.search(r"ConfigurationError: a \w+ of all clients in training_step, where clients skip", output)
        assert f"({why}): some would wait for others that do not come" in output
        assert "fitted" not in output
