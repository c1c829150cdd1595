"""The methods of a comparison by name: an overlay over the configuration, or a preset of the strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_parablock.checks import nearest
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.strategy.presets import PRESETS
from lightning_parablock.system.packaged_configs import PACKAGED, packaged_config

METHODS = "methods"
_ENDS = (".yaml", ".yml")


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: In the table, and of its runs' folders.
        words: What it adds to the command line of ``fit``, at its end: a method wins over what was configured.
    """

    name: str
    words: tuple[str, ...]


def methods_of(listed: str) -> list[Method]:
    """The methods of a list with commas: names of overlays in ``configs/methods``, presets, or paths of YAML files.

    Raises:
        ConfigurationError: a name is not known (the message names the nearest one) or given twice, or there is none.
    """
    methods = [_method(word) for word in _words(listed)]
    if not methods:
        raise ConfigurationError(f"strategies names no method; choose from {', '.join(_known())}")
    twice = _first_repeated([method.name for method in methods])
    if twice is not None:
        raise ConfigurationError(f"the method {twice!r} is named twice in strategies; files need different names")
    return methods


def seeds_of(listed: str) -> list[int]:
    """The seeds of a list with commas.

    Raises:
        ConfigurationError: one is no whole number >= 0, or is given twice.
    """
    words = _words(listed)
    if not words or not all(word.isdigit() for word in words):
        raise ConfigurationError(f"seeds must be whole numbers >= 0 with commas between, such as 0,1,2, got {listed!r}")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"a seed is given twice in seeds {listed!r}")
    return seeds


def _method(word: str) -> Method:
    if word.endswith(_ENDS):
        path = packaged_config(word) or Path(word).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"the method's file {word} does not exist{_near_file(path)}")
        return Method(path.stem, ("--config", str(path)))
    name = word.lower()
    if name in (overlays := _overlays()):
        return Method(name, ("--config", str(overlays[name])))
    if name in PRESETS:
        return Method(name, ("--strategy", name))
    raise ConfigurationError(
        f"method {word!r} is not known; {nearest(name, _known())}; or name a YAML file with its settings"
    )


def _known() -> list[str]:
    return sorted({*_overlays(), *PRESETS})


def _overlays() -> dict[str, Path]:
    """Overlays by name: those of the folder that compare was started in come before those of the package."""
    folders = (PACKAGED / METHODS, Path("configs") / METHODS)
    found = (path for folder in folders for path in sorted(folder.glob("*.yaml")))
    return {path.stem.lower(): path for path in found}


def _near_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else PACKAGED / METHODS
    names = [other.name for other in folder.glob("*") if other.suffix in _ENDS]
    return f"; {nearest(path.name, names)}" if names else ""


def _words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",") if word.strip()]


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)
