"""The benchmark of the paper's claim: its queue, its planned seconds and its table, on made-up runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_claims
from benchmarks.claims import data as claims_data
from benchmarks.claims.figures import combined, markdown, table
from benchmarks.claims.methods import (
    BATCH_SIZE,
    CELLS,
    EXTRAS,
    LEADING,
    METHODS,
    OTHERS,
    SIZES,
    TRIAL_SEED,
    Method,
    Run,
    queue,
)
from benchmarks.harness import sets
from benchmarks.harness.planned import planned
from benchmarks.harness.rate_search import best_rate
from benchmarks.harness.results import RESULTS, write_result
from lightning_parablock.data.partition import partition_dirichlet
from lightning_parablock.planning.timing import round_times


def run(method: str, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    facts = {"size": "cut", "data": "gsm8k", "partition": "iid", "method": method, "seed": seed, "failed": None}
    measured = {"learning_rate": 1e-3, "planned_s": 10.0, "sent_bytes": 4e6, "held_out_loss": [[0, 9.0], [80, loss]]}
    return facts | measured | other


def client(rounds: list[list[Any]], cpu_s: list[float], **other: Any) -> dict[str, Any]:
    """A client's answer as it comes back from JSON: the keys of its steps are texts."""
    return {
        "rounds": rounds,
        "step_cpu_s": {str(step): seconds for step, seconds in enumerate(cpu_s)},
        "held_out_loss": [[0, 9.0, 8.0], [4, 5.0, 4.0]],
        "examples": 8,
        "sent_bytes": 100,
        "received_bytes": 100,
        "block_scalars": {"a": 5},
        "rows_per_client": [4, 4],
        "seconds": 1.0,
    } | other


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_most_telling_runs_come_first() -> None:
    reported = [one for one in queue("cut") if one.trial_rate is None]
    n_cells, n_leading, n_extras, n_others = len(CELLS), len(LEADING), len(EXTRAS), len(OTHERS)
    wanted = (LEADING, EXTRAS, LEADING, OTHERS, EXTRAS)
    lengths = [n_cells * n_leading, n_extras, 2 * n_cells * n_leading, 3 * n_cells * n_others, 2 * n_extras]
    assert sum(lengths) == len(reported)
    for methods, length in zip(wanted, lengths, strict=True):
        part, reported = reported[:length], reported[length:]
        assert {one.method for one in part} == set(methods)
        assert [one.seed for one in part] == sorted(one.seed for one in part)


def test_every_run_is_queued_once() -> None:
    runs = [one for size in SIZES for one in queue(size)]
    assert len({str(one) for one in runs}) == len(runs) == len(set(runs))
    main = [one for one in queue("cut") if one.trial_rate is None and one.method not in EXTRAS]
    assert len(main) == len(CELLS) * 5 * 3


def test_trials_stand_before_the_first_run_of_their_method_and_have_a_seed_that_is_not_reported() -> None:
    runs = queue("cut")
    for name, method in METHODS.items():
        trials = [one for one in runs if one.method == name and one.trial_rate]
        assert [one.trial_rate for one in trials] == list(method.learning_rates)
        assert all(one.seed == TRIAL_SEED for one in trials)
        first = next(place for place, one in enumerate(runs) if one.method == name and one.trial_rate is None)
        assert all(runs.index(one) < first for one in trials)
    assert all(TRIAL_SEED not in size.seeds for size in SIZES.values())


@pytest.mark.parametrize("size", ["whole", "cut_40", "cut_160", "cut_320"])
def test_the_whole_model_and_other_numbers_of_steps_have_one_pair_a_seed(size: str) -> None:
    assert [(one.method, one.data, one.partition, one.seed) for one in queue(size)] == [
        (method, "gsm8k", "iid", seed) for seed in SIZES[size].seeds for method in ("fedbcd", "parablock")
    ]


def test_every_row_without_a_learning_rate_of_its_own_finds_one_by_its_baselines() -> None:
    fedbcd = Run("cut", "gsm8k", "iid", "fedbcd", TRIAL_SEED, 1e-3)
    done = {
        fedbcd: run("fedbcd", TRIAL_SEED, 6.0, learning_rate=1e-3),
        replace(fedbcd, trial_rate=3e-3): run("fedbcd", TRIAL_SEED, 5.0, learning_rate=3e-3),
        replace(fedbcd, method="fedavg", trial_rate=1e-4): run("fedavg", TRIAL_SEED, 4.0, learning_rate=1e-4),
    }
    rate_of = bench_claims._learning_rate
    for name in (*LEADING, *EXTRAS):
        expected = 1e-3 if name.endswith("slow") else 3e-3
        assert rate_of(Run("cut", "instruct", "iid", name, 0), done) == pytest.approx(expected)
    assert rate_of(Run("cut", "gsm8k", "iid", "fedavg", 0), done) == 1e-4
    assert rate_of(Run("cut", "gsm8k", "iid", "fedavg", 9, 7e-3), done) == 7e-3
    with pytest.raises(bench_claims.RunFailedError, match="lora: no trial"):
        rate_of(Run("cut", "gsm8k", "iid", "lora", 0), done)


