"""The benchmark of the frontier: its queue, what a second start keeps, planned seconds, and what it says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_frontier
from benchmarks.bench_frontier import expected_s, kept_runs, make_all, settings_of
from benchmarks.frontier.choice import Cell, best_of, front, overlap
from benchmarks.frontier.figures import (
    MINUTES,
    RATES_MBIT,
    combined,
    missing,
    plan_of,
    reached,
    step_times,
    table,
    timed_curve,
    two_best,
)
from benchmarks.frontier.job import PeakWatch
from benchmarks.frontier.methods import EXTRAS, MAIN, METHODS, SIZES, TRIAL_SEED, Run, delay_steps, queue, round_steps
from benchmarks.frontier.picture import draw
from benchmarks.frontier.shown import _doubt, markdown
from benchmarks.frontier.targets import first_below
from benchmarks.harness.budget import Budget
from benchmarks.harness.planned import link_s, planned
from benchmarks.harness.rate_search import best_rate
from benchmarks.harness.results import RESULTS, read_result, write_result

WHOLE = SIZES["whole"]
GOODPUT = 0.95 * 1e6 / 8
"""Bytes per second of payload per Mbit/s."""


def record(run: Run, loss: float, **other: Any) -> dict[str, Any]:
    """A finished run with two rounds of 16 steps of 1.5 s, whose exchanges take 950 s at 20 Mbit/s."""
    n_bytes, settings = 20 * GOODPUT * 950, settings_of(run, WHOLE) | {"local_steps": 16, "delay_steps": 0}
    facts = {"data": run.data, "method": run.method, "seed": run.seed, "trial_rate": run.trial_rate, "failed": None}
    made = {
        "commit": "c0ffee",
        "learning_rate": run.trial_rate or 1e-4,
        "settings": settings,
        "held_out_loss": [[0, 1.8], [16, 1.2], [32, loss]],
        "rounds": [["a", 16, n_bytes], ["b", 16, n_bytes]],
        "step_cpu_s": [[1.5] * 32, [1.5] * 32],
        "plain_step_s": 1.0,
        "sent_bytes": 2 * n_bytes,
        "peak_bytes": 2e9,
        "wall_s": 100.0,
    }
    return facts | made | other


def reported(method: str, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    return record(Run("gsm8k", method, seed), loss, **other)


def client(**other: Any) -> dict[str, Any]:
    """A client's answer, as it comes back from JSON."""
    return {
        "held_out_loss": [[0, 9.0, 8.0], [4, 5.0, 4.0]],
        "rounds": [["a", 2, 10, 20], ["b", 2, 40, 30]],
        "step_cpu_s": [1.0, 1.0, 2.0, 2.0],
        "plain_step_s": 1.0,
        "examples": 4,
        "sent_bytes": 100,
        "received_bytes": 100,
        "base_bytes": 5,
        "peak_bytes": 7,
        "block_scalars": {"a": 5, "b": 6},
        "seconds": 1.0,
    } | other


# --- the queue --------------------------------------------------------------------------------------------------------


def test_trials_come_before_their_method_and_every_first_seed_before_a_second_one() -> None:
    runs = list(queue(WHOLE, lambda: ["lora", "fedavg"]))
    assert len(runs) == len(set(runs)) == 7 * 3 + 7 * 2 + 2 * 2 + 2
    for name in MAIN:
        mine = [one for one in runs if one.method == name and one.data == "gsm8k"]
        assert [one.trial_rate for one in mine] == [*MAIN[name].learning_rates, None, None]
        assert [one.seed for one in mine] == [TRIAL_SEED] * 3 + [0, 1]
    finals = [one for one in runs if one.trial_rate is None]
    assert [one.seed for one in finals[:14]] == [0] * 7 + [1] * 7
    assert [(one.data, one.method) for one in finals[14:18]] == [("instruct", "lora"), ("instruct", "fedavg")] * 2
    assert [one.method for one in finals[18:]] == list(EXTRAS)
    assert TRIAL_SEED not in WHOLE.seeds


