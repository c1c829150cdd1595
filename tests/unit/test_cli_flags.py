from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_parablock.cli.spellings import (
    DATA_CLASS_PATH,
    MODEL_CLASS_PATH,
    STRATEGY_CLASS_PATH,
    expand_argv,
    expand_config,
    presets,
)
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.packaged_configs import PACKAGED, _report, packaged_names


def named(**init_args: object) -> list[str]:
    """What the name of a preset is written out to."""
    strategy = {"class_path": STRATEGY_CLASS_PATH, "init_args": init_args}
    return ["--config", json.dumps({"trainer": {"strategy": strategy}})]


def test_every_registered_preset_sets_its_delay() -> None:
    assert presets() == {
        "parablock": {"delay_steps": None},
        "fedbcd": {"delay_steps": 0},
        "fedavg": {"delay_steps": 0, "blocks": 1},
        "fedcybgd": {
            "delay_steps": 0,
            "cohort": 1,
            "cohort_sampling": "rotation",
            "block_order": "sequential",
        },
        "diloco": {
            "delay_steps": 0,
            "blocks": 1,
            "local_steps": 500,
            "server_optimizer": "nesterov",
            "block_optimizer_state": "keep",
        },
    }


@pytest.mark.parametrize(
    "words", [["--strategy", "parablock"], ["--strategy=parablock"], ["--trainer.strategy=ParaBlock"]]
)
def test_a_preset_name_becomes_a_configuration_in_line(words: list[str]) -> None:
    assert expand_argv(["fit", *words, "--x", "1"]) == ["fit", *named(delay_steps=None), "--x", "1"]


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        (["--strategy.local_steps", "8"], ["--trainer.strategy.local_steps", "8"]),
        (["--strategy.local_steps=8"], ["--trainer.strategy.local_steps=8"]),
        (["--trainer.strategy.local_steps=8"], ["--trainer.strategy.local_steps=8"]),
        (["--strategy", "ddp"], ["--trainer.strategy=ddp"]),
        (["--strategy", "my.own.Strategy"], ["--trainer.strategy=my.own.Strategy"]),
        (["--model.strategy", "x"], ["--model.strategy", "x"]),
        (["--strategy.help"], [f"--trainer.strategy.help={STRATEGY_CLASS_PATH}"]),
        (["--strategy.help", "fedavg"], [f"--trainer.strategy.help={STRATEGY_CLASS_PATH}"]),
        (["--model.help"], [f"--model.help={MODEL_CLASS_PATH}"]),
        (["--data.help", "--x"], [f"--data.help={DATA_CLASS_PATH}", "--x"]),
        (["--model.help", "a.B"], ["--model.help=a.B"]),
        (["--strategy"], ["--trainer.strategy"]),
    ],
)
def test_other_spellings(given: list[str], expanded: list[str]) -> None:
    assert expand_argv(given) == expanded


@pytest.mark.parametrize(
    "name", ["ParaBlockStrategy", STRATEGY_CLASS_PATH, "lightning_parablock.strategy.parablock.ParaBlockStrategy"]
)
def test_the_class_by_name_keeps_what_earlier_files_said(name: str) -> None:
    strategy = {"class_path": STRATEGY_CLASS_PATH}
    assert expand_argv(["--strategy", name]) == ["--config", json.dumps({"trainer": {"strategy": strategy}})]


def test_packaged_configurations_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    quickstart, fedbcd = str(PACKAGED / "quickstart.yaml"), str(PACKAGED / "methods" / "fedbcd.yaml")
    for names in (("quickstart", "methods/fedbcd"), ("configs/quickstart.yaml", "./configs/methods/fedbcd.yaml")):
        words = ["fit", "--config", names[0], f"-c={names[1]}", "--x", "quickstart"]
        assert expand_argv(words) == ["fit", "--config", quickstart, f"-c={fedbcd}", "--x", "quickstart"]
    for name in ("quickstar", "../configs/quickstart.yaml", "/quickstart", "", "{}", "x" * 5000):
        assert expand_argv(["--config", name]) == ["--config", name]
    (tmp_path / "quickstart").touch()
    assert expand_argv(["--config", "quickstart"]) == ["--config", "quickstart"]


def test_the_packaged_file_that_is_taken_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, said in (({"RANK": "1"}, ""), ({"RANK": "0"}, f"configuration base: {PACKAGED / 'base.yaml'}\n")):
        for name, value in variable.items():
            monkeypatch.setenv(name, value)
        _report.cache_clear()
        assert expand_argv(["--config", "base", "--config", "base"]) == ["--config", str(PACKAGED / "base.yaml")] * 2
        assert capsys.readouterr().err == said


def test_the_packaged_configurations_are_those_at_the_top_of_the_repository() -> None:
    top = Path(__file__).resolve().parents[2] / "configs"
    assert packaged_names() == sorted(str(file.relative_to(top).with_suffix("")) for file in top.rglob("*.yaml"))
    assert all((PACKAGED / f"{name}.yaml").samefile(top / f"{name}.yaml") for name in packaged_names())


def test_a_misspelt_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'parablock'"):
        expand_argv(["--strategy", "parablok"])


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("strategy: fedbcd", {"class_path": STRATEGY_CLASS_PATH, "init_args": {"delay_steps": 0}}),
        ("trainer: {strategy: fedbcd}", {"class_path": STRATEGY_CLASS_PATH, "init_args": {"delay_steps": 0}}),
        ("strategy: {local_steps: 3}", {"class_path": STRATEGY_CLASS_PATH, "init_args": {"local_steps": 3}}),
        ("strategy: {init_args: {seed: 3}}", {"class_path": STRATEGY_CLASS_PATH, "init_args": {"seed": 3}}),
        (
            "strategy: {class_path: fedavg, init_args: {delay_steps: 4}}",
            {"class_path": STRATEGY_CLASS_PATH, "init_args": {"delay_steps": 4, "blocks": 1}},
        ),
        ("strategy: ddp", "ddp"),
        ("strategy: {class_path: a.B, init_args: {c: 1}}", {"class_path": "a.B", "init_args": {"c": 1}}),
    ],
)
@pytest.mark.parametrize("command", [None, "fit"])
def test_yaml(text: str, strategy: object, command: str | None) -> None:
    if command is not None:
        text = yaml.safe_dump({command: yaml.safe_load(text)})
    config = yaml.safe_load(expand_config(text))
    section = config if command is None else config[command]
    assert section["trainer"]["strategy"] == strategy
    assert "strategy" not in section


def test_a_file_without_a_strategy_is_left_as_it_is() -> None:
    text = "trainer: {max_steps: 3} # a comment"
    assert expand_config(text) is text


def test_two_strategies_in_one_file_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="given twice"):
        expand_config("strategy: fedbcd\ntrainer: {strategy: ddp}")


@pytest.mark.parametrize("name", ["fedbcd", STRATEGY_CLASS_PATH])
def test_options_that_would_be_lost_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="local_steps beside class_path would be ignored: write init_args"):
        expand_config(f"strategy: {{class_path: {name}, local_steps: 3}}")
    with pytest.raises(ConfigurationError, match="dict_kwargs of strategy would be ignored by lightning_parablock"):
        expand_config(f"trainer: {{strategy: {{class_path: {name}, dict_kwargs: {{local_steps: 3}}}}}}")


def test_broken_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigurationError, match="line 2: not valid YAML"):
        expand_config("a: 1\nb: [1, {")
