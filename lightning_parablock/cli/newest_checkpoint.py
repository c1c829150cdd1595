"""``--ckpt_path last`` where nothing can be found: each start of the command makes a new run folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.runs.folder import folder_of_runs

_FINAL = "final.ckpt"


def refuse_last(
    ckpt_path: object, trainer: Namespace, run_dir: str | None, site: str | None, *, is_elastic_fit: bool = False
) -> None:
    """Refuse ``last`` where Lightning would look into the new run folder alone, find nothing, and begin anew.

    Args:
        ckpt_path: What the user has named; anything but ``last`` is fine.
        trainer: The options of the Trainer. A logger or a ModelCheckpoint with a folder of its own may find one there.
        run_dir: The folder that the user names for the run.
        site: Name of this process's site, if it has one.
        is_elastic_fit: Whether sites may come and go: then a finished model alone is nothing to continue from, and a
            site without a file gets it from one that has.

    Raises:
        ConfigurationError: nothing would be found; names the newest checkpoint of the earlier runs.
    """
    if ckpt_path != "last" or _has_own_place(trainer):
        return
    folder = folder_of_runs(run_dir, trainer.get("default_root_dir"))
    newest = _newest(
        path
        for path in folder.rglob("*.ckpt")
        if (site is None or site in path.parts) and not (is_elastic_fit and path.name == _FINAL)
    )
    nothing = f"it has no checkpoint{' of this site' if is_elastic_fit else ''} yet"
    if is_elastic_fit:
        nothing += ": leave --ckpt_path out, and the site gets the model from one that has it"
    found = f"its newest checkpoint is {newest}: --ckpt_path {newest}" if newest else nothing
    raise ConfigurationError(
        "--ckpt_path last: every start of this command has a new run folder, in which there is no checkpoint, so the "
        f"run would begin anew; name the file. The folder of the earlier runs is {folder}, and {found}"
    )


def _has_own_place(trainer: Namespace) -> bool:
    if trainer.get("logger") not in (None, True, False):
        return True
    callbacks: Any = trainer.get("callbacks") or []
    each = callbacks if isinstance(callbacks, list) else [callbacks]  # pyright: ignore[reportUnknownVariableType]
    return any(isinstance(one, Namespace) and one.get("init_args.dirpath") for one in each)


def _newest(paths: Iterable[Path]) -> Path | None:
    files = [path for path in paths if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_mtime, str(path)), default=None)
