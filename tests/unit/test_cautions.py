"""Runs that work but are hardly what was meant: a warning with the numbers, for users of the library, too."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_parablock import ParaBlockStrategy
from tests.support.cli_toys import Toy, ToyData


def warnings_of(caplog: pytest.LogCaptureFixture, *, local_steps: int, **limits: Any) -> list[str]:
    strategy = ParaBlockStrategy(local_steps=local_steps, blocks=2)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, limit_val_batches=0, **off, **limits)
    with caplog.at_level(logging.WARNING, logger="lightning_parablock.strategy.cautions"):
        caplog.clear()
        trainer.fit(Toy(), ToyData(examples=16))
    return [record.getMessage() for record in caplog.records if record.name == "lightning_parablock.strategy.cautions"]


def test_one_client(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings_of(caplog, local_steps=2, max_steps=4)
    assert "there is 1 client, so nothing is exchanged" in message and "devices=2" in message


@pytest.mark.parametrize(
    ("local_steps", "limits", "said"),
    [
        (
            6,
            {"max_steps": 5},
            "training ends after 5 optimizer steps, before the first round does, which has 6: 1 of",
        ),
        (6, {"max_steps": 5}, "set local_steps to 2 or less, or train for 12 steps"),
        (9, {"max_epochs": 1}, "training ends after 8 optimizer steps"),
        (5, {"max_epochs": 1, "accumulate_grad_batches": 3}, "training ends after 3 optimizer steps"),
        (8, {"max_epochs": 1}, None),
        (16, {"max_epochs": 3, "max_steps": 16}, None),
    ],
)
def test_training_that_ends_before_its_first_round(
    caplog: pytest.LogCaptureFixture, local_steps: int, limits: dict[str, Any], said: str | None
) -> None:
    messages = warnings_of(caplog, local_steps=local_steps, **limits)[1:]
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]
