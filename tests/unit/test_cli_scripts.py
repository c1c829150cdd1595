"""Overlays, presets and options on a LightningCLI of the user's own: alone, and under ``lightning-parablock``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli import main
from lightning_parablock.cli.spellings import STRATEGY_CLASS_PATH, presets
from lightning_parablock.system.packaged_configs import PACKAGED
from tests.support.cli_toys import Toy, ToyData
from tests.support.launch import ROOT

METHODS = sorted((PACKAGED / "methods").glob("*.yaml"))
QUIET = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
SCRIPT = f"""
from lightning.pytorch.cli import LightningCLI
from tests.support.cli_toys import Toy, ToyData
settings = LightningCLI(Toy, ToyData, run=False, trainer_defaults={QUIET}).trainer.strategy.settings
print("settings", settings.local_steps, settings.delay_steps, settings.blocks)
"""
OWN = {"trainer": {"strategy": {"class_path": STRATEGY_CLASS_PATH, "init_args": {"local_steps": 4, "seed": 9}}}}


def own_cli(*words: str) -> ParaBlockStrategy:
    """The strategy that a LightningCLI without any help of this package builds."""
    strategy = LightningCLI(Toy, ToyData, run=False, args=list(words), trainer_defaults=QUIET).trainer.strategy
    assert isinstance(strategy, ParaBlockStrategy)
    return strategy


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """The exit code of a script under ``lightning-parablock``, in this process."""
    (folder / "train.py").write_text(SCRIPT)
    monkeypatch.setattr(LightningCLI, "parse_arguments", LightningCLI.parse_arguments)  # put back what a script changes
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    return main([str(folder / "train.py"), *words])


@pytest.mark.parametrize("overlay", METHODS, ids=lambda path: path.stem)
def test_an_overlay_means_the_same_to_every_lightning_cli(overlay: Path) -> None:
    section: dict[str, Any] = yaml.safe_load(overlay.read_text())["trainer"]["strategy"]
    name = {"fedit": "fedavg"}.get(overlay.stem, overlay.stem)
    assert section == {"class_path": STRATEGY_CLASS_PATH, "init_args": presets()[name]}


def test_an_overlay_keeps_what_the_users_own_file_says(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    files = ("--config", str(tmp_path / "mine.yaml"), "--config", str(PACKAGED / "methods" / "fedbcd.yaml"))
    for option in ("--trainer.strategy.blocks", "--trainer.strategy.init_args.blocks"):
        settings = own_cli(*files, option, "3").settings
        assert (settings.local_steps, settings.delay_steps, settings.blocks, settings.seed) == (4, 0, 3, 9)


@pytest.mark.parametrize(
    "words",
    [
        ("--config", "methods/fedbcd", "--trainer.strategy.local_steps", "8"),
        ("--config", "NAMED", "--trainer.strategy.local_steps", "8"),
        ("--config", "SHORT", "--strategy.local_steps", "8"),
        ("--config", "SECTION", "--strategy.local_steps=8"),
        ("--strategy", "fedbcd", "--strategy.local_steps", "8"),
    ],
)
def test_presets_and_options_in_a_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    texts = {
        "NAMED": "trainer: {strategy: fedbcd}",
        "SHORT": "strategy: fedbcd",
        "SECTION": "trainer: {strategy: {class_path: fedbcd, init_args: {local_steps: 3}}}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert script(monkeypatch, tmp_path, *(str(tmp_path / w) if w in texts else w for w in words)) == 0
    assert "settings 8 0 layers" in capsys.readouterr().out
    assert "error" not in vars(LightningArgumentParser)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trainer.strategy.local_steps", "8"), "such as --strategy parablock --strategy.local_steps ..."),
        (("--strategy", "fedbcd", "--strategy.local_step", "8"), "'local_step' is not accepted"),
        (("--config", "methods/fedbcd", "--trainer.strategy.local_step", "8"), "'local_step' is not accepted"),
        (
            ("--config", "{strategy: {class_path: fedbcd, local_steps: 8}}"),
            "local_steps beside class_path would be ignored",
        ),
        (("--config", "{strategy: {class_path: fedbcd, init_args: {local_step: 8}}}"), "'local_step' is not accepted"),
    ],
)
def test_mistakes_in_a_script_are_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Any, said: str
) -> None:
    assert script(monkeypatch, tmp_path, *words) == 2
    assert said in capsys.readouterr().err


def test_an_overlay_needs_neither_the_command_nor_an_import(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "train.py"), "--config", str(PACKAGED / "methods" / "fedavg.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "settings 16 0 1" in done.stdout
