"""Which release of the package ``cryptography`` masks need; checked before any training."""

from __future__ import annotations

import importlib.metadata
from functools import cache

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.private_extra import not_installed

LEAST_MAJOR = 50
"""Earlier releases hold the interpreter's lock while they encrypt, so that the training would wait for the masks."""


@cache
def require_installed() -> None:
    """Raise a ConfigurationError if the package is missing or too old; imports nothing of it."""
    try:
        version = importlib.metadata.version("cryptography")
    except importlib.metadata.PackageNotFoundError as error:
        raise not_installed() from error
    if int(version.partition(".")[0]) < LEAST_MAJOR:
        raise ConfigurationError(
            f"secure aggregation needs cryptography {LEAST_MAJOR} or newer, and {version} is installed; install it at "
            "every site: pip install 'lightning-parablock[private]'"
        )
