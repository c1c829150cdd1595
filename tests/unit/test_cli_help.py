"""``fit --help`` begins with what is this package's, and knows the classes that the command line names."""

from __future__ import annotations

import inspect

import pytest

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli import main
from lightning_parablock.cli.help import _OF_TRAINER
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_options_of_strategy_model_and_data_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--help")
    assert text.startswith("usage: lightning-parablock fit")
    at = [
        text.index(f"\n{heading}") for heading in ("strategy (", "model (", "data (", "the run:", "Lightning's Trainer")
    ]
    assert at == sorted(at) and at[0] < 600
    for option, cls, start, end in zip(
        ("strategy", "model", "data"), (ParaBlockStrategy, CausalLM, FederatedTextDataModule), at, at[1:], strict=False
    ):
        names = (
            set(inspect.signature(cls.__init__).parameters)
            - {"self"}
            - (_OF_TRAINER if option == "strategy" else set())
        )
        assert [name for name in names if f"\n  --{option}.{name} " not in text[start:end]] == []
    assert "default: 16)" in text[: at[1]] and "seconds" in text[: at[1]].lower()


def test_the_help_of_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "validate", "--model", "tests.support.cli_toys.Toy", "--help")
    assert "model (tests.support.cli_toys.Toy)" in text and "--model.sleep_s " in text
    assert "lora_rank" not in text
    assert "model (lightning_parablock.models.CausalLM)" in shown(capsys, "fit", "--model", "no.such.Class", "-h")
