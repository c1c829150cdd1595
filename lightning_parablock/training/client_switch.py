"""What a client finds as it left it when its turn comes, where the clients of a rank take turns on one model.

Its buffers (such as BatchNorm's statistics) follow the client, and so does its random state, which is set at the
start of each of its rounds: a function of (seed, client, round), whichever rank hosts it. The learning rates are the
round's: the first and the last client of a round go through the same steps of the schedule.
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
from lightning_parablock.training.buffers import Replaced


class ClientSwitch:
    """Changes the state around the model from one client to the next.

    Args:
        module: The model; every client begins with its buffers as they are now.
        schedulers: Returns the learning rate schedulers.
        optimizer: Returns the optimizer.
        seed: Random seed of the run.
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
        self._first = _buffers_of(module)
        self._shown: int | None = None
        self._rates: Any = None

    def note_rates(self) -> None:
        """Before the first step of a round: take note of the learning rates with which each of its clients begins.

        Not when the round is begun: at the end of an epoch schedulers step after that.
        """
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer().param_groups]
        self._rates = copy.deepcopy((groups, [scheduler.state_dict() for scheduler in self._schedulers()]))

    def begin_turn(self, client: int | None, round_index: int) -> None:
        """Before a client's first step of a round, or before an idle turn."""
        if self._rates is not None:
            self._show_rates()
        if client is None:
            return
        self.show(client)
        self._shown = client
        seed_all(derive_seed(self._seed, "client", client, round_index))

    def end_turn(self, client: int | None) -> None:
        """After a client's last step of a round."""
        if client is not None:
            buffers = _buffers_of(self._module)
            if client in self._buffers or any(not torch.equal(v, self._first[name]) for name, v in buffers.items()):
                self._buffers[client] = buffers

    def end_round(self) -> None:
        """After the last turn of a round."""
        self._rates = None

    @torch.no_grad()
    def show(self, client: int) -> Replaced:
        """Make the module's buffers those of a client after its last turn; nothing changes where its turn is under way.

        Returns:
            What :func:`~lightning_parablock.training.buffers.put_back` needs.
        """
        if client == self._shown:
            return []
        values, replaced = self._buffers.get(client, self._first), Replaced()
        for name, buffer in self._module.named_buffers():
            if not torch.equal(buffer, values[name]):
                replaced.append((buffer, buffer.clone()))
                buffer.copy_(values[name])
        return replaced

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"buffers": self._buffers, "first": self._first, "rates": self._rates, "shown": self._shown}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        self._buffers, self._first, self._rates = dict(state["buffers"]), state["first"], state["rates"]
        self._shown = state["shown"]

    def _show_rates(self) -> None:
        groups, states = copy.deepcopy(self._rates)
        for group, saved in zip(self._optimizer().param_groups, groups, strict=True):
            group.update(saved)
        for scheduler, state in zip(self._schedulers(), states, strict=True):
            scheduler.load_state_dict(state)


def _buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, also of those that a checkpoint does not have."""
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
