"""``ParaBlockStrategy``: Lightning's hooks on one side, the rounds of a fit on the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from typing_extensions import override

from lightning_parablock.checkpointing.checkpoints import Checkpoints
from lightning_parablock.checkpointing.client_states import settled_by
from lightning_parablock.checkpointing.elastic_checkpoints import with_entry, without_progress
from lightning_parablock.checkpointing.final_model import checkpoint_folders
from lightning_parablock.checkpointing.folders import note_folders, refuse_foreign_folders
from lightning_parablock.checkpointing.plain import save_plain, warn_of_foreign, write_plain
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.launching.agreement import versions_here
from lightning_parablock.launching.checkpoint_choice import is_own
from lightning_parablock.lightning_private.data import silence_loader_warning
from lightning_parablock.lightning_private.facts import take_sampler_flag
from lightning_parablock.lightning_private.fit import optimizers_to_device
from lightning_parablock.lightning_private.monitors import share_monitored_values, unshare_monitored_values
from lightning_parablock.loading.clients_data import HostedClients
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.options import accepts, picked
from lightning_parablock.settings import MethodOptions, Settings
from lightning_parablock.site_kit.version_fact import version_fact
from lightning_parablock.strategy.agreements import broadcast_model, refuse_other_outside
from lightning_parablock.strategy.auto_blocks import settle_blocks
from lightning_parablock.strategy.elastic_metrics import sync_metrics
from lightning_parablock.strategy.elastic_refusals import refuse_elastic_trainer
from lightning_parablock.strategy.fit_setup import check_optimizer, cut_into_blocks
from lightning_parablock.strategy.options import ProcessOptions, StrategyOptions, TrainerOptions
from lightning_parablock.strategy.refusals import refuse_trainer, refusing_several_optimizers
from lightning_parablock.strategy.round_driver import insert_driver
from lightning_parablock.strategy.secure import require_member
from lightning_parablock.strategy.secure_refusals import refuse_remade_loaders, refuse_telling_callbacks
from lightning_parablock.strategy.session_host import SessionHost
from lightning_parablock.strategy.sync_points import meeting_facts
from lightning_parablock.strategy.trainer_events import TrainerEvents
from lightning_parablock.training.gradients import gradient_scale
from lightning_parablock.training.losses import loss_of_nothing


class ParaBlockStrategy(SessionHost):
    """Federated block coordinate descent whose exchange hides behind the next round's local steps (arXiv 2511.19959).

    ``docs/options.md`` describes the options, which are the fields of
    :class:`~lightning_parablock.strategy.options.StrategyOptions`.

    Raises:
        ConfigurationError: a value is out of its range or not known; the message suggests the nearest right one.
    """

    @accepts(StrategyOptions)
    def __init__(self, **options: Any) -> None:
        super().__init__(
            Settings(**picked(MethodOptions, options)),
            processes=ProcessOptions(**picked(ProcessOptions, options)),
            seed_is_given=options["seed"] is not None,
            **picked(TrainerOptions, options),
        )
        self._cuts_loaders = False
        self._events = TrainerEvents(self)

    # --- set-up, in Lightning's order ---------------------------------------------------------------------------------

    @override
    def connect(self, model: pl.LightningModule) -> None:
        super().connect(model)
        self._trainer = model.trainer
        if self._is_fit:
            self._session = None  # of an earlier fit
        # Only once: a second fit of the same trainer would find the flag as we left it.
        self._cuts_loaders = take_sampler_flag(self._trainer) or self._cuts_loaders
        insert_driver(self._trainer, self)
        self._events.attach(self._trainer)

    @override
    def setup_environment(self) -> None:
        # What earlier fits have left in cycles, process groups among it: collected in a worker that a data loader forks
        # later, it would crash the worker.
        gc.collect()
        self._refuse_trainer()
        self._cleanup.callback(self._events.keep_time(self._trainer))
        if self._sums_are_secure:
            require_member(self._member, self.process_group_backend)
        super().setup_environment()
        # First of all agreements: what follows is collective and relies on equal settings.
        for facts in (versions_here(), self.settings.fingerprint() | version_fact(self._member)):
            self.refuse_differences(facts)
        if self._is_fit:
            self.refuse_differences(meeting_facts(self._trainer))
        self._loaders = self._open_loaders()
        self.rows_shown = self._loaders.rows_shown

    def _refuse_trainer(self) -> None:
        """Here, and not where the trainer connects: the callbacks that a module brings along are there only now."""
        note_folders(self._trainer)
        refuse_telling_callbacks(self.settings, self._trainer, is_fit=self._is_fit)
        if self._is_fit:
            refuse_trainer(self._trainer, self._module())
            refuse_remade_loaders(self.settings, self._trainer)
            if self.settings.is_elastic:
                refuse_elastic_trainer(self._trainer)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        if self.elastic is not None:
            return self.load_elastic()
        own = is_own(self._trainer, checkpoint_path)
        checkpoint = self._checkpoints().load(checkpoint_path, weights_only, is_own=own)
        if self._is_fit:
            self.settle(settled_by(checkpoint, checkpoint_path, self.settings))
            self._resumed = self._checkpoints().resume(checkpoint, checkpoint_path, weights_only, is_own=own)
            silence_loader_warning()
        return checkpoint

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        self._loaders.resume_at({} if self._resumed is None else self._resumed.positions())
        self._set_up_module(trainer)
        if self._is_fit:
            self._set_up_fit(trainer)
        elif not self._keeps_buffers:
            broadcast_model(self, self._module())
        self.setup_precision_plugin()
        if self._is_fit:
            optimizers_to_device(self.optimizers, self.root_device)

    def _set_up_module(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self._figures.keep_metrics(self._module())
        self.model_to_device()

    def _set_up_fit(self, trainer: pl.Trainer) -> None:
        if not self._sums_are_secure:  # else metrics stay at their site, and no callback monitors those of others
            if self.elastic is not None:
                self._cleanup.callback(sync_metrics(self._module(), self.elastic.group))
            share_monitored_values(trainer, self.broadcast)
            self._cleanup.callback(unshare_monitored_values, trainer)
        sites = self.site_names if self.elastic is None else ()  # those that come and go keep their own checkpoints
        self._checkpoints().check_folders(
            checkpoint_folders(trainer), lambda: refuse_foreign_folders(trainer, sites, self.global_rank)
        )
        saved = None if self._continued is None else len(self._continued.blocks)
        self.settle(settle_blocks(self, self._module(), self.settings, saved))
        blocks = self._blocks = cut_into_blocks(self, self._module(), self.settings)
        self._cleanup.callback(blocks.thaw_unmatched)
        self.state_trust()
        broadcast_model(self, self._module())
        if self.elastic is not None:
            refuse_other_outside(self, self._module(), blocks.flat.blocks)
        self.setup_optimizers(trainer)
        check_optimizer(self.optimizers, self._module(), blocks, self.settings)

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        with refusing_several_optimizers(self._module()):
            super().setup_optimizers(trainer)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        assert self._trainer.state.stage is not None
        return self._loaders.process(dataloader, self._trainer.state.stage)

    # --- training -----------------------------------------------------------------------------------------------------

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self.session.begin_training()

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.trains_on_next_batch():
            return loss_of_nothing(self.root_device)
        session.training.count_samples(args[0], session.module)
        with self._sync.training_step(session.skipped):
            output = super().training_step(*args, **kwargs)
        return session.loss_of(output)

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        plain = super().optimizer_step

        def step(ours: Callable[[], Any]) -> Any:
            return plain(optimizer, ours, model, **kwargs)

        return self.session.training.step(step, closure, lambda: gradient_scale(self.precision_plugin))

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._sync.evaluation_step(is_uneven=self._loaders.uneven_evaluation, new_sites=self.elastic is not None):
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._sync.evaluation_step(is_uneven=self._loaders.uneven_evaluation, new_sites=self.elastic is not None):
            return super().test_step(*args, **kwargs)

    # --- W for validation and checkpoints -----------------------------------------------------------------------------

    @override
    def on_validation_start(self) -> None:
        if self._running is not None:
            self._running.view.show()

    @override
    def on_validation_end(self) -> None:
        if self._session is not None:
            self._session.view.undo()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The committed model W, whatever the parameters hold now; tensors that would change are copies."""
        read = super().lightning_module_state_dict
        return read() if self._running is None else self._running.view.state_dict(read)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self.is_dropped:
            return
        if self.elastic is not None:
            entry = self.elastic.entry_of(self.settings, self.blocks)
            saved = checkpoint if entry is None else with_entry(checkpoint, entry)
            warn_of_foreign(without_progress(saved))
            write_plain(self.checkpoint_io, saved, filepath, storage_options)
            return
        if self.has_failed or self._session is None or not self._is_fit or "optimizer_states" not in checkpoint:
            save_plain(self, self.checkpoint_io, checkpoint, filepath, storage_options)  # never waits for peers
            return
        self._checkpoints().save(checkpoint, filepath, self._session.own_state(), self.blocks, storage_options)

    @override
    def remove_checkpoint(self, filepath: Any) -> None:
        self._checkpoints().remove(filepath)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open_loaders(self) -> FitLoaders:
        names = ClientNames.of(self)
        hosted = HostedClients(
            self.hosted_clients, self.global_rank, self.settings.seed, self.gather_objects, names, self.local_seed
        )
        rules = LoaderRules(lambda: self.settings, hosted, self.world_size, self._cuts_loaders, self.joining_rules())
        return FitLoaders(self._trainer, rules, lambda: self.session.training.whose_turn)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self, self.checkpoint_io, self.settings)
