"""Mean loss per token and perplexity over a whole evaluation, exact for any split of the data between clients."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from lightning_parablock.models.names import IGNORED_LABEL

# Apple's GPUs have no float64; there the sums lose a few digits over very long evaluations.
_SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy, in nats, of each example's next tokens, and the number of tokens in each sum.

    Args:
        logits: (batch, positions, vocabulary), any float dtype; computed in float32.
        targets: (batch, positions) torch.long, the token after each position, -100 where nothing is to be predicted.

    Returns:
        Two tensors of shape (batch,): the sums (float32) and the counts (torch.long).
    """
    predictions = logits.reshape(-1, logits.shape[-1]).float()
    losses = functional.cross_entropy(predictions, targets.reshape(-1), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view_as(targets).sum(dim=1), (targets != IGNORED_LABEL).sum(dim=1)


class TokenLoss(Metric):
    """Mean cross entropy per token, in nats; update with the sums of :func:`token_losses`.

    torchmetrics' own Perplexity computes log(softmax) in two steps, which is infinite for a token of probability 0, and
    keeps float32 sums; hence this metric of two sums, which are added over batches and ranks.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_state = cast(Any, self).add_state
        add_state("total", default=torch.zeros((), dtype=_SUM_DTYPE), dist_reduce_fx="sum")
        add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        """Add the summed loss of a batch, in nats, and its number of tokens."""
        # Not in place: the sums of a validation in inference mode must not be written in a later one in no-grad mode.
        self.total = self.total + total.detach().to(self.total.dtype)
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Mean loss per token, float32 scalar, in nats; NaN if there was no token."""
        return (self.total / self.count).float()


class TokenPerplexity(TokenLoss):
    """Exponential of the mean cross entropy per token."""

    def compute(self) -> Tensor:
        """Perplexity, float32 scalar, dimensionless."""
        return torch.exp(self.total / self.count).float()
