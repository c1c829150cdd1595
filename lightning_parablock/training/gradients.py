"""The gradient's norm, by which the block order "importance" chooses; and blocks that no gradient reaches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_parablock.errors import ConfigurationError

log = logging.getLogger(__name__)


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm of the gradient of all these parameters together; 0 where none has one."""
    gradients = [_values(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def gradient_scale(precision: Any) -> float:
    """The factor of all gradients until the optimizer's step, which 16-mixed precision has; else 1.

    Args:
        precision: A precision plugin, with or without a ``scaler``.
    """
    scaler: Any = getattr(precision, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _values(gradient: Tensor) -> Tensor:
    """The scalars that are not implied zeros; a sparse gradient may have several entries for one of them."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


class ReachedBlocks:
    """Notices blocks that a client trains for a whole round without a gradient.

    A part of the model that some batches do not use is no fault, so the client is warned once for each block. A loss
    without a gradient in any block is one.

    Args:
        block_names: Names of all blocks.
        describe: A client in words.
    """

    def __init__(self, block_names: Sequence[str], describe: Callable[[int], str]) -> None:
        self._block_names, self._describe = block_names, describe
        self._is_reached = False
        self._unreached: dict[int, set[int]] = {}
        self._told = set[tuple[int, int]]()

    def note(self, parameters: Iterable[nn.Parameter]) -> None:
        """After a backward pass of the turn."""
        self._is_reached = self._is_reached or any(parameter.grad is not None for parameter in parameters)

    def end_turn(self, client: int, round_index: int, block: int, *, has_trained: bool) -> None:
        """At the end of a client's turn.

        Raises:
            ConfigurationError: since a gradient reached a block for the last time, the client has trained all of them.
        """
        is_reached, self._is_reached = self._is_reached, False
        if is_reached:
            self._unreached.pop(client, None)
        elif has_trained:
            self._tell(client, round_index, block)

    def _tell(self, client: int, round_index: int, block: int) -> None:
        unreached = self._unreached.setdefault(client, set())
        unreached.add(block)
        place = f"round {round_index}, block {self._block_names[block]!r}: no loss of {self._describe(client)}"
        if len(unreached) == len(self._block_names):
            raise ConfigurationError(
                f"{place} depends on this block, and none since has depended on any other one: training_step must "
                "return a loss that is computed from the model's parameters, not detached and not under no_grad"
            )
        if (client, block) not in self._told:
            self._told.add((client, block))
            log.warning(
                "parablock: %s depends on this block, so its delta is zero. If the client's batches do not use this "
                "part of the model, this is right. If they do, look for detach() or no_grad, and checkpoint "
                "activations with use_reentrant=False: reentrant checkpoints pass no gradient to a block whose inputs "
                "come from frozen layers",
                place,
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "is_reached": self._is_reached,
            "unreached": {c: sorted(blocks) for c, blocks in self._unreached.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        self._is_reached = state["is_reached"]
        self._unreached = {client: set(blocks) for client, blocks in state["unreached"].items()}
