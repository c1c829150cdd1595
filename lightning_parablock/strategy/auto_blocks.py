"""``blocks="auto"``: before the first round the clients agree on the fewest blocks that fit into everyone's memory.

Each client says how much memory it has for everything but activations: the option ``memory``, or a share of what its
device has free. From the budgets of all, every rank derives the same number of blocks by the planner's formula. From
then on the run is the run that was given this number: same settings, same checkpoints, same bits.
"""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_parablock.blocks.partition import partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.planning.fitting import Budget, budget_of, fewest_blocks, fit_of, reason_of
from lightning_parablock.settings import AUTO, Settings
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.system.units import readable_bytes


def settle_blocks(ranks: RankStrategy, module: nn.Module, settings: Settings, saved: int | None = None) -> Settings:
    """The settings with the number of blocks, where they are "auto"; collective then.

    A site that joins an elastic run takes the number of the run, and its founders, however much memory they have, that
    of a checkpoint that they continue.

    Args:
        ranks: The ranks of the run, which have met.
        module: The model, on its device.
        settings: The run's settings.
        saved: The number in the checkpoint that this founder of an elastic run continues; None without, and for a site
            that joins.

    Raises:
        ConfigurationError: the model does not fit, however finely it is cut, or this site, which joins a run, has less
            memory than the run's blocks take.
    """
    if settings.blocks != AUTO:
        return settings
    own = budget_of(ranks.root_device, module, settings.memory, processes=ranks.num_processes)
    told = ranks.gather_objects((own.size_bytes, own.counts_host, saved))
    continued = told[0][2]
    if continued is not None:
        if saved is None:
            _take(continued, module, own, ranks.world_size, settings)
        return settings.with_blocks(continued)
    budgets = [Budget(size, counts_host, ranks.describe(rank)) for rank, (size, counts_host, _) in enumerate(told)]
    fit = fewest_blocks(module, budgets, ranks.world_size, settings)
    n_blocks = ranks.broadcast(len(fit.blocks))
    if n_blocks == len(fit.blocks):
        rank_zero_info(f"parablock: blocks: {n_blocks}, {reason_of(fit, budgets)}")
    else:
        _take(n_blocks, module, own, ranks.world_size, settings)
    return settings.with_blocks(n_blocks)


def _take(n_blocks: int, module: nn.Module, own: Budget, n_ranks: int, settings: Settings) -> None:
    """A site that joins takes the run's number of blocks."""
    blocks = partition(module, n_blocks)
    (needed,) = fit_of(module, blocks, [own], n_ranks, settings).needed_bytes
    facts = f"the run has {n_blocks} blocks, which take {readable_bytes(needed)} without activations"
    if needed > own.size_bytes:
        raise ConfigurationError(
            f"this site cannot join the run: {facts}, and its memory is {readable_bytes(own.size_bytes)}; raise memory"
        )
    rank_zero_info(f"parablock: blocks: {n_blocks}: {facts}")
