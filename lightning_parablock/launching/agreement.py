"""What all ranks must have in common before they train together."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.site_kit.version_fact import ADVICE

_PACKAGES = ("lightning-parablock", "torch", "lightning", "transformers")


def versions_here() -> dict[str, str]:
    """Versions on this rank that change results or messages: the packages', and Python's up to its minor number."""
    return versions_of(*_PACKAGES) | {"Python": ".".join(platform.python_version_tuple()[:2])}


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed packages; in words where one is not installed."""
    return {name: _version(name) for name in packages}


def refuse_differences(facts: Sequence[Mapping[str, str]], who: Sequence[str]) -> None:
    """Compare the facts of all ranks; every rank sees the same ones and raises the same error.

    Args:
        facts: One mapping of names to printable values a rank.
        who: A description of each rank.

    Raises:
        ConfigurationError: names the first fact that differs, and its value on each rank.
    """
    names = {name: None for mapping in facts for name in mapping}
    for name in names:
        values = [mapping.get(name, "absent") for mapping in facts]
        if len(set(values)) > 1:
            listed = "; ".join(f"{description} has {value}" for description, value in zip(who, values, strict=True))
            todo = ADVICE.get(name, "make it the same everywhere")
            raise ConfigurationError(f"{name} differs between clients: {listed}; {todo}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
