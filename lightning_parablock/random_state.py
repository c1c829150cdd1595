"""States of all random generators that a client's training may draw from, as plain tensors and numbers."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RandomState = dict[str, Any]


class _Native(NamedTuple):
    """The same in the generators' own form, which takes half the time: loaders change states at every batch."""

    torch: Tensor
    cuda: list[Tensor]
    numpy: dict[str, Any]
    python: tuple[Any, ...]


def capture() -> RandomState:
    """Capture the current states of the generators of torch (CPU, and CUDA if it is in use), numpy and Python."""
    return _portable(_capture_native())


def restore(state: RandomState) -> None:
    """Set the generators to a captured state."""
    _restore_native(_native(state))


def _capture_native() -> _Native:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return _Native(torch.get_rng_state(), cuda, np.random.get_state(legacy=False), random.getstate())


def _restore_native(state: _Native) -> None:
    torch.set_rng_state(state.torch)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
    np.random.set_state(state.numpy)
    random.setstate(state.python)


def _portable(state: _Native) -> RandomState:
    version, words, gauss = state.python
    assert state.numpy["bit_generator"] == "MT19937"
    keys, position = state.numpy["state"]["key"], state.numpy["state"]["pos"]
    has_gauss, cached = state.numpy["has_gauss"], state.numpy["gauss"]
    return {
        "torch": state.torch,
        "cuda": state.cuda,
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
    }


def _native(state: RandomState) -> _Native:
    keys, position, has_gauss, cached = state["numpy"]
    words = {"key": keys.numpy().astype(np.uint32), "pos": position}
    numpy = {"bit_generator": "MT19937", "state": words, "has_gauss": has_gauss, "gauss": cached}
    version, numbers, gauss = state["python"]
    return _Native(state["torch"], state["cuda"], numpy, (version, tuple(numbers.tolist()), gauss))


def seed_all(seed: int) -> None:
    """Seed torch, numpy and Python."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class Stream:
    """An independent random stream: draws inside :meth:`use` advance it and leave the global generators unchanged.

    Args:
        seed: Seed of the stream.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: _Native | None = None

    @property
    def state(self) -> RandomState | None:
        """Current state of the stream; None at the beginning."""
        return None if self._state is None else _portable(self._state)

    @state.setter
    def state(self, state: RandomState | None) -> None:
        self._state = None if state is None else _native(state)

    @contextmanager
    def use(self) -> Generator[None]:
        """Make the enclosed code draw from this stream."""
        outside = _capture_native()
        try:
            if self._state is None:
                seed_all(self._seed)
            else:
                _restore_native(self._state)
            yield
            self._state = _capture_native()
        finally:
            _restore_native(outside)
