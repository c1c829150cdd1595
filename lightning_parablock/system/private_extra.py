"""The package ``cryptography``, an optional dependency: the extra ``private`` brings it."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_parablock.errors import ConfigurationError


def not_installed() -> ConfigurationError:
    """The error of everything that needs the package and does not find it."""
    return ConfigurationError(
        "private federations and secure sums need the package cryptography, which makes and checks keys, signatures "
        "and masks; install it on every site and on the hub: pip install 'lightning-parablock[private]'"
    )


def primitives(module: str) -> Any:
    """A module below ``cryptography.hazmat.primitives``, imported at its first use.

    Args:
        module: Its dotted name below that package, such as ``asymmetric.x25519``.

    Raises:
        ConfigurationError: the package is not installed.
    """
    try:
        return importlib.import_module(f"cryptography.hazmat.primitives.{module}")
    except ModuleNotFoundError as error:
        raise not_installed() from error
