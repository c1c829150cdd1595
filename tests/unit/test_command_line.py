"""The command that continues a run, as messages give it."""

from __future__ import annotations

import pytest

from lightning_parablock.system.command_line import command_to_resume


@pytest.mark.parametrize(
    ("words", "torchrun", "said"),
    [
        (
            ["/bin/lightning-parablock", "fit", "--config", "a b.yaml", "--ckpt_path", "old.ckpt", "--run_dir=x"],
            False,
            "lightning-parablock fit --config 'a b.yaml' --ckpt_path new.ckpt",
        ),
        (
            ["/lib/lightning_parablock/__main__.py", "fit", "--run_dir", "x", "--site", "a"],
            True,
            "torchrun ... -m lightning_parablock fit --site a --ckpt_path new.ckpt",
        ),
        (["train.py", "fit"], False, "trainer.fit(..., ckpt_path='new.ckpt')"),
    ],
)
def test_the_command_that_continues(
    monkeypatch: pytest.MonkeyPatch, words: list[str], torchrun: bool, said: str
) -> None:
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert command_to_resume("new.ckpt") == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["lightning-parablock", "fit", "--site", "a", "--strategy.missing_client_state=error"],
            "lightning-parablock fit --site a --ckpt_path new.ckpt --strategy.missing_client_state fresh",
        ),
        (["train.py"], "trainer.fit(..., ckpt_path='new.ckpt') with the strategy's missing_client_state='fresh'"),
    ],
)
def test_the_command_that_continues_from_weights_alone(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert command_to_resume("new.ckpt", fresh=True) == said
