"""``lightning-parablock plan`` as a user types it: tables, a file that fit takes, and one line for a mistake."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.cli import main
from lightning_parablock.cli.commands.plan_options import PlanOptions
from lightning_parablock.cli.configuration import read_configuration
from lightning_parablock.models.lora import Adapters
from lightning_parablock.models.shapes import config_of, module_without_weights
from lightning_parablock.planning.choice import choose_local_steps
from lightning_parablock.planning.fitting import Budget, fewest_blocks, fit_of
from lightning_parablock.planning.memory import ModelSize
from lightning_parablock.planning.timing import Links
from lightning_parablock.planning.traffic import traffic_of_clients
from lightning_parablock.planning.variants import Variant, Workload, reason, recommended, variants
from lightning_parablock.report.dry_run import mb
from lightning_parablock.report.plan import ROWS, Premises, print_plan, settings_yaml
from lightning_parablock.settings import COMPRESSIONS, Int4, NoCompression, Settings, Sparse, TopK
from tests.unit.tiny_text import save_tiny_llama, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), hidden_size=64, intermediate_size=128)


def run(*args: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-parablock"])
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        try:
            return main(["plan", *args])
        except SystemExit as ended:
            return int(str(ended.code))


def test_a_plan_and_the_file_that_fit_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", ["llama3-8b"])
    output = tmp_path / "deep" / "plan.yaml"
    words = ["--model", str(folder), "--clients", "3", "--rate", "10mbit", "--step_s", "0.004", "--local_steps", "4"]
    assert run(*words, "--blocks", "2", "--dtype", "bfloat16", "--output", str(output)) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "clients 3",
        "9.5 Mbit/s each way (95% of the rate given)",
        "0.004 s per step, as given",
        "16,384 tokens (16 x 1 x 1024), bfloat16 weights",
        "2 blocks, ",
        "float32 master copy of the active block",
        "llama3-8b, 10 ",
        "llama3-8b, 1,000 ",
        f"settings: {output}",
    ):
        assert expected in text, expected
    strategy = yaml.safe_load(output.read_text())["strategy"]
    assert strategy["blocks"] == 2
    assert yaml.safe_load(output.read_text())["trainer"] == {"precision": "bf16-true", "accumulate_grad_batches": 16}
    assert f"compression: {strategy['compression']}" in text

    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"row {i} of many"} for i in range(30)])
    data = ["--data.source", str(source), "--data.sequence_length", "8"]
    fit = ["fit", "--config", str(output), "--model.model", str(folder), *data, "--dry-run"]
    assert main([*fit, "--trainer.accelerator", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "blocks 2" in said
    assert f"local steps {strategy['local_steps']} optimizer steps" in said


def test_what_was_planned_for_is_in_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    output = tmp_path / "plan.yaml"
    given = ["--lora_rank", "2", "--lora_targets", r".*\.(q|v)_[a-z]+", "--server_optimizer", "nesterov"]
    given += ["--chunk_bytes", "4096", "--seed", "5", "--delay_warmup_rounds", "3"]
    assert run("--model", str(folder), "--rate", "1gbit", "--step_s", "1", *given, "--output", str(output)) == 0
    said = capsys.readouterr().out
    assert r".*\.(q|v)_[a-z]+" in said  # and not taken for markup
    said_of_delay = r"the first 3 rounds wait for theirs: \S+ \w+ more in the whole run, at K = 16"
    assert re.search(said_of_delay, " ".join(said.split()))
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"row {i} of many"} for i in range(30)])
    data = ["--data.source", str(source), "--data.sequence_length", "8", "--trainer.accelerator", "cpu"]
    configuration = read_configuration(["fit", "--config", str(output), "--model.model", str(folder), *data])
    strategy = configuration["trainer"]["strategy"]["init_args"]
    planned = {name: strategy[name] for name in ("server_optimizer", "chunk_bytes", "seed", "delay_warmup_rounds")}
    assert planned == {"server_optimizer": "nesterov", "chunk_bytes": 4096, "seed": 5, "delay_warmup_rounds": 3}
    model = configuration["model"]["init_args"]
    assert (model["lora_rank"], model["lora_targets"]) == (2, r".*\.(q|v)_[a-z]+")


@pytest.mark.parametrize(
    ("words", "said", "batches"),
    [
        ("--tokens_per_step 8 --sequence_length 8", "8 tokens (1 x 8)", None),
        ("--tokens_per_step 32 --sequence_length 8 --batch_size 2", "32 tokens (2 x 2 x 8)", 2),
        ("--tokens_per_step 33 --sequence_length 8 --batch_size 2", "48 tokens (3 x 2 x 8)", 3),  # whole batches
        ("--tokens_per_step 1 --sequence_length 8 --batch_size 2", "16 tokens (2 x 8)", None),
    ],
)
def test_a_step_takes_as_many_batches_as_its_tokens_need(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    said: str,
    batches: int | None,
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    output = tmp_path / "plan.yaml"
    assert run("--model", str(folder), "--rate", "1gbit", *words.split(), "--output", str(output)) == 0
    assert f" {said}, float32 weights" in " ".join(capsys.readouterr().out.split())
    trainer = yaml.safe_load(output.read_text()).get("trainer", {})
    assert trainer.get("accumulate_grad_batches") == batches


def test_a_step_of_more_tokens_takes_longer_in_proportion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Workload] = []
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.print_plan", lambda *of: planned.append(of[3].workload))
    for tokens in ("8", "32"):
        words = ["--model", str(folder), "--rate", "1gbit", "--sequence_length", "8", "--tokens_per_step", tokens]
        assert run(*words) == 0
    one, four = (work.step_s for work in planned)
    assert four == tuple(4 * step_s for step_s in one)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_blocks_that_fit_into_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    shown: list[list[Variant]] = []
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.print_plan", lambda *of: shown.append(of[2]))
    module, output = module_without_weights(config_of(str(folder))), tmp_path / "plan.yaml"
    exact, lossy = (
        fit_of(module, partition(module, 2), [Budget(0, counts_host=device == "cpu")], 3, settings).needed_bytes[0]
        for settings in (Settings(topology="star"), Settings(topology="star", compression="int8"))
    )
    words = ["--model", str(folder), "--clients", "3", "--rate", "1gbit", "--step_s", "1", "--blocks", "auto"]
    assert run(*words, "--memory", str(exact), "--device", device, "--output", str(output)) == 0
    (found,) = shown
    assert exact < lossy if device == "cpu" else exact == lossy  # the error feedback is in host memory
    for v in found:
        budget = Budget(exact, counts_host=device == "cpu")
        fit = fewest_blocks(module, [budget], 3, v.settings)
        assert v.settings.blocks == len(fit.blocks) == len(v.workload.step_s)
        assert v.workload.blocks == tuple(fit.blocks)
        assert v.workload.size.numels == tuple(block.numel for block in fit.blocks)
    assert yaml.safe_load(output.read_text())["strategy"]["blocks"] == recommended(found).settings.blocks
    assert "memory" not in yaml.safe_load(output.read_text())["strategy"]


def test_an_estimate_says_so(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    assert run("--model", str(folder), "--rate", "1gbit", "--flop_rate", "2gflops") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "AN ESTIMATE from 0.002 TFLOP/s (flop_rate)" in text
    assert "clients 2" in text


def test_a_probe_of_this_machine(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    monkeypatch.setattr("lightning_parablock.cli.commands.probe.BUDGET_S", 0.0)
    assert run("--probe", "--model", str(folder), "--rate", "1gbit", "--sequence_length", "8") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "measured on this machine: " in text
    assert "steps of the first 2 layers" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--rate 1gbit", "--model must be given"),
        ("--model FOLDER", "rate is missing: give --rate 100mbit"),
        ("--model FOLDER --probe", "rate is missing"),
        ("--model FOLDER --rate 100mbt", "did you mean 'mbit'"),
        ("--model FOLDER --rate 1gbit --server_rate fast", "server_rate must be bits per second"),
        ("--model llama3-80b --rate 1gbit", "did you mean 'llama3-8"),
        ("--model ./nowhere --rate 1gbit", "model './nowhere' does not exist"),
        ("--model FOLDER --rate 1gbit --client 3", "--client is not known; did you mean --clients?"),
        ("--model FOLDER --rate 1gbit --clients 0", "clients must be a whole number >= 1, got 0"),
        ("--model FOLDER --rate 1gbit --clients two", "--clients must be a whole number or null, got 'two'"),
        ("--model FOLDER --rate 1gbit --dtype bfloat61", "did you mean 'bfloat16'?"),
        ("--model FOLDER --rate 1gbit --block_order shufle", "did you mean 'shuffle'?"),
        (
            "--model FOLDER --rate 1gbit --blocks layer",
            "must be 'layers' or 'auto' or a whole number or a list, got 'layer'",
        ),
        ("--model FOLDER --rate 1gbit --blocks auto --memory 24gbit", "memory must be bytes, such as 500MB"),
        ("--model FOLDER --rate 1gbit --memory 24gb", "memory decides how many blocks blocks='auto' makes"),
        (
            "--model FOLDER --rate 1gbit --blocks auto --device cuda",
            "needs memory: this machine computes on cpu, not on",
        ),
        ("--model FOLDER --rate 1gbit --blocks auto --memory 1kb", "is 1.0 kB, and even the smallest blocks"),
        ("--model FOLDER --rate 1gbit --blocks 1000", "but the model has only"),
        ("--model FOLDER --rate 1gbit --layers 9", "layers=9, and the model has 2"),
        ("--model FOLDER --rate 1gbit --local_steps 0", "local_steps must be a whole number >= 1"),
        ("--model FOLDER --rate 1gbit --tokens_per_step 0", "tokens_per_step must be a whole number >= 1, got 0"),
        ("--model FOLDER --rate 1gbit --step_s 0", "step_s must be > 0, got 0"),
        ("--model FOLDER --rate 1gbit --step_s 1 --probe", "leave one out"),
        ("--model FOLDER --rate 1gbit --flop_rate 3tflop", "did you mean 'tflops'"),
        ("--model FOLDER --rate 1gbit --chunk_bytes 5000", "chunk_bytes must be a multiple of 4096"),
        ("--model FOLDER --rate 1gbit --output FOLDER/config.json/x", "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, named: str
) -> None:
    monkeypatch.setattr("lightning_parablock.cli.commands.plan.SHAPES", [])
    assert run(*words.replace("FOLDER", str(folder)).split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert named in lines[0]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in PlanOptions.__dataclass_fields__:
        (explained,) = [part for part in text.split("\n  --") if part.startswith(f"{name} ")]
        assert len(explained.split()) > 6, name


def workload(numels: tuple[int, ...], step_s: float) -> Workload:
    return Workload(ModelSize(numels, 4 * sum(numels)), (step_s,) * len(numels))


def always(work: Workload) -> Callable[[Settings], tuple[Workload, Settings]]:
    """The same computation with all settings."""
    return lambda settings: (work, settings)


LINKS = Links(1e6, 1e6)
PREMISES = Premises("m", 2, LINKS, "given", "given", "1 x 8 tokens", step_batches=1, half=False, adapters=Adapters())


@pytest.mark.parametrize(("step_s", "compression", "more"), [(9, "none", 0), (0.2, "int8", 0), (1e-4, "int4", 240)])
def test_the_least_lossy_compression_that_hides_is_recommended(step_s: float, compression: str, more: int) -> None:
    found = variants(always(workload((250_000, 250_000), step_s)), 2, Settings(local_steps=16, delay_steps=16), LINKS)
    chosen = recommended(found)
    strategy: dict[str, Any] = yaml.safe_load(settings_yaml(chosen, PREMISES))["strategy"]
    assert strategy["compression"] == compression
    assert strategy["local_steps"] == 16 + more
    assert strategy["topology"] == "sharded"
    hidden = [v for v in found if v.choice.hides and v.choice.local_steps == 16]
    assert (chosen in hidden) == (more == 0)
    assert reason(chosen).startswith("the least compression" if not more else "not even int4 hides every exchange:")


def test_more_local_steps_where_no_compression_is_enough() -> None:
    found = variants(always(workload((250_000, 250_000), 0.02)), 2, Settings(local_steps=16, delay_steps=16), LINKS)
    chosen = recommended(found)
    k = chosen.choice.local_steps
    assert 16 < k == min(v.choice.hiding_steps for v in found if not isinstance(v.settings.compression, TopK | Sparse))
    assert reason(chosen) == f"not even int4 hides every exchange behind 16 local steps; that takes {k}"
    exchanges = [8 * traffic_of_clients(250_000, 2, chosen.settings)[0].upload_bytes / 1e6] * 2
    assert choose_local_steps([0.02, 0.02], exchanges, "shuffle", at_least=16).local_steps == k


def test_a_fast_server_makes_a_star_the_better_one() -> None:
    fast = Links(client_bps=1e6, server_bps=1e9)
    found = variants(always(workload((2_500_000,) * 3, 60.0)), 4, Settings(local_steps=16, delay_steps=16), fast)
    assert recommended(found).settings.topology == "star"


def test_every_compression_and_topology_is_planned() -> None:
    found = variants(always(workload((2000, 3000), 1.0)), 3, Settings(), LINKS)
    assert len(found) == 2 * len(COMPRESSIONS) == 14
    for v in found:
        sent = [max(t.upload_bytes for t in traffic_of_clients(n, 3, v.settings)) for n in (2000, 3000)]
        assert v.round_bytes == sum(sent) / 2
    star = {type(v.settings.compression): v for v in found if v.settings.topology == "star"}
    assert star[Int4].times.exchange_s < star[NoCompression].times.exchange_s


def test_of_many_blocks_the_first_and_the_last_are_listed() -> None:
    n = ROWS + 7
    blocks = [Block(f"b{i}", (f"b{i}",), 100 + i) for i in range(n)]
    work = replace(workload(tuple(b.numel for b in blocks), 0.5), blocks=tuple(blocks))
    found = variants(always(work), 2, Settings(), LINKS)
    console = Console(width=180, file=io.StringIO(), record=True)
    print_plan(console, PREMISES, found, recommended(found))
    text = console.export_text()
    listed = [block.name for block in blocks if f" {block.name} " in text]
    assert listed == [f"b{i}" for i in range(n) if i < ROWS // 2 or i >= n - ROWS // 2]
    assert "... 7 more" in text
    assert mb(4 * blocks[-1].numel) in text