def test_learning_rates_are_searched_equally() -> None:
    assert {len(method.learning_rates) for method in MAIN.values()} == {WHOLE.rates} == {3}
    for method in MAIN.values():
        low, middle, high = sorted(method.learning_rates)
        assert (method.learning_rates[0], high / middle) == (middle, pytest.approx(middle / low))
    assert all(method.rate_of in MAIN and not method.learning_rates for method in EXTRAS.values())


@pytest.mark.parametrize("size", SIZES.values())
def test_every_evaluation_and_the_end_fall_on_the_end_of_a_round(size: Any) -> None:
    for method in METHODS.values():
        for steps in (size.steps, size.trial_steps, size.evaluate_every_steps):
            assert steps % round_steps(method, size) == 0
        assert delay_steps(method, size) in (0, round_steps(method, size))


def test_the_two_best_are_those_of_the_lowest_mean_on_gsm8k() -> None:
    runs = [reported("lora", 0, 0.9), reported("lora", 1, 1.1), reported("fedavg", 0, 0.95), reported("blocks_1", 0, 2)]
    runs += [reported("fedavg_codec", 0, 0.1), reported("blocks_2", 0, 0.2, failed="lost")]
    runs += [record(Run("instruct", "blocks_1", 0), 0.3)]
    assert two_best(runs) == ["fedavg", "lora"]


# --- many starts ------------------------------------------------------------------------------------------------------


def write(path: Path, **values: list[dict[str, Any]]) -> Path:
    whole = {"runs": [], "trials": []} | values
    return write_result("frontier", configuration={}, seeds=[0], network={}, values=whole, directory=path)


