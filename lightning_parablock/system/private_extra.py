"""The package ``cryptography``, an optional dependency: the extra ``private`` brings it."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_parablock.errors import ConfigurationError


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
        raise ConfigurationError(
            "private federations need the package cryptography, which makes and checks keys and signatures; install it "
            "on every site and on the hub: pip install 'lightning-parablock[private]'"
        ) from error
