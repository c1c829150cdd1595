"""Everything that lives as long as the rounds of one fit, and what each hook of the trainer means for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lightning_parablock.checkpointing.final_model import is_wanted, save_final, save_final_alone
from lightning_parablock.checkpointing.plain import save_rescued
from lightning_parablock.checkpointing.resumed import (
    Resumed,
    continue_rounds,
    restore_exact_optimizer,
    restore_training,
    training_state,
)
from lightning_parablock.errors import DivergenceError, PeerError, PeerLostError, PeerTimeoutError
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.loading.fit_loaders import FitLoaders
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.strategy.agreements import agree_on_weights, changed_outside
from lightning_parablock.strategy.auto_steps import StepClock, settle_pending
from lightning_parablock.strategy.cautions import caution
from lightning_parablock.strategy.committed import CommittedView
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.round_start import apply_round_start, capture_round_start
from lightning_parablock.strategy.secure import KEY, SecureFit
from lightning_parablock.strategy.skipped_steps import SkippedSteps, may_miss_epochs, refuse_meeting_logs
from lightning_parablock.strategy.stopping import Stopping
from lightning_parablock.training.block_freezer import BlockFreezer
from lightning_parablock.training.local_training import LocalTraining
from lightning_parablock.training.losses import loss_of_nothing, with_backward
from lightning_parablock.training.outside import OutsideParameters
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.opening import open_transport


@dataclass(eq=False, kw_only=True)
class FitSession:
    """The rounds of one fit on one rank; made by :func:`~lightning_parablock.strategy.fit_opening.open_session`.

    It alone owns the engine and its transport. After the fit it stays readable, until the next fit begins.

    Attributes:
        ranks: The ranks of the run.
        trainer: The trainer.
        module: The model.
        loaders: The loaders of the run.
        training: The local training between the engine's verbs.
        outside: The parameters in no block.
        view: Shows the committed model.
        skipped: Why clients may skip steps.
        clock: Times the steps of round 0.
        freezer: Freezes all blocks but the one that trains.
        stopping: What signals do while rounds are under way.
        resumed: What the fit resumes from, until everything is restored; None for a new fit.
        secure: What it has for secure sums; None for the plain mean.
        has_finished: Whether this rank has merged every exchange, so that its model is the finished one.
        weights_sha256: SHA-256 over the blocks of the finished model; None before it is known.
        begun_round: The round whose local steps have begun last; -1 before any has.
        at_first_batch: What a site that begins where others were has yet to do when its first batch comes.
    """

    ranks: RankStrategy
    trainer: pl.Trainer
    module: pl.LightningModule
    loaders: FitLoaders
    training: LocalTraining
    outside: OutsideParameters
    view: CommittedView
    skipped: SkippedSteps
    clock: StepClock
    freezer: BlockFreezer
    stopping: Stopping
    resumed: Resumed | None
    secure: SecureFit | None = None
    has_finished: bool = False
    weights_sha256: str | None = None
    begun_round: int = -1
    at_first_batch: Callable[[], None] | None = None

    @property
    def engine(self) -> RoundEngine:
        """The engine of the rounds."""
        return self.training.engine

    @property
    def place(self) -> str:
        """The round that runs and the block that trains, for messages."""
        return f"round {self.engine.round}, block {self.block_name!r}"

    @property
    def block_name(self) -> str:
        """Name of the block that trains."""
        return self.engine.flat.blocks[self.engine.block].name

    # --- start --------------------------------------------------------------------------------------------------------

    def begin(self, early_signals: Iterable[int] = ()) -> None:
        """Begin the first round, or the one in which the checkpoint was saved; collective.

        Args:
            early_signals: That have come while the fit was set up.
        """
        engine, settings = self.engine, self.engine.settings
        self.stopping.open()
        for signum in early_signals:
            self.stopping.note(signum)
        joined = self.ranks.joined()
        if joined is not None:
            self.ranks.begin_engine(engine, joined.round)
            state, is_founding = joined.trainer_state, joined.is_founding
            self.at_first_batch = apply_round_start(
                self.trainer, self.module, self.loaders, state, is_founding=is_founding
            )
            self._stop_at_max_rounds()
        elif self.resumed is not None:
            continue_rounds(engine, self.resumed)
            self._stop_at_max_rounds()
        elif "local_steps" not in settings.pending:
            n_clients, n_blocks = 0 if settings.is_elastic else self.ranks.n_clients, len(engine.flat.blocks)
            caution(self.trainer, n_clients=n_clients, round_steps=self.ranks.round_steps, n_blocks=n_blocks)
        if not engine.has_open_turn:
            self.training.begin_turn()
        self.freezer.train_only(self.training.parameters)

    def begin_training(self) -> None:
        """Give random states their first values, or restore everything beside the rounds: last before the first step.

        Not earlier: what callbacks draw when the training starts must not count twice.
        """
        resumed, self.resumed = self.resumed, None
        training = self.training
        self.clock.tick()
        if resumed is None or resumed.own is None:
            seed = self.ranks.local_seed.of(training.engine.settings.seed)
            training.seed(self.ranks.hosted_clients[0], seed)
            return
        training.load_state(resumed.own)
        restore_exact_optimizer(training.engine, self.ranks.optimizers, resumed)
        restore_training(resumed.own, self.module, training.parameters)
        self.outside.load(resumed.own["outside"])

    # --- steps --------------------------------------------------------------------------------------------------------

    def begin_batch(self) -> None:
        """A batch has been fetched; it may be the first one of a round."""
        at_first_batch, self.at_first_batch = self.at_first_batch, None
        if at_first_batch is not None:
            at_first_batch()
        if self.begun_round != self.engine.round:
            self.begun_round = self.engine.round
            tells = not isinstance(self.engine.settings.aggregation, SecureAggregation)
            self.ranks.begin_round(
                self.begun_round, lambda: capture_round_start(self.trainer, self.module, tells_values=tells)
            )

    def trains_on_next_batch(self) -> bool:
        """Whether a client of this rank trains on the batch that comes; asked once per batch."""
        is_out_of_data = self.loaders.skips_batch()
        self._note_rates()
        return not is_out_of_data and not self.training.skips_batch()

    def loss_of(self, output: Any) -> Any:
        """What the backward pass gets for the output of a training step that has counted its samples.

        Raises:
            ConfigurationError: the step logs what ranks that skip it do not log, or has changed what is trainable.
        """
        if self.skipped.in_steps:
            refuse_meeting_logs(self.trainer, self.skipped, misses_epochs=self._misses_epochs)
        self.outside.refuse_flags(self.training.parameters, self.place)
        if output is not None:
            return with_backward(output)
        self.training.discount_batch()
        # With more than one rank Lightning ends the run at a None.
        return None if self.ranks.is_alone else loss_of_nothing(self.ranks.root_device)

    @property
    def _misses_epochs(self) -> bool:
        batches = min(self.trainer.num_training_batches, self.loaders.fewest_training)
        steps = batches / self.trainer.accumulate_grad_batches
        settings = self.engine.settings
        # Asked again, once more is known.
        known_steps = 1 if "local_steps" in settings.pending else settings.local_steps
        return may_miss_epochs(self.skipped, known_steps, self.ranks.hosting.by_rank, steps)

    def after_batch(self) -> None:
        """Advance the clock if the batch brought an optimizer step; at a turn's end switch to the next block."""
        training, engine = self.training, self.engine
        if not training.advance():
            return
        if engine.settings.pending:
            self._settle_pending()
        if not engine.turn_is_over:
            return
        place = self.place
        training.end_turn()
        self.outside.check_turn(place, discarded=engine.discarded)
        self._stop_at_max_rounds()
        training.begin_turn()
        self.freezer.train_only(training.parameters)

    def pass_batch(self) -> None:
        """Pass the end of a batch, where all clients may have agreed to save and stop; collective then."""
        if self.stopping.is_open:
            self.stopping.pass_batch()

    def own_state(self) -> dict[str, Any]:
        """This rank's own part of a checkpoint; collective."""
        outside, positions = changed_outside(self.ranks, self.outside), self.loaders.positions()
        own = training_state(self.engine, self.module, positions, self.view.aside, outside)
        secure = {} if self.secure is None else {KEY: self.secure.state(self.loaders.data_digests())}
        return self.training.state() | own | secure

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Drain, make sure that every client holds the same bits, and save the finished model; collective."""
        self.stopping.close()  # from here on the run ends in any case
        place = self.place
        self.ranks.drain()
        self.training.finish()
        self.outside.check_turn(place, discarded=self.engine.discarded)
        self.has_finished = True
        self._refuse_divergence()
        self.ranks.end_rounds(max(self.engine.round - 1, self.begun_round))  # a short one may have been left out
        self.view.show_buffers()
        self.engine.transport.close()
        if is_wanted(self.trainer):
            with self.ranks.alone():
                save_final(self.ranks, self.ranks.checkpoint_io, self.trainer)
        self.freezer.thaw()

    def rescue(self, exception: BaseException, *, first_is_lost: bool) -> None:
        """Leave the newest committed model of a failing run on the disk; never waits for peers.

        Args:
            exception: Why the run fails.
            first_is_lost: Whether rank 0, which would save for all, is known to be lost.
        """
        self.stopping.close()
        ranks = self.ranks
        keeps = ranks.global_rank == 0 or first_is_lost or bool(ranks.site_names)  # a site has a disk of its own
        if self.stopping.has_saved:
            pass
        elif self.has_finished and not isinstance(exception, DivergenceError):
            if keeps or ranks.local_rank == 0:
                save_final_alone(ranks, ranks.checkpoint_io, self.trainer)
        elif self.engine.is_running and keeps:
            save_rescued(
                self.trainer,
                ranks.own_file("rescued.ckpt"),
                self.engine.round,
                completed=ranks.completed,
                site=ranks.site_that_others_outlast,
                can_be_fresh=not isinstance(ranks.settings.aggregation, SecureAggregation),
            )
        self.freezer.thaw()

    def close(self) -> None:
        """The trainer is torn down: if the fit has ended early, its W is of no more use."""
        self.engine.is_running = self.has_finished = False
        self.freezer.thaw()
        self.stopping.close()

    def located(self, error: PeerError) -> PeerError:
        """The error of a collective with the place in the rounds where it was noticed."""
        if self.has_finished and isinstance(error, (PeerLostError, PeerTimeoutError)):
            return error.after_last_round(self.engine.round, may_be_dropped=self.engine.settings.is_elastic)
        if not self.engine.is_running:
            return error.outside_rounds("after the last round")
        return error.at(self.engine.round, self.block_name)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _settle_pending(self) -> None:
        settings = settle_pending(self.ranks, self.module, self.engine, self.clock)
        if settings is not None:
            self.engine.settle(settings, self._transport_for(settings))
            self.ranks.settle(settings)
            self.loaders.settle_epochs()

    def _transport_for(self, settings: Settings) -> Transport:
        """The transport, opened again where the settings have another codec; collective then."""
        ranks, engine = self.ranks, self.engine
        if settings.compression == engine.settings.compression:
            return engine.transport
        device, backend = ranks.root_device, ranks.process_group_backend
        return ranks.guard(
            "opening of the exchange",
            lambda: open_transport(
                ranks.federation, engine.flat, settings, device=device, backend=backend, instead_of=engine.transport
            ),
        )

    def _stop_at_max_rounds(self) -> None:
        limit = self.engine.settings.max_rounds
        if limit is not None and self.engine.round >= limit:
            self.trainer.should_stop = True

    def _note_rates(self) -> None:
        """Rates that only change between epochs are the same for all clients of a round as they are."""
        configs, switch = self.trainer.lr_scheduler_configs, self.training.client_switch
        only_by_epoch = bool(configs) and all(config.interval != "step" for config in configs)
        if switch is not None and self.engine.at_round_start and not only_by_epoch:
            switch.note_rates()

    def _refuse_divergence(self) -> None:
        self.weights_sha256 = agree_on_weights(self.ranks, self.engine.flat)
        changed_outside(self.ranks, self.outside)  # tells the user of parameters that are each client's own