def test_finished_runs_of_a_result_file_are_kept_and_failed_ones_are_not(tmp_path: Path) -> None:
    finished, trial = run("fedbcd", 0, 4.0, trial_rate=None), run("lora", TRIAL_SEED, 5.0, trial_rate=1e-3)
    failed = {**run("fedavg", 0, 4.0, trial_rate=None), "failed": "a client was lost"}
    path = write_result(
        "claims", configuration={}, seeds=[0], network={}, values={"runs": [finished, failed], "trials": [trial]},
        directory=tmp_path,
    )  # fmt: skip
    cell = ("cut", "gsm8k", "iid")
    kept = bench_claims.kept_runs(path)
    assert kept == {Run(*cell, "fedbcd", 0): finished, Run(*cell, "lora", TRIAL_SEED, 1e-3): trial}
    assert bench_claims.kept_runs(tmp_path / "none.json") == {}


def test_the_runs_of_the_published_result_are_all_in_the_queue() -> None:
    kept = bench_claims.kept_runs(RESULTS / "claims.json")
    assert kept and set(kept) <= {one for size in SIZES for one in queue(size)}


# --- what cannot be run -----------------------------------------------------------------------------------------------


def test_a_method_names_the_options_that_this_version_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Method("", strategy={"delay_steps": 0}, model={"layers": 1}).missing() == []
    later = Method("", strategy={"delay_steps": 0, "tomorrow": 1}, model={"never": 2})
    assert later.missing() == ["tomorrow", "never"]
    monkeypatch.setitem(METHODS, "fedavg", later)
    found = bench_claims.missing_of(queue("cut"), {"instruct": "name its files"})
    assert found["fedavg"] == "this version has no option tomorrow, never"
    assert found["instruct"] == "name its files"
    assert "parablock" not in found and "gsm8k" not in found