def test_finished_runs_with_todays_settings_are_kept(tmp_path: Path) -> None:
    trial, final = Run("gsm8k", "lora", TRIAL_SEED, 1e-3), Run("gsm8k", "lora", 0)
    good = {one: record(one, 1.0, settings=settings_of(one, WHOLE)) for one in (trial, final)}
    failed = reported("fedavg", 0, 1.0, failed="a client was lost")
    other = settings_of(Run("gsm8k", "blocks_8", 0), WHOLE) | {"local_steps": 4}
    changed, gone = reported("blocks_8", 0, 1.0, settings=other), {**good[final], "method": "yesterday"}
    path = write(tmp_path, runs=[good[final], failed, changed, gone], trials=[good[trial]])
    assert kept_runs(path, WHOLE) == good
    assert kept_runs(tmp_path / "none.json", WHOLE) == {}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Starts whose runs take 100 s each by a clock of their own; an entry of ``fails`` ends that run with an error."""
    state = argparse.Namespace(now_s=0.0, made=[], limits=[], fails=set())

    class FakeWorkers:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> FakeWorkers:
            return self

        def __exit__(self, *_: object) -> None: ...
        def close(self) -> None: ...

    def make(_: Any, run: Run, size: Any, source: Any, done: Any, limit_s: float) -> dict[str, Any]:
        bench_frontier._learning_rate(run, done)
        state.limits.append(limit_s)
        state.now_s += min(100.0, limit_s)
        if limit_s < 100.0 or str(run) in state.fails:
            raise bench_frontier.RunFailedError("it came to nothing")
        state.made.append(run)
        return record(run, 1.0, settings=settings_of(run, size), wall_s=0.0)

    def start(hours: float | None) -> list[Run]:
        state.made, state.limits = [], []
        done = kept_runs(tmp_path / "frontier.json", WHOLE)
        make_all(options, "whole", done, Budget(hours, lambda: state.now_s))
        return state.made

    monkeypatch.setattr(bench_frontier, "Workers", FakeWorkers)
    monkeypatch.setattr(bench_frontier, "_make", make)
    monkeypatch.setattr("benchmarks.harness.publish.folder", lambda _: tmp_path)
    monkeypatch.setattr("benchmarks.harness.publish.draw", lambda *_: None)
    names = {name: name for name in ("train_file", "test_file", "instruct_train_file", "instruct_test_file")}
    options = argparse.Namespace(quick=False, step_factor=1.0, **names)
    state.start, state.folder = start, tmp_path
    return state


def test_starts_of_any_length_make_every_run_once(starts: Any) -> None:
    first = starts.start(1050 / 3600)
    assert len(first) == 10 and starts.limits[-1] == pytest.approx(50.0)
    later = starts.start(None)
    everything = list(queue(WHOLE, lambda: ["blocks_5", "lora"]))
    assert first + later == everything
    assert starts.start(None) == []


def test_after_any_run_the_file_is_whole_and_says_what_is_missing(starts: Any) -> None:
    starts.start(550 / 3600)
    values = read_result(starts.folder / "frontier.json")["values"]
    assert (len(values["trials"]), len(values["runs"])) == (4, 1)
    assert values["missing"]["LoRA, FedAvg of adapters"] == "2 of its trials and 2 of its runs"
    assert "ParaBlock, 5 blocks, int4: 1 of its runs" in markdown(values)


def test_a_run_that_is_cut_is_not_kept_and_is_repeated(starts: Any) -> None:
    assert len(starts.start(150 / 3600)) == 1
    cut = list(queue(WHOLE, lambda: []))[1]
    assert len(read_result(starts.folder / "frontier.json")["values"]["trials"]) == 1
    assert starts.start(150 / 3600) == [cut]


def test_a_run_that_fails_is_passed_over_and_repeated_by_the_next_start(starts: Any) -> None:
    second = Run("gsm8k", "lora", 1)
    starts.fails.add(str(second))
    assert second not in starts.start(None)
    assert [one["failed"] for one in read_result(starts.folder / "frontier.json")["values"]["runs"]].count(None) == 19
    starts.fails.clear()
    assert starts.start(None) == [second]


def test_a_run_that_would_end_too_late_is_not_started() -> None:
    trial = record(Run("gsm8k", "lora", 9, 1e-3), 1.0, wall_s=80.0, settings={"steps": 80})
    slower = record(Run("gsm8k", "fedavg", 9, 1e-4), 1.0, wall_s=160.0, settings={"steps": 80})
    assert expected_s(Run("gsm8k", "lora", 0), WHOLE, [trial, slower]) == 400.0
    assert expected_s(Run("gsm8k", "blocks_2", 0), WHOLE, [trial, slower]) == 800.0
    assert expected_s(Run("gsm8k", "lora", 0), WHOLE, [{"failed": "lost"}]) == 0.0


def test_a_method_that_names_another_uses_its_best_rate() -> None:
    trials = {Run("gsm8k", "lora", 9, rate): {"failed": None} for rate in (1e-3, 5e-4)}
    for rate, (one, made) in zip((1e-3, 5e-4), trials.items(), strict=True):
        made |= record(one, 1000 * rate)
    for name in ("lora", "lora_codec"):
        assert bench_frontier._learning_rate(Run("instruct", name, 0), trials) == 5e-4
    with pytest.raises(bench_frontier.RunFailedError, match="fedavg: no trial"):
        bench_frontier._learning_rate(Run("gsm8k", "fedavg_codec", 0), trials)


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_a_committed_model_is_there_once_everything_due_is_merged() -> None:
    compute, exchange = [2.0, 2.0, 2.0], [3.0, 1.0, 1.0]
    # Blocking: each round ends with its own exchange.
    assert planned(compute, exchange, 0).rounds_s == [5.0, 8.0, 11.0]
    # One round late: round 1 has computed at 4 and waits for round 0's exchange until 5; the last one is the drain.
    assert planned(compute, exchange, 1).rounds_s == [2.0, 5.0, 7.0]
    assert planned(compute, exchange, 1).drained_s == 8.0
    # Half a round late: what is due in the middle of a round has been waited for there.
    assert planned(compute, exchange, 0.5).rounds_s == [2.0, 6.0, 8.0]


def test_a_link_carries_its_nominal_rate_less_headers() -> None:
    assert link_s(20 * GOODPUT * 3, 20) == pytest.approx(3.0)


def test_step_times_are_medians_by_block() -> None:
    rounds = [["a", 2, 0], ["b", 1, 0], ["a", 1, 0]]
    run = {"rounds": rounds, "step_cpu_s": [[1.0, 9.0, 5.0, 2.0], [3.0, 2.0, 7.0, 2.0]], "plain_step_s": 2.0}
    assert step_times([run]) == {"a": 1.0, "b": 3.0}


def test_a_run_on_a_slower_machine_is_planned_as_on_the_median_one() -> None:
    quick, slow = reported("fedavg", 0, 1.0), reported("fedavg", 1, 1.0, step_cpu_s=[[4.5] * 32] * 2, plain_step_s=3.0)
    (row,) = table([quick, slow], [])
    assert (row["plain_step_s"], row["step_s"]) == (2.0, 3.0)
    (row,) = table([quick, slow], [], step_factor=0.5)
    assert (row["plain_step_s"], row["step_s"]) == (1.0, 1.5)


def test_a_loss_is_reached_when_its_model_is_there() -> None:
    run = reported("fedavg", 0, 1.0)
    plan = plan_of(run, {"a": 1.5, "b": 3.0}, 20)
    assert plan.rounds_s == [pytest.approx(24.0 + 950), pytest.approx(24.0 + 950 + 48 + 950)]
    curve = timed_curve(run, plan)
    assert [(step, loss) for _, step, loss in curve] == [(0, 1.8), (16, 1.2), (32, 1.0)]
    assert [reached(curve, limit_s) for limit_s in (973.0, 975.0, 1973.0)] == [(0, 1.8), (16, 1.2), (32, 1.0)]


def test_the_last_loss_of_a_delayed_run_is_there_after_the_drain() -> None:
    run = reported("blocks_1", 0, 1.0)
    run["settings"] = {"local_steps": 16, "delay_steps": 16}
    (_, first, last) = timed_curve(run, plan_of(run, {"a": 1.0, "b": 1.0}, 20))
    assert first[0] == 16.0 and last == (pytest.approx(16 + 2 * 950), 32, 1.0)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_peak_of_a_validation_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"VmHWM": 0}

    def forget() -> None:
        now["VmHWM"] = 1

    monkeypatch.setattr("benchmarks.frontier.job.resident_bytes", lambda field: now[field])
    monkeypatch.setattr("benchmarks.frontier.job.forget_peak", forget)
    trainer, watch, module = (
        argparse.Namespace(state=argparse.Namespace(fn="validate"), global_step=0),
        PeakWatch(),
        None,
    )
    steps: Any = watch
    for of_training, of_validation in ((5, 90), (7, 80), (6, 70)):
        steps.on_train_batch_start(trainer)
        now["VmHWM"] = max(now["VmHWM"], of_training)
        steps.on_validation_start(trainer, module)
        now["VmHWM"] = of_validation
        steps.on_validation_end(trainer, module)
    steps.on_train_end(trainer, module)
    assert watch.peak_bytes == 7


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_record_has_the_busiest_direction_and_the_largest_peak() -> None:
    other = client(rounds=[["a", 2, 15, 25], ["b", 2, 10, 10]], peak_bytes=9, sent_bytes=300)
    made = combined([client(), other], "gsm8k")
    assert made["rounds"] == [["a", 2, 25], ["b", 2, 40]]
    assert (made["peak_bytes"], made["sent_bytes"]) == (9, 200)
    assert made["held_out_loss"] == [[0, 9.0], [4, 5.0]] and made["other_loss"] == 4.0
    by_example = combined([client(), other], "instruct")
    assert by_example["held_out_loss"] == [[0, 8.0], [4, 4.0]] and by_example["other_loss"] == 5.0


def test_the_best_rate_is_that_of_the_lowest_loss_and_its_place_is_noted() -> None:
    trials = [record(Run("gsm8k", "fedavg", 9, rate), loss) for rate, loss in ((1e-4, 1.1), (5e-5, 1.3), (2e-4, 1.0))]
    assert best_rate(trials) == 2e-4
    (row,) = table([reported("fedavg", 0, 0.9, learning_rate=2e-4)], trials)
    assert row["final_loss_by_learning_rate"] == {"5e-05": 1.3, "0.0001": 1.1, "0.0002": 1.0}
    assert row["rate_at_edge"]
    (row,) = table([reported("fedavg", 0, 0.9, learning_rate=1e-4)], trials)
    assert not row["rate_at_edge"]
    with pytest.raises(ValueError, match="no trial"):
        best_rate([{"failed": "lost"}])


def test_a_row_has_both_seeds_and_what_they_reach() -> None:
    (row,) = table([reported("fedavg", 1, 0.8, peak_bytes=3e9), reported("fedavg", 0, 1.0)], [])
    assert (row["seeds"], row["final_losses"], row["mean_final_loss"]) == ([0, 1], [1.0, 0.8], pytest.approx(0.9))
    assert (row["peak_bytes"], row["step_s"], row["rounds"]) == (3e9, 1.5, 2)
    slow, fast = (row["links"][link]["reached"] for link in ("20mbit", "100mbit"))
    # Rounds of 24 s and 950 s at 20 Mbit/s, 190 s at 100.
    assert (slow["10"]["steps"], slow["10"]["mean_loss"], slow["10"]["has_ended"]) == ([0, 0], 1.8, False)
    assert (slow["30"]["steps"], slow["30"]["mean_loss"]) == ([16, 16], 1.2)
    assert slow["60"]["has_ended"] and slow["60"]["mean_loss"] == pytest.approx(0.9)
    assert fast["10"]["has_ended"] and row["links"]["100mbit"]["whole_run_s"] == pytest.approx(2 * (24 + 190))
    (row,) = table([reported("fedavg", 0, 1.0)], [], step_factor=10.0)
    assert row["links"]["100mbit"]["whole_run_s"] == pytest.approx(2 * (240 + 190))


def test_what_has_not_been_made_is_named() -> None:
    assert missing([], "whole")["FedAvg"] == "3 of its trials and 2 of its runs"
    every = [one for one in queue(WHOLE, lambda: ["lora", "fedavg"])]
    assert missing([record(one, 1.0) for one in every], "whole") == {}
    assert set(missing([record(one, 1.0) for one in every if one.data == "gsm8k"], "whole")) == {"instruction set"}
    failed = [record(one, 1.0, failed="lost" if one == every[-1] else None) for one in every]
    assert missing(failed, "whole") == {"FedAvg, int4": "1 of its runs"}


def test_a_target_counts_from_where_no_later_loss_is_above_it() -> None:
    curve = [[0.0, 0, 1.8], [60.0, 16, 0.9], [120.0, 32, 1.1], [180.0, 48, 1.0], [240.0, 64, 0.8]]
    assert first_below(curve, 1.0) == curve[3]
    assert first_below(curve, 2.0) == curve[0]
    assert first_below(curve, 0.7) is None


def test_the_target_is_the_loss_that_all_reach_and_each_has_its_minutes() -> None:
    runs = [reported("fedavg", 0, 1.0), reported("lora", 0, 1.3), reported("lora", 1, 1.0)]
    rows = {row["method"]: row for row in table([*runs, reported("fedavg_codec", 0, 1.5)], [])}
    assert {row["target_loss"] for row in rows.values()} == {1.3}
    to_target = {name: row["links"]["20mbit"]["to_target"] for name, row in rows.items()}
    assert to_target["fedavg"] == {"minutes": pytest.approx(974 / 60), "rounds": [1]}
    assert to_target["lora"] == {"minutes": pytest.approx(974 / 60), "rounds": [1, 1]}
    assert to_target["fedavg_codec"] is None
    said = markdown({"table": list(rows.values()), "missing": {}})
    assert "**GSM8K, 20 Mbit/s, minutes to 1.3000**: FedAvg 16.2, LoRA, FedAvg of adapters 16.2." in said


# --- what it says -----------------------------------------------------------------------------------------------------


def row(method: str, peak_bytes: float, losses: list[float]) -> dict[str, Any]:
    made = [reported(method, seed, loss, peak_bytes=peak_bytes) for seed, loss in enumerate(losses)]
    return table(made, [])[0]


def test_a_method_is_worth_its_memory_if_none_with_less_reaches_less() -> None:
    cell = Cell("100mbit", "60")
    rows = [
        row("fedavg", 4e9, [0.8]),
        row("lora", 1e9, [1.0]),
        row("blocks_2", 3e9, [1.1]),
        row("blocks_5", 2e9, [0.9]),
    ]
    assert [one["method"] for one in front(rows, cell)] == ["lora", "blocks_5", "fedavg"]
    best = [best_of(rows, trains, cell) for trains in ("model", "adapters")]
    assert [one and one["method"] for one in best] == ["fedavg", "lora"]
    assert best_of([], "model", cell) is None
    assert front([], cell) == []


def test_losses_whose_ranges_meet_may_be_chance() -> None:
    assert overlap([1.0, 1.2], [1.1, 1.3]) and overlap([1.0, 1.3], [1.1, 1.2])
    assert not overlap([1.0, 1.1], [1.2, 1.3])


def test_the_sentences_say_what_more_memory_buys_and_where_the_model_itself_is_ahead() -> None:
    rows = [row("lora", 1e9, [1.0, 1.02]), row("blocks_5", 2e9, [0.9, 0.92]), row("fedavg", 4e9, [0.91, 0.89])]
    said = markdown({"table": rows, "missing": {"FedAvg": "1 of its trials"}})
    lora, blocks = (
        "LoRA, FedAvg of adapters (1.0 GB) reaches 1.0100",
        "ParaBlock, 5 blocks, int4 (2.0 GB) reaches 0.9100",
    )
    assert f"**100 Mbit/s, 60 minutes**: with the least memory {lora}; for more, {blocks};" in said
    assert "FedAvg (4.0 GB) reaches 0.9000, within the spread of the seeds." in said
    others = rows[1], row("fedavg", 4e9, [0.8])
    assert [_doubt(rows[0], other, Cell("100mbit", "60")) for other in others] == ["", ", from one seed"]
    assert "60 min, FedAvg -10.9 % against LoRA, FedAvg of adapters" in said
    assert "a run that was over by then" in said and "4 bytes per parameter" in said
    assert "Not made yet: FedAvg: 1 of its trials." in said


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_picture_is_drawn_from_what_there_is(n: int) -> None:
    rows = [row("lora", 1e9, [1.0, 1.02]), row("blocks_5", 2e9, [0.9]), row("fedavg", 4e9, [0.91, 0.89])][:n]
    figure = draw({"table": rows, "missing": {"FedAvg": "2 of its runs"}})
    assert len(figure.axes) == len(RATES_MBIT) * len(MINUTES)
    assert "FedAvg: 2 of its runs" in figure.get_suptitle()
    assert json.dumps(rows)


def test_the_published_result_if_any_has_runs_of_the_queue_alone() -> None:
    path = RESULTS / "frontier.json"
    kept = kept_runs(path, WHOLE)
    assert set(kept) <= {Run(data, *key) for data in ("gsm8k", "instruct") for key in _keys()}


def _keys() -> set[tuple[str, int, float | None]]:
    return {(one.method, one.seed, one.trial_rate) for one in queue(WHOLE, lambda: list(MAIN))}
