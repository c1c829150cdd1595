"""A comparison without training: names, budgets, refusals, kept runs, and the table of made-up run folders."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.callbacks.byte_budget import ByteBudget
from lightning_parablock.callbacks.trace import chrome_trace
from lightning_parablock.cli import main
from lightning_parablock.cli.commands.compare import split_words
from lightning_parablock.comparing.limits import Limit, days_to_seconds, rank_steps_a_step
from lightning_parablock.comparing.methods import methods_of, seeds_of
from lightning_parablock.comparing.outcomes import Outcome, outcome_of, rows_of
from lightning_parablock.comparing.picture import draw_losses, line_of
from lightning_parablock.comparing.runs import PlannedRun, forget, is_finished, last_words
from lightning_parablock.comparing.tables import csv_text, markdown, screen_table, write_tables
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.planning.traffic import rounds_within, traffic_of_clients
from lightning_parablock.records import RoundRecord
from lightning_parablock.report.console import console
from lightning_parablock.settings import Settings

CONFIGURATION: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 8, "max_epochs": None, "accumulate_grad_batches": 2},
    "data": {"init_args": {"batch_size": 3}},
}


# --- methods and options ----------------------------------------------------------------------------------------------


def test_a_method_is_an_overlay_by_name_or_a_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("strategy: fedavg\n")
    fedit, mine = methods_of(f" FedIT, {own}")
    assert (fedit.name, mine.name) == ("fedit", "mine")
    assert fedit.words[0] == "--config" and fedit.words[1].endswith("configs/methods/fedit.yaml")
    assert mine.words == ("--config", str(own))


def test_overlays_beside_the_user_come_first_and_presets_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs" / "methods").mkdir(parents=True)
    (tmp_path / "configs" / "methods" / "relay.yaml").write_text("strategy: fedbcd\n")
    monkeypatch.setattr("lightning_parablock.comparing.methods.PACKAGED", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    relay, diloco = methods_of("relay,diloco")
    assert relay.words == ("--config", "configs/methods/relay.yaml")
    assert diloco.words == ("--strategy", "diloco")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("parablok", "'parablok' is not known.*did you mean 'parablock'"),
        ("fedavg,FedAvg", "'fedavg' is named twice"),
        (" , ", "names no method; choose from diloco"),
        ("configs/methods/fedavgg.yaml", "does not exist; .*did you mean 'fedavg.yaml'"),
    ],
)
def test_methods_that_are_refused(listed: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        methods_of(listed)


def test_seeds() -> None:
    assert seeds_of("0, 2,11") == [0, 2, 11]
    for bad in ("", "a", "0,-1", "1,1"):
        with pytest.raises(ConfigurationError, match="seed"):
            seeds_of(bad)


def test_words_are_compares_own_or_go_to_every_fit() -> None:
    args = [
        "--out",
        "x",
        "--config",
        "a.yaml",
        "--equal=bytes",
        "--overwrite",
        "--model.layers",
        "2",
        "--config=b.yaml",
    ]
    own, passed = split_words(args)
    assert own == ["--out", "x", "--equal=bytes", "--overwrite"]
    assert passed == ["--config", "a.yaml", "--model.layers", "2", "--config=b.yaml"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--stategies", "fedavg"], "option --stategies is not known; did you mean --strategies?"),
        (["--confg", "a.yaml"], "did you mean --config?"),
        (["--strategy", "fedavg"], "--strategy is not an option of compare: name the methods with --strategies"),
        (["--run_dir=x"], "give --out"),
        (["--equal", "time"], "--equal must be one of 'samples', 'seconds', 'bytes', got 'time'"),
        (["--equal", "seconds"], "--equal seconds needs --budget, such as 600 or 10min"),
        (["--budget", "3 MB"], "budget must be a number more than 0, got '3 MB'"),
        (["--equal", "bytes", "--budget", "3 mibi"], "unit 'mibi'"),
        (["--points", "-1"], "points must be >= 0"),
        (["--model.model", "x"], "how many clients? give --trainer.devices 2"),
        (["--model.model", "x", "--trainer.devices", "2"], "how long does each method train?"),
        (["--model.model", "x", "--trainer.devices", "2", "--trainer.num_nodes", "2"], "on this machine alone"),
        (["--model.model", "x", "--trainer.max_stps", "2"], "did you mean --trainer.max_steps?"),
        (["--model.model", "x", "--trainer.devices", "2", "--strategy.local_steps", "0"], "local_steps must be"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    try:
        code: Any = main(["compare", *args])
    except SystemExit as end:
        code = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, said in line, line.startswith("error: ")) == (2, True, True), line
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_started_by_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert main(["compare"]) == 2
    assert "start it once, without torchrun" in capsys.readouterr().err


def test_the_command_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--help"])
    assert end.value.code == 0
    assert "--strategies" in capsys.readouterr().out


# --- budgets ----------------------------------------------------------------------------------------------------------


def options(words: list[str]) -> dict[str, str]:
    return {name.removeprefix("--trainer."): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_samples_as_configured_or_as_many_whole_steps_as_fit() -> None:
    assert Limit.of("samples", None, 0).words(CONFIGURATION) == []
    found = options(Limit.of("samples", "31", 0).words(CONFIGURATION))
    assert found == {"max_steps": "5", "max_epochs": "-1"}  # of 3 x 2 samples each
    with pytest.raises(ConfigurationError, match="less than one step's 6"):
        Limit.of("samples", "5", 0).words(CONFIGURATION)
    with pytest.raises(ConfigurationError, match=r"batch_size; give --trainer\.max_steps"):
        Limit.of("samples", "31", 0).words({**CONFIGURATION, "data": None})


@pytest.mark.parametrize(
    ("strategy", "devices", "expected"),
    [
        ({}, 4, 1),
        ({"cohort": 1}, 4, 4),  # a relay of four clients on four ranks
        ({"cohort": 2, "clients": 4}, 1, 4),  # two turns per round, in half of the rounds
        ({"clients": 8}, 2, 4),  # four turns per round
        ({"clients": 8, "cohort": 2}, 2, 8),
    ],
)
def test_where_clients_take_turns_ranks_make_more_steps_for_equal_samples(
    strategy: dict[str, Any], devices: int, expected: int
) -> None:
    trainer = {**CONFIGURATION["trainer"], "devices": devices, "strategy": {"init_args": strategy}}
    found = {**CONFIGURATION, "trainer": trainer}
    assert rank_steps_a_step(found) == expected
    words = Limit.of("samples", None, 0).words(found)
    assert words == ([] if expected == 1 else ["--trainer.max_steps", str(8 * expected)])


def test_seconds_and_bytes_replace_the_configured_steps() -> None:
    seconds = options(Limit.of("seconds", "1.5h", 0).words(CONFIGURATION))
    assert seconds == {"max_time": "00:01:30:00", "max_steps": "-1", "max_epochs": "-1"}
    sent = options(Limit.of("bytes", "2.5MB", 0).words(CONFIGURATION))
    assert (sent["callbacks.budget_bytes"], sent["max_steps"]) == ("2500000", "-1")
    assert [days_to_seconds(s) for s in (0.2, 59.1, 90_061)] == ["00:00:00:01", "00:00:01:00", "01:01:01:01"]


def test_held_out_losses_on_the_way() -> None:
    found = options(Limit.of("samples", None, 3).words(CONFIGURATION))
    assert found == {"val_check_interval": "4", "check_val_every_n_epoch": "null"}  # every 2 steps of 2 batches
    own = {**CONFIGURATION, "trainer": {**CONFIGURATION["trainer"], "val_check_interval": 7}}
    assert Limit.of("samples", None, 3).words(own) == []
    unknown = {**CONFIGURATION, "trainer": {"max_steps": -1, "max_epochs": 1}}
    assert options(Limit.of("samples", None, 3).words(unknown))["val_check_interval"] == "100"


@pytest.mark.parametrize(
    ("equal", "budget", "interval"),
    [
        ("samples", "600", "50"),  # 100 steps of 3 x 2 samples: a point after each 25 of them, of 2 batches each
        ("samples", "24", "2"),
        ("seconds", "10min", "200"),
        ("bytes", "2MB", "200"),
    ],
)
def test_points_are_spread_over_the_budget_and_not_over_the_configured_steps(
    equal: Any, budget: str, interval: str
) -> None:
    assert options(Limit.of(equal, budget, 3).words(CONFIGURATION))["val_check_interval"] == interval


@pytest.mark.parametrize(("equal", "budget"), [("samples", None), ("samples", "31"), ("bytes", "2MB")])
def test_a_time_limit_makes_nothing_else_equal(equal: Any, budget: str | None) -> None:
    timed = {**CONFIGURATION, "trainer": {**CONFIGURATION["trainer"], "max_time": "00:00:05:00"}}
    with pytest.raises(ConfigurationError, match=f"before it has had as many {equal} as the others; leave it out"):
        Limit.of(equal, budget, 0).words(timed)
    assert options(Limit.of("seconds", "60", 0).words(timed))["max_time"] == "00:00:01:00"


@pytest.mark.parametrize("order", ["sequential", "shuffle", "random"])
@pytest.mark.parametrize(("topology", "n_clients"), [("star", 3), ("sharded", 2)])
def test_a_budget_of_bytes_is_as_many_whole_rounds_as_fit(order: Any, topology: Any, n_clients: int) -> None:
    settings = Settings(block_order=order, topology=topology, seed=5)
    numels = [70_000, 1_000, 300_000]
    budget_bytes = 5_000_000

    def sent(rounds: int) -> float:
        blocks = [numels[block_of_round(order, 3, t, 5)] for t in range(rounds)]
        traffic = [t.upload_bytes for numel in blocks for t in traffic_of_clients(numel, n_clients, settings)]
        return sum(traffic) / n_clients

    rounds = rounds_within(budget_bytes, numels, n_clients, settings)
    assert sent(rounds) <= budget_bytes < sent(rounds + 1)


def test_budgets_of_bytes_that_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"less than the .* a client sends in the first round"):
        rounds_within(10, [1000], 2, Settings())
    with pytest.raises(ConfigurationError, match="one alone sends nothing"):
        rounds_within(10, [1000], 1, Settings())
    with pytest.raises(ConfigurationError, match="budget_bytes must be >= 1"):
        ByteBudget(0)
    open_codec = SimpleNamespace(round_records=[], settings=Settings(compression="auto"), takes_turns=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="with compression='auto' it would; give compression a name"):
        ByteBudget(10).on_train_start(SimpleNamespace(strategy=open_codec), None)  # type: ignore[arg-type]


# --- run folders ------------------------------------------------------------------------------------------------------


def made_up(
    out: Path, method: str, seed: int, *, after: float = 1.0, state: str = "finished", rounds: int = 2
) -> PlannedRun:
    """What two clients would have left that made 4 steps per round of one second and sent a megabyte each."""
    run = PlannedRun(method, seed, (), {**CONFIGURATION, "seed_everything": seed}, out / f"{method}-seed{seed}")
    run.folder.mkdir(parents=True)
    records = [
        RoundRecord(
            round=t, block="all", client=client, steps=4, start_s=100.0 + 2 * t, end_s=101.0 + 2 * t, compute_s=1.0,
            exchange_s=0.5, exposed_s=0.25, wait_peer_s=0.0, upload_bytes=1_000_000, download_bytes=1_000_000,
            exchange_start_s=101.0 + 2 * t, exchange_ready_s=101.0 + 2 * t, exchange_end_s=101.5 + 2 * t, samples=24,
        )
        for t in range(rounds) for client in range(2)
    ]  # fmt: skip
    result = {
        "loss_before": {"val_perplexity": 7.4, "val_loss": 2.0}, "loss_after": {"val_loss": after},
        "clients": 2, "clients_told": 2, "rounds": rounds, "steps": 4 * rounds, "upload_bytes": 2_000_000 * rounds,
        "fit_s": 60.0, "hidden_share": 0.5,
    }  # fmt: skip
    manifest = {"state": state, "configuration": {**run.configuration, "run_dir": "elsewhere"}, "result": result}
    manifest["strategy"] = {"settings": {"local_steps": "4"}}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    (run.folder / "timeline.json").write_text(json.dumps(chrome_trace(records)))
    (run.folder / "metrics.csv").write_text(f"step,val_loss\n0,2.0\n3,1.5\n7,1.1\n8,{after}\n")
    return run


def test_an_outcome_is_read_from_a_run_folder(tmp_path: Path) -> None:
    one = outcome_of(made_up(tmp_path, "fedavg", 0), finished=True)
    assert (one.loss_before, one.loss_after, one.samples, one.rounds, one.sent_mb) == (2.0, 1.0, 48, 2, 2.0)
    assert (one.hidden_share, one.error) == (0.5, None)
    assert one.seconds == pytest.approx(3.5)
    # before, after the 4 steps of round 0, and at the end; the validation of step 8 came before the last exchange
    assert [(p.steps, p.loss) for p in one.curve] == [(0, 2.0), (4, 1.5), (8, 1.0)]
    assert line_of(one.curve, "seconds")[0] == pytest.approx([0.0, 2.0, 3.5])
    assert line_of(one.curve, "sent_mb") == ([0.0, 1.0, 2.0], [2.0, 1.5, 1.0])
    assert line_of(one.curve, "samples")[0] == [0.0, 24.0, 48.0]


def changed(run: PlannedRun, n_rounds: int, **result: Any) -> Outcome:
    """Of the run with only the first of its rounds, and these results."""
    manifest = json.loads((run.folder / "manifest.json").read_text())
    manifest["result"] |= result
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    trace = json.loads((run.folder / "timeline.json").read_text())
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e["args"].get("round", 0) < n_rounds]
    (run.folder / "timeline.json").write_text(json.dumps(trace))
    return outcome_of(run, finished=True)


def test_clients_that_idle_or_never_train_count_in_the_means(tmp_path: Path) -> None:
    """Two of four clients had a round of 24 samples and a megabyte each."""
    one = changed(made_up(tmp_path, "fedavg", 0), 1, clients=4, clients_told=4, upload_bytes=2_000_000)
    assert (one.samples, one.sent_mb) == (12.0, 0.5)
    assert line_of(one.curve, "sent_mb")[0][-1] == 0.5


def test_of_clients_that_share_nothing_the_first_ones_figures_stand(tmp_path: Path) -> None:
    run = made_up(tmp_path, "fedavg", 0)
    trace = json.loads((run.folder / "timeline.json").read_text())
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e["pid"] == 0]
    (run.folder / "timeline.json").write_text(json.dumps(trace))
    one = changed(run, 2, clients_told=1, upload_bytes=2_000_000)
    assert (one.samples, one.sent_mb) == (48.0, 2.0)
    assert line_of(one.curve, "sent_mb") == ([0.0, 1.0, 2.0], [2.0, 1.5, 1.0])


def test_a_message_in_brackets_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "error: [/gloo/pair.cc:534] [rank0] closed"
    rows = rows_of([Outcome("fedit", 0, tmp_path, error=said)])
    console(400).print(screen_table("equal samples", rows))
    assert f"seed 0: {said}" in capsys.readouterr().out


def test_the_table_has_means_over_seeds_and_tells_errors(tmp_path: Path) -> None:
    runs = [made_up(tmp_path, "fedavg", 0, after=1.0), made_up(tmp_path, "fedavg", 1, after=1.2)]
    outcomes = [outcome_of(run, finished=True) for run in runs]
    outcomes.append(Outcome("fedit", 0, tmp_path / "fedit-seed0", error="error: a | b"))
    rows = rows_of(outcomes)
    text = markdown("equal samples", rows)
    assert "| fedavg | 0, 1 | 2.0000 ± 0.0000 | 1.1000 ± 0.1414 | 48 | 3.5 | 2.00 | 2 | 50% |  |" in text
    assert "| fedit |  |  |  |  |  |  |  |  | seed 0: error: a \\| b |" in text
    fedavg, fedit = csv.DictReader(io.StringIO(csv_text(rows)))
    assert float(fedavg["loss_after_mean"]) == pytest.approx(1.1)
    assert float(fedavg["loss_after_sd"]) == pytest.approx(0.02**0.5)
    assert (fedit["loss_after_mean"], fedit["error"]) == ("", "seed 0: error: a | b")
    assert "| error |" not in markdown("equal samples", rows[:1])
    write_tables(tmp_path, "equal samples", outcomes, rows)
    draw_losses(outcomes, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    raw = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [one["method"] for one in raw] == ["fedavg", "fedavg", "fedit"] and len(raw[0]["curve"]) == 3


def test_a_finished_run_is_kept_only_for_the_same_configuration(tmp_path: Path) -> None:
    run = made_up(tmp_path, "fedavg", 0)
    assert is_finished(run)
    changed = {**run.configuration, "trainer": {**run.configuration["trainer"], "max_steps": 9}}
    with pytest.raises(ConfigurationError, match=r"trainer.max_steps was 8 and is 9; name another --out, or"):
        is_finished(PlannedRun("fedavg", 0, (), changed, run.folder))
    assert not is_finished(made_up(tmp_path, "fedavg", 1, state="interrupted: Ctrl-C"))
    run.log.write_text("x")
    forget(run)
    assert not is_finished(run) and not run.log.exists()


def test_the_last_words_of_a_failed_run(tmp_path: Path) -> None:
    run = PlannedRun("fedavg", 0, (), {}, tmp_path / "fedavg-seed0")
    assert last_words(run) == "it said nothing"
    run.log.write_text("round 1\nerror: the toy broke\nbye\n\n")
    assert last_words(run) == "error: the toy broke"
    run.log.write_text("Traceback\nKilled\n")
    assert last_words(run) == "Killed"
