"""``manifest.json``: configuration, versions, machine and outcome of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning_parablock
from lightning_parablock.runs.folder import MANIFEST_NAME

FORMAT = 1
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "datasets",
    "torchmetrics",
    "jsonargparse",
    "safetensors",
    "gguf",
    "numpy",
)


class Manifest:
    """The manifest of a run; every change is completely on disk when the call returns.

    Args:
        folder: Folder of the run; None writes nothing, as on every rank but the first.
        facts: Facts known at the start.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        self.facts: dict[str, Any] = {
            "format": FORMAT,
            "state": "running",
            "started": _now(),
            "ended": None,
            **machine_facts(),
            **facts,
        }
        self._write()

    def add(self, **facts: Any) -> None:
        """Add facts that have become known."""
        self.facts.update(facts)
        self._write()

    def close(self, state: str) -> None:
        """Write how the run ended: ``finished``, ``interrupted``, or ``failed: ...``."""
        self.add(state=state, ended=_now())

    def _write(self) -> None:
        if self._folder is not None:
            write_atomically(self._folder / MANIFEST_NAME, json.dumps(self.facts, indent=2, default=str) + "\n")


def machine_facts() -> dict[str, Any]:
    """Command, versions and machine of this process."""
    return {
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "working_directory": str(Path.cwd()),
        "git_sha": git_sha(),
        "versions": package_versions(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of its main dependencies; None for a package that is not installed."""
    own = {"python": platform.python_version(), "lightning-parablock": lightning_parablock.__version__}
    return {**own, **{name: _version(name) for name in PACKAGES}}


def git_sha() -> str | None:
    """Commit of the checkout that the package runs from, with ``-dirty`` if files were changed; None without one."""
    package = Path(lightning_parablock.__file__).resolve().parent
    # An installed copy may be in a virtual environment inside the checkout of another project.
    if _git(package.parent, "rev-parse", "--show-toplevel") != str(package.parent):
        return None
    sha = _git(package.parent, "rev-parse", "HEAD")
    return f"{sha}-dirty" if sha and _git(package.parent, "status", "--porcelain", "--untracked-files=no") else sha


def write_atomically(path: Path, text: str) -> None:
    """Write the file so that a reader sees either the old or the new text, never a part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp gives access to the owner only
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that hangs: the run does not need it
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