def test_without_its_files_the_instruction_set_is_missing() -> None:
    options = argparse.Namespace(instruct_train_file="rows.jsonl", instruct_test_file="")
    assert set(sets.missing(options)) == {"instruct"}
    options.instruct_test_file = "others.jsonl"
    assert sets.missing(options) == {}


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_question_is_labelled_by_its_calculations(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [{"question": "q", "answer": "<<1+1=2>> " * n} for n in (0, 2, 30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = argparse.Namespace(
        train_file=str(tmp_path / "train.jsonl"),
        test_file=str(tmp_path / "test.jsonl"),
        instruct_train_file="",
        instruct_test_file="",
    )
    (scratch := tmp_path / "scratch").mkdir()
    sources = claims_data.sources(options, scratch)
    assert list(sources) == ["gsm8k"]
    written = [json.loads(line) for line in Path(sources["gsm8k"]["source"]).read_text().splitlines()]
    assert [row[sources["gsm8k"]["label_field"]] for row in written] == ["0", "2", "8"]


def test_the_reported_seeds_give_each_client_as_many_rows_as_its_steps_take() -> None:
    # The labels' numbers of rows in both training sets, in the order in which the partition takes them.
    gsm8k = {"0": 95, "1": 404, "2": 2175, "3": 2137, "4": 1424, "5": 785, "6": 287, "7": 123, "8": 43}
    instruct = {f"task {number:02}": 220 for number in range(19)}
    for counts in (gsm8k, instruct):
        labels = [label for label, count in counts.items() for _ in range(count)]
        for seed in SIZES["cut"].seeds:
            sizes = [len(share) for share in partition_dirichlet(labels, 4, claims_data.ALPHA, seed)]
            assert min(sizes) >= SIZES["cut"].steps * BATCH_SIZE


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_planned_seconds_are_the_planners() -> None:
    compute, exchange = [2.0, 3.0, 1.0, 2.0], [1.0, 4.0, 2.0, 5.0]
    times = round_times(compute, exchange)
    assert planned(compute, exchange, 0).drained_s == pytest.approx(4 * times.blocking_s)
    # max(C, M) between the first computation and the last exchange
    assert planned(compute, exchange, 1).drained_s == pytest.approx(2.0 + 3 * times.parablock_s + 5.0)


def test_two_exchanges_in_flight_share_one_link() -> None:
    # Half a round late: computation ends at 2, 4 (the exchange has come at 3), 6, 8; the last exchange at 9.
    assert planned([2.0] * 4, [1.0] * 4, 0.5).drained_s == 9.0
    # Half of a second round is done at 3, it waits for the exchange until 5, and ends at 6; the next ones likewise.
    assert planned([2.0] * 4, [3.0] * 4, 0.5).drained_s == 2.0 + 3 * 4.0 + 3.0
    # Rounds end at 1, 2, 3 (the first exchange has come at 3), 5 (the second one); exchanges end at 3, 5, 7, 9.
    assert planned([1.0] * 4, [2.0] * 4, 2).drained_s == 9.0
    assert planned([2.0] * 4, [3.0, 0.1, 0.1, 0.1], 2).drained_s < planned([2.0] * 4, [3.0, 0.1, 0.1, 0.1], 1).drained_s


def test_a_record_has_the_slowest_client_and_the_busiest_direction_of_each_round() -> None:
    first = client([[0, "a", 2, 95e5, 0, 0.5], [1, "b", 2, 95e5, 0, None]], [1.0, 1.0, 3.0, 3.0])
    other = client([[0, "a", 2, 19e6, 38e6, 1.5], [1, "b", 2, 0, 0, 1.0]], [2.0, 2.0, 1.0, 1.0], sent_bytes=300)
    facts = {"data": "gsm8k", "local_steps": 2, "delay_steps": 0}
    record = combined([first, other], facts, turns=1)
    assert record["compute_s"] == [4.0, 6.0]
    assert record["exchange_s"] == [pytest.approx(3.2), pytest.approx(0.8)]  # 38 MB and 9.5 MB at 95 Mbit/s
    assert record["planned_s"] == pytest.approx(14.0)
    assert (record["sent_bytes"], record["upload_bytes"]) == (200, 19e6)
    assert record["drift"] == 1.0
    assert record["held_out_loss"] == [[0, 9.0], [4, 5.0]] and record["other_loss"] == 4.0
    by_example = combined([first, other], facts | {"data": "instruct"}, turns=2)
    assert by_example["held_out_loss"] == [[0, 8.0], [2, 4.0]] and by_example["other_loss"] == 5.0


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_best_rate_is_that_of_the_lowest_final_loss() -> None:
    trials = [run("fedbcd", 9, loss, learning_rate=rate) for loss, rate in ((6.0, 1e-4), (5.0, 1e-3), (7.0, 1e-2))]
    assert best_rate([*trials, {"failed": "no host"}]) == 1e-3
    with pytest.raises(ValueError, match="no trial"):
        best_rate([{"failed": "no host"}])


def test_losses_are_compared_seed_by_seed_with_their_own_baseline() -> None:
    runs = [run("fedbcd", 0, 5.0), run("fedbcd", 1, 4.0), run("parablock", 0, 5.05), run("parablock", 1, 4.0)]
    runs += [run("fedbcd_k8", 0, 4.0), run("parablock_k8", 0, 4.4), {"failed": "no host"}]
    rows = {row["method"]: row for row in table(reversed(runs))}
    assert rows["fedbcd"]["over_baseline_percent"] == [] and rows["fedbcd"]["close"] is None
    assert sorted(rows["parablock"]["over_baseline_percent"]) == [pytest.approx(0.0), pytest.approx(1.0)]
    assert rows["parablock"]["close"] is True
    assert rows["parablock"]["spread"] == pytest.approx(1.05 / 2**0.5)
    assert rows["parablock_k8"]["over_baseline_percent"] == [pytest.approx(10.0)]
    assert rows["parablock_k8"]["close"] is False and rows["parablock_k8"]["spread"] is None
    assert rows["fedbcd_k8"]["over_baseline_percent"] == [pytest.approx(-20.0)]  # FedBCD's own K against the base's


def test_a_seed_that_the_baseline_lacks_is_in_the_mean_but_compared_with_nothing() -> None:
    row = table([run("fedbcd", 0, 5.0), run("parablock", 0, 6.0), run("parablock", 1, 4.0)])[1]
    assert (row["mean_loss"], row["over_baseline_percent"]) == (5.0, [pytest.approx(20.0)])


def test_the_table_in_markdown_says_which_loss() -> None:
    runs = [run("fedbcd", 0, 5.0), run("parablock", 0, 5.05, drift=1.5), run("parablock", 0, 3.0, data="instruct")]
    text = markdown(table(runs))
    assert "| gsm8k, iid, cut model: loss by token |" in text
    assert "| instruct, iid, cut model: loss by example |" in text
    assert "| ParaBlock | 0.001 | 5.0500 |  | 1 | +1.0 % (+1.0 to +1.0) | 1.50 | 10 | 4 |" in text
