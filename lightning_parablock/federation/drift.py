"""How far a client's update is from the mean update."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_parablock.settings import ServerSGD, Settings

PIECE = 1 << 20
"""Scalars compared at a time, so that no second copy of a whole block is needed."""


def lr_of_mean(settings: Settings, round_index: int, *, is_exact: bool) -> float | None:
    """The factor by which to divide a commit's increment to obtain the mean delta; None where that is not possible.

    With momentum a commit contains earlier rounds as well, a lossy codec and secure sums add what they left out before,
    and parameters that are not float32 round the increment away.
    """
    if not isinstance(settings.server_optimizer, ServerSGD) or settings.leaves_residuals or not is_exact:
        return None
    return settings.server_optimizer.lr_of(round_index) or None


@torch.no_grad()
def relative_drift(delta: Tensor, before: Tensor, after: Tensor, lr: float) -> float | None:
    """|Delta_i - G| / |G| with Euclidean norms, dimensionless: 0 where the client moved exactly as the mean.

    Args:
        delta: The client's Delta_i of a round on a block, shape (numel,), float32.
        before: W of the block before the round's commit, same shape.
        after: W of the block after it, same shape; W moved by lr G.
        lr: The server's learning rate of the round.

    Returns:
        None where the mean is zero.
    """
    norms = list[Tensor]()
    for own, old, new in zip(delta.split(PIECE), before.split(PIECE), after.split(PIECE), strict=True):
        mean = (new - old).div_(lr)
        length = torch.linalg.vector_norm(mean)
        norms.append(torch.stack([torch.linalg.vector_norm(mean.sub_(own)), length]))
    apart, length = torch.linalg.vector_norm(torch.stack(norms), dim=0).tolist()
    return apart / length if length > 0 else None
