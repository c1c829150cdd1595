"""The folder of a run, with its logs, configuration, manifest and timeline."""

from __future__ import annotations

import time
from pathlib import Path

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.places import refuse_unwritable

DEFAULT_ROOT = "runs"
MANIFEST_NAME = "manifest.json"


def new_run_folder(root: str | None, inside: str = "") -> Path:
    """Create ``root/<date>-<time>``, numbered if two runs start in the same second, or a site's folder inside it.

    Args:
        root: Local folder of all runs; None for ``runs``. A URL, which only checkpoints can use, also gives ``runs``.
        inside: Name of a site, to create its own folder; sites that start in the same second share the outer folder.
    """
    parent = _root(root)
    name = time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}") / inside
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def folder_of_runs(run_dir: str | None, root: str | None) -> Path:
    """The folder that is the same at every start of a command.

    Args:
        run_dir: The folder that the user names for the run.
        root: The folder of all runs, as for :func:`new_run_folder`.
    """
    return _root(root) if run_dir is None else Path(run_dir)


def refuse_run_folder(run_dir: str | None, root: str | None, inside: str = "", *, comes_back: bool = False) -> None:
    """Check the options that set the run's folder, without creating anything; see the functions below.

    Args:
        run_dir: The folder that the user names for the run.
        root: The folder of all runs.
        inside: Name of a site.
        comes_back: Whether the folder may have a run, which this process comes back to.

    Raises:
        ConfigurationError: the folder cannot be created or written, or already has a run.
    """
    if run_dir is None:
        refuse_unwritable(_root(root), "the folder of runs")
    else:
        refuse_unwritable(Path(run_dir, inside), "run_dir")
        if not comes_back:
            _refuse_run(Path(run_dir, inside))


def claim_run_folder(folder: Path) -> Path:
    """Create the folder given by the user.

    Raises:
        ConfigurationError: the folder already has a run.
    """
    _refuse_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def return_to_folder(folder: Path, inside: str) -> Path:
    """Create a site's folder inside one given by the user, or where it has a run, inside ``folder/<date>-<time>``.

    A site of an elastic run comes back to it with the command that it was started with.
    """
    if (folder / inside / MANIFEST_NAME).exists():
        return new_run_folder(str(folder), inside)
    return claim_run_folder(folder / inside)


def _root(root: str | None) -> Path:
    return Path(DEFAULT_ROOT if root is None or "://" in root else root)


def _refuse_run(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        raise ConfigurationError(f"run folder {str(folder)!r} holds a run already; name another one or remove it")


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that never began, if it is empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
