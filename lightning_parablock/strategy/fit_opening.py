"""Opens the session of a fit: transport, engine, local training and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.errors import PeerError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule, draw_factors
from lightning_parablock.loading.fit_loaders import FitLoaders
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.auto_steps import StepClock
from lightning_parablock.strategy.committed import CommittedView
from lightning_parablock.strategy.elastic_ranks import ElasticRanks
from lightning_parablock.strategy.fit import FitSession
from lightning_parablock.strategy.hosting import Hosting
from lightning_parablock.strategy.leaving import Leaving
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.refusals import refuse_rate_steps, refuse_uneven_loaders, refuse_untrained
from lightning_parablock.strategy.refused_together import refused_together
from lightning_parablock.strategy.secure import SecureFit, saved_of
from lightning_parablock.strategy.secure_elastic import ElasticSums
from lightning_parablock.strategy.skipped_steps import SkippedSteps, refuse_scaler
from lightning_parablock.strategy.stopping import Stopping
from lightning_parablock.training.block_freezer import BlockFreezer
from lightning_parablock.training.buffers import BuffersBefore
from lightning_parablock.training.client_switch import ClientSwitch
from lightning_parablock.training.gradients import gradient_scale
from lightning_parablock.training.local_steps import OwnSteps
from lightning_parablock.training.local_training import LocalTraining
from lightning_parablock.training.outside import OutsideParameters
from lightning_parablock.transport.opening import open_transport


@dataclass(frozen=True)
class FitParts:
    """What a session is opened with.

    Attributes:
        ranks: The ranks, which have met.
        trainer: The trainer, whose training loaders are made.
        module: The model.
        flat: Its blocks, holding the common starting value W.
        loaders: The loaders of the run.
        resumed: What the fit resumes from; None for a new one.
        secure: What it has for secure sums; None for the plain mean.
    """

    ranks: ElasticRanks
    trainer: pl.Trainer
    module: pl.LightningModule
    flat: FlatBlocks
    loaders: FitLoaders
    resumed: Resumed | None
    secure: SecureFit | ElasticSums | None = None


def open_session(parts: FitParts) -> FitSession:
    """Open the transport and everything above it; no round has begun afterwards. Collective.

    Raises:
        ConfigurationError: loaders, schedulers or precision cannot work with these settings.
    """
    ranks, loaders = parts.ranks, parts.loaders
    settings, hosting = ranks.settings, ranks.hosting
    is_uneven = loaders.uneven_training or settings.takes_turns
    refuse_uneven_loaders(loaders.n_training, uneven=is_uneven, new_sites=settings.is_elastic)
    skipped = SkippedSteps.agreed(ranks, settings, hosting.by_rank, out_of_data=loaders.uneven_training)
    refuse_scaler(gradient_scale(ranks.precision_plugin), skipped)
    if parts.secure is not None:
        refused_together(ranks, partial(_refuse_data, parts.secure, parts.resumed, loaders))
    known_steps = None if "local_steps" in settings.pending else settings.local_steps
    refuse_rate_steps(parts.trainer, known_steps, turns=hosting.turns)
    training = _open_training(parts)
    clients = ranks.hosted_clients
    outside = OutsideParameters(
        parts.module,
        parts.flat.blocks,
        takes_turns=len(clients) > 1,
        is_alone=ranks.is_alone,
        is_averaged=settings.buffers == "average",
    )
    return FitSession(
        ranks=ranks,
        trainer=parts.trainer,
        module=parts.module,
        loaders=loaders,
        training=training,
        outside=outside,
        view=CommittedView(ranks, parts.module, training, outside, clients[0]),
        skipped=skipped,
        clock=StepClock(ranks.root_device),
        freezer=BlockFreezer(parts.module),
        stopping=_stopping(parts, training.engine),
        resumed=parts.resumed,
        secure=parts.secure if isinstance(parts.secure, SecureFit) else None,
    )


def _refuse_data(secure: SecureFit | ElasticSums, resumed: Resumed | None, loaders: FitLoaders) -> None:
    if isinstance(secure, SecureFit):
        secure.refuse_other_data(saved_of(resumed), loaders.data_digests())
    secure.refuse_fixed_orders(loaders.fixed_orders())


def _stopping(parts: FitParts, engine: RoundEngine) -> Stopping:
    ranks, check = parts.ranks, partial(_check_peers, parts.ranks, engine)
    if ranks.elastic is not None:
        return Leaving(ranks, parts.trainer, ranks.elastic, check)
    return Stopping(ranks, parts.trainer, ranks.stop_point, check)


def _open_training(parts: FitParts) -> LocalTraining:
    ranks, flat, module = parts.ranks, parts.flat, parts.module
    settings, hosting = ranks.settings, ranks.hosting
    device, backend = ranks.root_device, ranks.process_group_backend
    members_at = None if ranks.elastic is None else ranks.elastic.members_at
    names = [block.name for block in flat.blocks]
    schedule = _schedule(settings, names, hosting, parts.loaders.client_samples, members_at)
    if ranks.elastic is not None:
        maker = parts.secure.maker if isinstance(parts.secure, ElasticSums) else None
        transport = ranks.elastic.site.open_rounds(flat, settings, schedule, device, maker)
    else:
        masks = parts.secure.masks if isinstance(parts.secure, SecureFit) else None
        transport = open_transport(ranks.federation, flat, settings, device=device, backend=backend, masks=masks)
    engine = RoundEngine(flat, settings, ranks.hosted_clients, transport, schedule, hosting.turns)
    optimizer = partial(_local_optimizer, ranks)
    switch = None
    if settings.takes_turns:
        seed = ranks.local_seed.of(settings.seed)
        switch = ClientSwitch(module, partial(_schedulers, parts.trainer), optimizer, seed)
    before = BuffersBefore(module if settings.nonfinite_delta == "skip" else None)
    own_steps = OwnSteps(settings.own_local_steps, settings.own_local_s)
    return LocalTraining(engine, optimizer, own_steps, switch, before)


def _schedule(
    settings: Settings,
    block_names: Sequence[str],
    hosting: Hosting,
    samples: tuple[int, ...],
    members_at: Callable[[int], Sequence[int]] | None,
) -> Schedule:
    cohorts = Cohorts(
        hosting.n_clients,
        settings.cohort,
        settings.cohort_sampling,
        settings.seed,
        samples,
        availability=settings.availability,
        members_at=members_at,
    )
    factors = draw_factors(settings.visit_more, list(block_names))
    schedule = Schedule(settings.block_order, len(block_names), settings.seed, cohorts, factors)
    refuse_untrained([block_names[block] for block in schedule.untrained_blocks()])
    return schedule


def _local_optimizer(ranks: RankStrategy) -> Optimizer:
    # Unwrapped: Lightning's wrapper shows a copy of the state.
    return getattr(ranks.optimizers[0], "optimizer", ranks.optimizers[0])


def _schedulers(trainer: pl.Trainer) -> list[Any]:
    """Those that step with the local steps: every client of a round goes through the same part of them."""
    return [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "step"]


def _check_peers(ranks: RankStrategy, engine: RoundEngine) -> None:
    """Raise what is already known of lost peers."""
    try:
        if ranks.watch is not None:
            ranks.watch.check()
    except PeerError as error:
        raise error.at(engine.round, engine.flat.blocks[engine.block].name) from error
