"""What a fit needs before its first batch is loaded: blocks, and an optimizer that can work on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.blocks.partition import partition
from lightning_parablock.federation.schedule import draw_factors
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.refusals import (
    refuse_factors,
    refuse_parameters,
    refuse_sparse_proximal,
    refuse_uncovered,
    the_optimizer,
)
from lightning_parablock.training.buffers import kinds
from lightning_parablock.training.outside import kinds_outside


@dataclass(frozen=True)
class FitBlocks:
    """The blocks of a fit.

    Attributes:
        flat: The model's parameters, block by block.
        unmatched: Parameters that were trainable and are in no block, frozen for this fit.
    """

    flat: FlatBlocks
    unmatched: Sequence[nn.Parameter]

    def thaw_unmatched(self) -> None:
        """Make the parameters in no block trainable again."""
        for parameter in self.unmatched:
            parameter.requires_grad_(True)


def cut_into_blocks(ranks: RankStrategy, module: pl.LightningModule, settings: Settings) -> FitBlocks:
    """Cut the model into blocks, the same on every rank; collective.

    Raises:
        ConfigurationError: the blocks cannot be made or trained, or differ between ranks.
    """
    blocks = partition(module, settings.blocks, settings.unmatched)
    refuse_parameters(module, blocks)
    refuse_factors(blocks, settings.compression)
    shapes = {name: str(tuple(parameter.shape)) for name, parameter in module.named_parameters()}
    facts = {f"block {b.name}": str([(n, shapes[n]) for n in b.parameter_names]) for b in blocks}
    draw_factors(settings.visit_more, [block.name for block in blocks])  # refuses a pattern that is in no name
    facts |= kinds_outside(module, blocks)
    ranks.refuse_differences({"number of blocks": str(len(blocks)), **facts, **kinds(module)})
    matched = {name for block in blocks for name in block.parameter_names}
    unmatched = [p for name, p in module.named_parameters() if p.requires_grad and name not in matched]
    made = FitBlocks(FlatBlocks(module, blocks), unmatched)
    for parameter in unmatched:  # last: the caller, which has the result, undoes it
        parameter.requires_grad_(False)
    return made


def check_optimizer(optimizers: Sequence[Any], module: nn.Module, blocks: FitBlocks, settings: Settings) -> None:
    """Refuse an optimizer whose state cannot be handled block by block, or that does not have all parameters.

    Raises:
        ConfigurationError: says what to use instead.
    """
    optimizer = the_optimizer(optimizers)
    refuse_uncovered(module, blocks.flat.blocks, optimizer)
    refuse_sparse_proximal(optimizer, settings.proximal_mu)
