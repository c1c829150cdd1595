"""The command that continues a run, as messages give it."""

from __future__ import annotations

import pytest

from lightning_parablock.command_line import command_to_resume


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
