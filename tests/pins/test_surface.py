"""Names, parameters, options, commands and exit codes are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_parablock.settings import Settings
from tests.pins import surface, toys
from tests.pins.configuration import run
from tests.pins.stored import as_json, stored


def test_the_fingerprints_keys_values_and_order(tmp_path: Path) -> None:
    """Ranks compare them value by value and checkpoints hold them, so neither a key nor a spelling may change."""
    availability = tmp_path / "availability.txt"
    availability.write_text(surface.AVAILABILITY)
    found = surface.fingerprints(str(availability))
    assert found == stored("fingerprints")
    default, rich = dict(found["default"]), dict(found["rich"])
    assert [name for name in default if default[name] == rich[name]] == ["aggregation", "buffers"]


def test_settings_of_a_site_are_not_in_the_fingerprint() -> None:
    mine = Settings(upload_bps=1e6, own_local_steps=3, own_local_s=2.0)
    assert mine.fingerprint() == Settings().fingerprint()


def test_public_names() -> None:
    assert surface.public_names() == stored("public_names")


def test_parameters_of_the_public_classes() -> None:
    assert surface.parameters() == stored("parameters")


def test_registered_names() -> None:
    assert as_json(surface.registry()) == stored("registry")


def test_commands() -> None:
    assert surface.commands() == stored("commands") == list(surface.COMMANDS)


@pytest.mark.parametrize("command", [*surface.COMMANDS, *surface.SUBCOMMANDS])
def test_options_of_a_command(command: str) -> None:
    assert surface.option_names(command) == stored("options")[command]


def test_options_of_the_strategy_are_its_parameters() -> None:
    """All but those which the Trainer sets."""
    of_trainer = {"accelerator", "parallel_devices", "cluster_environment", "checkpoint_io", "precision_plugin"}
    parameters = {name for name, *_ in stored("parameters")["lightning_parablock.ParaBlockStrategy"]}
    options = {option.removeprefix("--strategy.") for option in stored("options")["fit"] if "--strategy." in option}
    assert {option for option in options if not option.endswith(".help")} == parameters - of_trainer


def test_defaults_of_the_planner() -> None:
    assert surface.plan_defaults() == stored("plan_defaults")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param([], 2, id="no command"),
        pytest.param(["fitt"], 2, id="unknown command"),
        pytest.param(["fit", "--strategy", "parablok"], 2, id="unknown strategy"),
        pytest.param(["fit", "--strategy.local_steps", "0"], 2, id="wrong value"),
        pytest.param(["fit", "--no_such_option", "1"], 2, id="unknown option"),
        pytest.param(["plan", "--clients", "2"], 2, id="missing option"),
        pytest.param(["report", "/no/such/run"], 2, id="no such run"),
        pytest.param(["--help"], 0, id="help"),
        pytest.param(["--version"], 0, id="version"),
    ],
)
def test_exit_codes_before_a_run(words: list[str], code: int) -> None:
    assert exit_code(words) == code


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        pytest.param("ParaBlockError", 1, id="failed"),
        pytest.param("KeyboardInterrupt", 130, id="interrupted"),
    ],
)
def test_exit_codes_of_a_run(tmp_path: Path, failure: str, code: int) -> None:
    """A finished one ends with 0: see test_configuration.py."""
    toy = ["--model", f"{toys.__name__}.Exact", "--data", f"{toys.__name__}.ExactData"]
    failing = ["--model.fail_at_step", "1", "--model.fail_with", failure]
    strategy = ["--strategy", "parablock", "--strategy.blocks", "1", "--strategy.local_steps", "2"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "4"]
    others = ["--validate_before_and_after", "false", "--run_dir", str(tmp_path / "run")]
    assert exit_code(["fit", *toy, *strategy, *trainer, *others, *failing]) == code


def exit_code(words: list[str]) -> object:
    """What the process would end with: the returned number, or the one in a SystemExit."""
    try:
        return run(words)
    except SystemExit as ended:
        return ended.code or 0
