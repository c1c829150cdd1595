"""The committed model W in place of what is being trained: for validation, for checkpoints and after the last round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_parablock.checkpointing.resumed import SetAside
from lightning_parablock.random_state import RandomState
from lightning_parablock.strategy.agreements import changed_outside
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.training.buffers import Replaced, kinds, put_back, show_mean
from lightning_parablock.training.local_training import LocalTraining
from lightning_parablock.training.outside import OutsideParameters


class CommittedView:
    """Makes the module show the committed model, and puts the values that are being trained back, bit for bit.

    Args:
        ranks: The ranks of the run.
        module: The model.
        training: The local training, whose engine knows W.
        outside: The parameters in no block.
        first_client: Number of this rank's first client.
    """

    def __init__(
        self,
        ranks: RankStrategy,
        module: pl.LightningModule,
        training: LocalTraining,
        outside: OutsideParameters,
        first_client: int,
    ) -> None:
        self._ranks, self._module, self._training, self._outside = ranks, module, training, outside
        self._first_client = first_client
        self._replaced: dict[int, Tensor] | None = None  # while W is shown: the values that it hides
        self._own_buffers: Replaced = []
        self._random: RandomState | None = None  # while validation runs: the training's

    def show(self) -> dict[int, Tensor]:
        """Show W until :meth:`undo`, and return the values that it hides; collective where buffers are averaged."""
        self._own_buffers = self.show_buffers()
        self._replaced = self._training.engine.show_committed()
        return self._replaced

    def undo(self) -> None:
        """Put the trained values and this client's own buffers back, if W is shown."""
        if self._replaced is not None:
            self._training.engine.undo_show_committed(self._replaced)
            put_back(self._own_buffers)
            self._replaced = None

    def state_dict(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The state dict of W, whatever the parameters hold now; tensors that would change are copies.

        Args:
            read: Reads the state dict off the module.
        """
        if self._replaced is not None:
            return read()
        replaced = self.show()
        changed = {p.data_ptr() for block in replaced for p in self._training.engine.flat.parameters(block)}
        changed |= {buffer.data_ptr() for buffer, _ in self._own_buffers}
        state = read()
        for name, value in state.items():
            if isinstance(value, Tensor) and value.data_ptr() in changed:
                state[name] = value.detach().clone()
        self.undo()
        return state

    def show_buffers(self) -> Replaced:
        """Show the buffers that belong to W; collective with buffers="average", unless this rank has failed.

        After an error a client saves alone, and then saves its own. Where clients take turns those of this rank's first
        client are shown: which client trained last is chance.

        Returns:
            What :func:`~lightning_parablock.training.buffers.put_back` needs.
        """
        ranks, switch = self._ranks, self._training.client_switch
        if ranks.has_failed:
            return []
        if switch is not None:
            return switch.show(self._first_client)
        if self._training.engine.settings.buffers == "local" or ranks.is_alone:
            return []
        ranks.refuse_differences(kinds(self._module))
        others = changed_outside(ranks, self._outside)
        return show_mean(self._module, ranks.gather_objects, ranks.all_gather, others)

    def note_random_state(self, state: RandomState | None) -> None:
        """Take note of the training's random state while validation has its own; None when validation is over."""
        self._random = state

    @property
    def aside(self) -> SetAside:
        """What is not in its place while W is shown, for a checkpoint that is saved meanwhile."""
        return SetAside(self._replaced, self._own_buffers, self._random)
