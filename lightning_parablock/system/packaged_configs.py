"""Configurations included in the package, by name: ``quickstart``, ``methods/fedbcd``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PACKAGED = Path(__file__).resolve().parent.parent / "configs"
"""Folder of the configurations: in a checkout a link to its top-level folder, in an installed package the files."""

_ENDS = (".yaml", ".yml")
_OPTIONS = ("--config", "-c")
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def packaged_config(name: str) -> Path | None:
    """The packaged file of a name, with or without a leading ``configs/`` and a final ``.yaml``; None if there is none.

    A file of that name in the working directory is the user's own and takes precedence: the result is None then, too.
    """
    bare = name.removeprefix("./").removeprefix("configs/")
    if os.path.exists(name) or not bare or bare.startswith(("/", "~")) or ".." in bare.split("/"):
        return None
    found = (PACKAGED / file for file in (bare, f"{bare}.yaml") if file.endswith(_ENDS))
    return next((path for path in found if os.path.isfile(path)), None)


def packaged_names() -> list[str]:
    """The names of all packaged configurations, such as ``methods/fedbcd``."""
    return sorted(str(path.relative_to(PACKAGED).with_suffix("")) for path in PACKAGED.rglob("*.yaml"))


def with_packaged_configs(args: Sequence[str]) -> list[str]:
    """The command line with names of packaged files replaced by their paths; each is reported once, on stderr."""
    replaced: list[str] = []
    for before, word in zip(["", *args], args, strict=False):
        option, equals, value = word.partition("=")
        if before in _OPTIONS:
            replaced.append(_path_or_name(word))
        elif option in _OPTIONS and equals:
            replaced.append(f"{option}={_path_or_name(value)}")
        else:
            replaced.append(word)
    return replaced


def _path_or_name(name: str) -> str:
    path = packaged_config(name)
    if path is None:
        return name
    _report(name, path)
    return str(path)


@cache
def _report(name: str, path: Path) -> None:
    if all(os.environ.get(variable, "0") == "0" for variable in _RANKS):
        sys.stderr.write(f"configuration {name}: {path}\n")
