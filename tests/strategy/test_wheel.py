"""The package as pip installs it: its commands work from the wheel, in a folder that is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import LIMIT_S, ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "configs", "lightning_parablock")
SMALL = (
    *("--config", "quickstart", "--trainer.devices", "2", "--trainer.max_steps", "4", "--strategy.local_steps", "2"),
    *("--strategy.blocks", "2", "--model.layers", "1", "--data.sequence_length", "32", "--data.val_examples", "2"),
    *("--data.client_labels", "[[json], [wsgiref]]", "--validate_before_and_after", "false"),
)


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run([*command, "--no-deps", "--no-index"], check=True, timeout=LIMIT_S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was installed, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    shutil.rmtree(folder / "source")
    pip("install", "--target", str(folder / "site"), *map(str, folder.glob("*.whl")))
    return folder / "site"


def parablock(installed: Path, cwd: Path, *words: str) -> str:
    """What a command prints to standard output; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_parablock", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_configuration_is_in_the_wheel_once(installed: Path) -> None:
    shipped = installed / "lightning_parablock" / "configs"
    sources = {str(file.relative_to(ROOT / "configs")): file.read_text() for file in (ROOT / "configs").rglob("*.yaml")}
    assert {str(file.relative_to(shipped)): file.read_text() for file in shipped.rglob("*.yaml")} == sources
    assert not [file for file in installed.rglob("*.yaml") if shipped not in file.parents]


def test_quickstart_report_init_and_compare_with_fedit(installed: Path, tmp_path: Path) -> None:
    parablock(installed, tmp_path, "fit", *SMALL, "--run_dir", "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["state"], manifest["git_sha"], manifest["result"]["rounds"]) == ("finished", None, 2)
    assert "report.html" in parablock(installed, tmp_path, "report", "run")

    assert "fit --config run.yaml --site b" in parablock(installed, tmp_path, "init", "federation")
    assert (tmp_path / "federation" / "run.yaml").is_file()

    parablock(installed, tmp_path, "compare", *SMALL, "--strategies", "fedit", "--points", "0", "--out", "compared")
    (row,) = json.loads((tmp_path / "compared" / "compare.json").read_text())["runs"]
    assert (row["method"], row["error"]) == ("fedit", None)
