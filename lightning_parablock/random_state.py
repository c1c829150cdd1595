"""States of all random generators that a client's training may draw from, as plain tensors and numbers."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def capture() -> RandomState:
    """Capture the current states of the generators of torch (CPU, and CUDA if it is in use), numpy and Python."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert name == "MT19937"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
    }


def restore(state: RandomState) -> None:
    """Set the generators to a captured state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


def seed_all(seed: int) -> None:
    """Seed torch, numpy and Python."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class Stream:
    """An independent random stream: draws inside :meth:`use` advance it and leave the global generators unchanged.

    Args:
        seed: Seed of the stream.

    Attributes:
        state: Current state of the stream; None at the beginning.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.state: RandomState | None = None

    @contextmanager
    def use(self) -> Generator[None]:
        """Make the enclosed code draw from this stream."""
        outside = capture()
        try:
            if self.state is None:
                seed_all(self._seed)
            else:
                restore(self.state)
            yield
            self.state = capture()
        finally:
            restore(outside)
