"""What a client finds again when its turn comes, where the clients of a rank take turns on one model.

Its buffers (such as BatchNorm's statistics) follow the client, and so does its random state, which begins anew in each
of its rounds: a function of (seed, client, round), whichever rank hosts it. The learning rates are the round's: whoever
trains first or last in it goes through the same steps of the schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_parablock.random_state import seed_all
from lightning_parablock.seeds import derive_seed


class TurnKeeper:
    """Changes what stands around the model from one client to the next.

    Args:
        module: Whose buffers; as they are now, they are what every client begins with.
        schedulers: Gives the learning rate schedulers.
        optimizer: Gives the optimizer.
        seed: Of the run.
    """

    def __init__(
        self,
        module: nn.Module,
        schedulers: Callable[[], Sequence[Any]],
        optimizer: Callable[[], Optimizer],
        seed: int,
    ) -> None:
        self._module, self._schedulers, self._optimizer, self._seed = module, schedulers, optimizer, seed
        self._buffers: dict[int, dict[str, Tensor]] = {}
        self._first = _saved_buffers(module)
        self._rates: Any = None

    def begin_round(self) -> None:
        """Take note of the learning rates with which every client of the round begins."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer().param_groups]
        self._rates = copy.deepcopy((groups, [scheduler.state_dict() for scheduler in self._schedulers()]))

    def begin_turn(self, client: int | None, round_index: int) -> None:
        """Before a client's first step of a round, or before an idle turn."""
        groups, states = copy.deepcopy(self._rates)
        for group, saved in zip(self._optimizer().param_groups, groups, strict=True):
            group.update(saved)
        for scheduler, state in zip(self._schedulers(), states, strict=True):
            scheduler.load_state_dict(state)
        if client is None:
            return
        self._show(self._buffers.get(client, self._first))
        seed_all(derive_seed(self._seed, "client", client, round_index))

    def end_turn(self, client: int | None) -> None:
        """After a client's last step of a round."""
        if client is not None:
            buffers = _saved_buffers(self._module)
            if any(not torch.equal(value, self._first[name]) for name, value in buffers.items()):
                self._buffers[client] = buffers

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"buffers": self._buffers, "first": self._first, "rates": self._rates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        self._buffers, self._first, self._rates = dict(state["buffers"]), state["first"], state["rates"]

    @torch.no_grad()
    def _show(self, values: dict[str, Tensor]) -> None:
        buffers = dict(self._module.named_buffers())
        for name, value in values.items():
            buffers[name].copy_(value)


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what may differ between clients: buffers that a checkpoint has, too."""
    saved = module.state_dict().keys()
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers() if name in saved}
