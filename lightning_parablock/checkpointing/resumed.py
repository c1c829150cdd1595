"""What a client continues from, besides W and what Lightning saves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_parablock.errors import CheckpointError
from lightning_parablock.federation import snapshot
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.loading.positioned import Position
from lightning_parablock.random_state import RandomState, capture, restore
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.training.buffers import Replaced

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What a fit continues from, besides W and what Lightning restores.

    Attributes:
        round: The round that was running.
        own: This client's state; None where clients start fresh.
        server: Pieces of the server optimizer's state, where clients start fresh.
        optimizer_states: States of this client's optimizer, as saved.
        blocks: Name and number of scalars of each block then; empty where another strategy saved the checkpoint.
    """

    round: int
    own: dict[str, Any] | None
    server: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    optimizer_states: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    blocks: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def positions(self) -> dict[int, Position]:
        """The position in each training loader, by its index, where one is known."""
        found: list[Position | None] = self.own["positions"] if self.own is not None else []
        return {index: position for index, position in enumerate(found) if position is not None}


@dataclass(frozen=True)
class SetAside:
    """What is set aside while validation looks at the committed model.

    Attributes:
        replaced: The engine's values that the model does not show.
        buffers: The client's own buffers, where the model shows the mean.
        random: The training's random state.
    """

    replaced: Mapping[int, Tensor] | None
    buffers: Replaced
    random: RandomState | None


def training_state(
    engine: RoundEngine,
    module: nn.Module,
    positions: Sequence[Position | None],
    aside: SetAside,
    outside: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What belongs to this client's training and Lightning does not save.

    Args:
        engine: The rounds.
        module: The model.
        positions: In each training loader.
        aside: What is not in its place at the moment.
        outside: The parameters in no block that any client has changed, by name.
    """
    own_buffers = {id(buffer): own for buffer, own in aside.buffers}
    return {
        "engine": snapshot.state_of(engine, aside.replaced),
        "random": aside.random or capture(),
        "positions": list(positions),
        "gradients": [parameter.grad for parameter in engine.flat.parameters(engine.block)],
        "buffers": {name: own_buffers.get(id(buffer), buffer) for name, buffer in module.named_buffers()},
        "outside": {name: own_buffers.get(id(value), value).detach() for name, value in outside.items()},
    }


def continue_rounds(engine: RoundEngine, resumed: Resumed) -> None:
    """Bring a fresh engine to where the checkpoint was saved; collective.

    Raises:
        CheckpointError: the model is now cut into other blocks, on which what is in flight does not fit.
    """
    blocks = [(block.name, block.numel) for block in engine.flat.blocks]
    if resumed.blocks and resumed.blocks != blocks:
        raise CheckpointError(
            f"the checkpoint was saved with the blocks {_listed(resumed.blocks)}, this run has {_listed(blocks)}; make "
            "the same parameters trainable, or start from its weights with a new fit"
        )
    if resumed.own is not None:
        snapshot.restore(engine, resumed.own["engine"])
        return
    engine.begin_at(resumed.round)
    engine.transport.load_server_state(StatePiece(**piece) for piece in resumed.server)


def restore_exact_optimizer(engine: RoundEngine, optimizers: Sequence[Any], resumed: Resumed) -> None:
    """Load the optimizer's state beside the float32 master copy: Lightning's own load rounds it to the model's type."""
    if engine.flat.is_exact:
        return
    engine.flat.put_master_in_place()
    for optimizer, state in zip(optimizers, resumed.optimizer_states, strict=True):
        optimizer.load_state_dict(state)
    engine.flat.take_master_back()


@torch.no_grad()
def restore_training(own: Mapping[str, Any], module: nn.Module, active: Sequence[nn.Parameter]) -> None:
    """Give back buffers, gradients and random states: the last thing before the first step."""
    buffers = dict(module.named_buffers())
    for name, value in own["buffers"].items():
        buffers[name].copy_(value)
    for parameter, gradient in zip(active, own["gradients"], strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    restore(own["random"])


def _listed(blocks: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({numel})" for name, numel in blocks)
