"""What becomes of the local optimizer's state of a block when the block is left, and when it is trained again.

A state that stays is taken out of the optimizer meanwhile, so that neither Lightning's checkpoints nor a cast of the
model touch it: it is saved as it is, in a client's own part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_parablock.settings import BlockOptimizerState

ParameterState = dict[str, Any]
Place = tuple[int, int]
"""(client, block)"""


class BlockStates:
    """The states of the blocks that are not being trained.

    Args:
        kind: "reset" drops them, "offload" keeps them in host memory, "keep" where they are.
    """

    def __init__(self, kind: BlockOptimizerState) -> None:
        self._kind = kind
        self._kept: dict[Place, list[ParameterState]] = {}

    def leave(
        self, optimizer: Optimizer, place: Place, parameters: Sequence[nn.Parameter], *, discarded: bool = False
    ) -> None:
        """Take the state of a client's block out of the optimizer; that of a discarded turn is dropped."""
        states = [optimizer.state.pop(parameter, {}) for parameter in parameters]
        if self._kind == "offload":
            states = [_moved(state, torch.device("cpu")) for state in states]
        if self._kind != "reset" and not discarded:
            self._kept[place] = states

    def enter(self, optimizer: Optimizer, place: Place, parameters: Sequence[nn.Parameter]) -> None:
        """Give the optimizer the state of a client's block again, if there is one."""
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        for parameter, state in zip(parameters, self._kept.pop(place, []), strict=False):
            if state:
                optimizer.state[parameter] = _moved(state, parameter.device, counters=on_device)

    def state(self) -> dict[Place, list[ParameterState]]:
        """For a checkpoint."""
        return dict(self._kept)

    def load_state(self, kept: Mapping[Place, Sequence[ParameterState]]) -> None:
        """Take over :meth:`state`, wherever its tensors are."""
        self._kept = {place: list(states) for place, states in kept.items()}


def _moved(state: ParameterState, device: torch.device, *, counters: bool = False) -> ParameterState:
    """A state whose tensors are on a device; counters of steps, which have no dimension, only where they must be."""
    return {
        name: value.to(device) if isinstance(value, Tensor) and (counters or value.dim()) else value
        for name, value in state.items()
    }
