"""From a client's delta to its upload: what a client adds to a round's mean, in the order in which it is worked on.

1. :meth:`Contributions.of_turn`, as the turn ends: the delta with the weight of its client.
2. :meth:`Contributions.for_exchange`, as the round is submitted: where exchanges leave a part of it out, what earlier
   uploads of the client to the block left out (error feedback, arXiv 1901.09847).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.codecs.feedback import Residuals
from lightning_parablock.federation.client import Client
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings


class Contributions:
    """Makes the uploads of the clients of one rank.

    Args:
        settings: Weighting, compression and aggregation.
    """

    def __init__(self, settings: Settings) -> None:
        self._by_samples = settings.weighting == "samples"
        self._leaves_residuals = settings.leaves_residuals
        self._residuals = Residuals()

    def of_turn(self, client: Client, delta: Tensor) -> Upload:
        """The upload of a client that has trained in its turn.

        Args:
            client: With the samples and the gradient norm of its turn.
            delta: Shape (numel of the block,); kept, not copied.
        """
        return Upload(delta, client.samples if self._by_samples else 1, gradient_norm=client.gradient_norm)

    def without_weight(self, like: Tensor) -> Upload:
        """The upload of a client that has no part in the mean, which is that of the others."""
        return Upload(torch.zeros_like(like), weight=0)

    def for_exchange(self, round_index: int, block: int, client: int, upload: Upload) -> Upload:
        """The upload with the client's residual of the block; one without weight keeps that for later."""
        if not self._leaves_residuals or upload.weight == 0:
            return upload
        return replace(upload, residual=self._residuals.begin(round_index, client, block, upload.delta.numel()))

    def settle(self, round_index: int) -> None:
        """All clients have merged the round: the residuals before it are not needed any more."""
        self._residuals.settle(round_index)

    def state(self) -> list[list[Any]]:
        """[client, block, residual] after the settled rounds, for a checkpoint."""
        return self._residuals.state()

    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        """Restore :meth:`state`; nothing may be in flight."""
        self._residuals.load_state(state)
