"""Models that are built without their weights, where only their shapes matter or no batch will reach them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from jsonargparse import Namespace

_SMALL: dict[str, Any] = {"random_weights": True, "layers": 1}


@contextlib.contextmanager
def without_weights(model: Namespace) -> Generator[None]:
    """For a plan: build a model that has the option ``random_weights`` on the meta device.

    Args:
        model: Class path and options of the model; changed.
    """
    if not _has(model, ["random_weights"]):
        yield
        return
    model.init_args.random_weights = True
    with torch.device("meta"):
        yield


@contextlib.contextmanager
def small(model: Namespace) -> Generator[None]:
    """For a run that ends before its first batch: build the model small and with random weights, if its options can.

    Args:
        model: Class path and options of the model; changed inside.
    """
    if not _has(model, _SMALL):
        yield
        return
    given = {name: model.init_args[name] for name in _SMALL}
    model.init_args.update(Namespace(**_SMALL))
    yield
    model.init_args.update(Namespace(**given))


def _has(model: Namespace, names: Any) -> bool:
    return all(name in (model.get("init_args") or {}) for name in names)
