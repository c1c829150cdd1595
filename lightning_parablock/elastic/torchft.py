"""The lighthouse of torchft, an optional dependency, without what the rest of that package brings along.

torchft's own ``__init__`` imports torch and opentelemetry, neither of which the lighthouse needs: its compiled module
is loaded alone, in a millisecond.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from lightning_parablock.errors import ConfigurationError

_MODULE, _LEVEL = "torchft._torchft", "RUST_LOG"
_VERSIONS = "torchft>=0.2,<0.3"  # as the extra in pyproject.toml says
_lock = threading.Lock()


def coordination() -> Any:
    """The module with ``LighthouseServer`` and ``LighthouseClient``.

    It writes every call to stderr unless the environment variable RUST_LOG is ``error`` or ``warn`` when it is loaded;
    that is what it is set to for this moment, unless the user has set it.

    Raises:
        ConfigurationError: the package is not installed.
    """
    with _lock:
        if _MODULE not in sys.modules:
            _load()
        return sys.modules[_MODULE]


def require_installed() -> None:
    """Raise a ConfigurationError if the package is not installed; loads nothing."""
    _spec()


def _spec() -> tuple[ModuleSpec, Loader]:
    package = importlib.util.find_spec("torchft")
    spec = PathFinder.find_spec(_MODULE, package.submodule_search_locations) if package is not None else None
    if spec is None or spec.loader is None:
        raise ConfigurationError(
            "elastic membership needs the package torchft, whose lighthouse says which sites are alive; install it at "
            f"every site and at the lighthouse: pip install '{_VERSIONS}', or pip install "
            "'lightning-parablock[elastic]', which adds it"
        )
    return spec, spec.loader


def _load() -> None:
    spec, loader = _spec()
    level = os.environ.get(_LEVEL)
    os.environ[_LEVEL] = level or "error"
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    finally:
        if level is None:
            del os.environ[_LEVEL]
        else:
            os.environ[_LEVEL] = level
    sys.modules[_MODULE] = module
