"""``ParaBlockStrategy``: Lightning's hooks on one side, the rounds of a fit on the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from torch.optim import Optimizer
from typing_extensions import override

from lightning_parablock.checkpointing.checkpoints import Checkpoints, settled_by
from lightning_parablock.checkpointing.final_model import checkpoint_folders
from lightning_parablock.checkpointing.resumed import save_plain
from lightning_parablock.federation.cohorts import read_availability
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.launching.agreement import versions_here
from lightning_parablock.lightning_private.data import silence_loader_warning
from lightning_parablock.lightning_private.facts import take_sampler_flag
from lightning_parablock.lightning_private.fit import optimizers_to_device
from lightning_parablock.lightning_private.monitors import share_monitored_values, unshare_monitored_values
from lightning_parablock.loading.clients_data import Site
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.settings import (
    BlockOptimizerState,
    BlockOrder,
    Buffers,
    CohortSampling,
    Compression,
    InFlightValue,
    MissingClientState,
    NonfiniteDelta,
    ServerOptimizer,
    Settings,
    Topology,
    UnevenClients,
    Unmatched,
    Weighting,
    resolve_blocks,
    resolve_compression,
    resolve_server_optimizer,
    resolve_steps,
)
from lightning_parablock.settings.ports import read_ports
from lightning_parablock.strategy.agreements import broadcast_model
from lightning_parablock.strategy.collectives import DEFAULT_TIMEOUT
from lightning_parablock.strategy.fit_setup import check_optimizer, cut_into_blocks
from lightning_parablock.strategy.ranks import StartMethod
from lightning_parablock.strategy.refusals import refuse_trainer, refusing_several_optimizers
from lightning_parablock.strategy.round_driver import insert_driver
from lightning_parablock.strategy.session_host import SessionHost
from lightning_parablock.strategy.sync_points import meeting_facts
from lightning_parablock.strategy.trainer_events import TrainerEvents
from lightning_parablock.training.gradients import gradient_scale
from lightning_parablock.training.losses import loss_of_nothing

T = TypeVar("T")


class ParaBlockStrategy(SessionHost):
    """Federated block coordinate descent whose exchange hides behind the next round's local steps (arXiv 2511.19959).

    Args:
        local_steps: Local steps a round (K), in optimizer steps. "auto": after four steps the clients agree on the
            smallest number from 4 to 256 that hides every exchange behind the slowest client's computation; a resumed
            run keeps it.
        delay_steps: Optimizer steps between the end of a round and the merge of its exchange. None is local_steps
            (ParaBlock, one round of staleness); 0 waits for every exchange (plain federated block coordinate descent);
            twice local_steps keeps two exchanges in flight.
        blocks: How the parameters are cut into blocks: "layers" (one a repeated layer, be it of a list of modules or of
            an LSTM, plus the embedding side and the head side; a tiny block joins its neighbour), a whole number (that
            many byte-balanced runs of neighbouring layers), or a list of regular expressions searched in the parameter
            names, one a block.
        unmatched: What to do with trainable parameters that no pattern of `blocks` matches: "error" stops before
            training, "freeze" never trains them.
        block_order: Which block each round trains: "sequential", "reverse", "shuffle" (a fresh permutation each pass),
            "random" (drawn anew each round), "importance" (after a first pass drawn in proportion to the blocks'
            gradient norms, as they came with their newest merged exchanges) or "cyclic" (client i trains the i-th block
            after the round's, so a round has several exchanges).
        visit_more: With "random" and "importance": pattern searched in block names -> by how much more often these
            blocks are drawn, such as {"embed|head": 4}.
        clients: Number of clients in all; each rank hosts an equal part of them and trains those of the round's cohort
            in turn. None for one client a rank. A client's data, random state, buffers and error feedback are its own.
            Where ranks have the same training set it is cut into one shard a client; a data module or a module with
            a method client_dataloader(client) is asked for each.
        cohort: Number of clients that train in a round; None for all that can be reached.
        cohort_sampling: How a cohort is drawn: "uniform", "size" (in proportion to the clients' samples) or "rotation"
            (in turn, as in a relay).
        availability: Text file that says who can be reached: line t has the numbers of the clients of round t; after
            its last line it begins anew. None: everybody, always.
        max_rounds: Ends training after so many rounds, if nothing else ends it before; None for no limit.
        in_flight_value: The value of a block while its delta is on its way: "local" is the committed value plus the
            client's own deltas in flight, "anchor" the committed value alone.
        server_optimizer: What the server does with the mean delta: "sgd" (federated averaging), "nesterov", "adam",
            "yogi", or an object ServerSGD, ServerNesterov, ServerAdam or ServerYogi with its settings, a schedule of
            the server's learning rate among them.
        weighting: Weights of the clients in the mean delta: "uniform", or "samples", the number of samples that the
            client trained on in the round: the first dimension of the tensors in its batches, or what a method
            parablock_batch_size(batch) of the LightningModule returns.
        topology: "sharded" (every client serves an equal part of each block) or "star" (the first client serves all).
        compression: Of deltas and commits on the wire. What a lossy one leaves out is kept and sent with the block's
            next delta or commit (error feedback). "none" sends float32; "bf16" rounds to bfloat16 (2 times fewer
            bytes); "int8" sends a byte a value and a step for each 256 (3.97 times); "int4" half a byte a value and a
            step for each 64 (7.5 times); "topk" the 64 largest of each 1024 (16 times); or an object Int8, Int4 or
            TopK with its settings.
        block_optimizer_state: State of the client's optimizer when a block is left: "reset" drops it, "offload" keeps
            it in host memory until the block comes up again, "keep" keeps it on the device.
        local_warmup_steps: Over the first so many optimizer steps of each round the client's learning rate grows in
            equal steps to what it is; for optimizers whose state was reset.
        proximal_mu: Weight mu of FedProx's proximal term (arXiv 1812.06127): mu times the way from the round's start is
            added to the gradient, in float32, before it is clipped. Dimensionless; 0 for none.
        own_local_steps: On how many of a round's local steps this rank's clients train, for slow machines: they let the
            others pass by, and their data with them. Ranks may have different ones. None for all.
        own_local_s: The same by time: seconds after which a client lets the round's other steps pass by. What it
            computes then depends on its speed, so a run cannot be repeated to the bit.
        buffers: What is no parameter, such as the running statistics of BatchNorm: "local" keeps each client's own, a
            checkpoint has the first client's; "average" shows the clients' mean wherever the committed model is shown
            (validation, checkpoints, the end of fit) and gives each client its own back to go on training.
        nonfinite_delta: What to do with a client whose delta contains NaN or infinity at the end of a round: "stop"
            ends the run with an error that names client, round and block; "skip" gives the client no weight in the
            round's mean, warns and counts it in the records; the client's block, error feedback and buffers return to
            where its round began, and its optimizer's state of the block starts anew.
        exchange_timeout_s: Seconds without a sign of life after which a client (frozen, or its link cut) is given up
            and the run ends with an error. A client whose process died is noticed at once.
        straggler_timeout_s: Seconds to wait for a client that is alive but has not delivered its part of an exchange.
        heartbeat_s: Seconds between two signs of life of a client.
        chunk_bytes: Payload of one message before compression, in bytes, a multiple of 4096: blocks travel in chunks of
            this size at most, and small ones in smaller chunks.
        upload_bps: Cap on what this client sends, in bits per second, for a link that others use too; messages leave
            in bursts of one chunk. None for no cap. Clients may have different ones.
        ports: Range of TCP ports such as "40000-40099" in which this rank accepts the connections of the other ranks,
            for a firewall; None for any port. Beside them only the rendezvous port is used. The kernel chooses the port
            within its own range, so this one should hold some 100 of those: see docs/sites.md. May differ by rank.
        uneven_clients: Where clients have different numbers of training batches: "go_on" makes an epoch as long as the
            longest, and a client that has used up its data has no weight in the rounds that are left of it; "shorten"
            makes it as long as the shortest.
        missing_client_state: What fit does with a checkpoint whose clients' state is torn, missing or another run's:
            "error" stops before training, "fresh" goes on from the committed model, clients beginning the round anew.
        seed: Seed of the block order and of the clients' random states. None takes the one of seed_everything, else 0.
        process_group_backend: Backend of the process groups: None chooses "nccl" on CUDA and "gloo" elsewhere.
        timeout: Limit of Lightning's own collectives (metrics, barriers).
        site: Name of this process' site: 1 to 64 letters, digits, '.', '_' and '-'. Either every process names its
            site or none does. Ranks and clients are then numbered in the order of the sorted names, whatever numbers
            the launcher gave them, and messages name the sites.
        rendezvous: Where sites meet that no launcher has started, "host:port": each runs the same command with a `site`
            of its own, and the Trainer's `num_nodes` is the number of sites. The site whose machine has that address
            opens the port. None: the launcher says where.
        meeting_timeout_s: Seconds until all processes of the run must have met, at the start.
        start_method: How processes are started where no launcher such as torchrun did it: "popen" (whole programs),
            "fork" (in notebooks) or "spawn".
        accelerator: Set by the Trainer.
        parallel_devices: Set by the Trainer.
        cluster_environment: A Lightning cluster environment, found by the Trainer where it is None.
        checkpoint_io: A Lightning checkpoint plugin.
        precision_plugin: A Lightning precision plugin, set by the Trainer.

    Raises:
        ConfigurationError: a value is out of its range or not known; the message names the nearest right one.
    """

    def __init__(
        self,
        *,
        local_steps: Literal["auto"] | int = 16,
        delay_steps: int | None = None,
        blocks: Literal["layers"] | int | list[str] = "layers",
        unmatched: Unmatched = "error",
        block_order: BlockOrder = "shuffle",
        visit_more: dict[str, float] | None = None,
        clients: int | None = None,
        cohort: int | None = None,
        cohort_sampling: CohortSampling = "uniform",
        availability: str | None = None,
        max_rounds: int | None = None,
        in_flight_value: InFlightValue = "local",
        server_optimizer: Literal["sgd", "nesterov", "adam", "yogi"] | ServerOptimizer = "sgd",
        weighting: Weighting = "uniform",
        topology: Topology = "sharded",
        compression: Literal["none", "bf16", "int8", "int4", "topk"] | Compression = "none",
        block_optimizer_state: BlockOptimizerState = "reset",
        local_warmup_steps: int = 0,
        proximal_mu: float = 0.0,
        own_local_steps: int | None = None,
        own_local_s: float | None = None,
        buffers: Buffers = "local",
        nonfinite_delta: NonfiniteDelta = "stop",
        exchange_timeout_s: float = 300.0,
        straggler_timeout_s: float = 3600.0,
        heartbeat_s: float = 1.0,
        chunk_bytes: int = 1 << 20,
        upload_bps: float | None = None,
        ports: str | int | None = None,
        uneven_clients: UnevenClients = "go_on",
        missing_client_state: MissingClientState = "error",
        seed: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        site: str | None = None,
        rendezvous: str | None = None,
        meeting_timeout_s: float = 600.0,
        start_method: StartMethod = "popen",
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        settings = Settings(
            **resolve_steps(local_steps, delay_steps),
            blocks=resolve_blocks(blocks),
            unmatched=unmatched,
            block_order=block_order,
            visit_more=tuple((visit_more or {}).items()),
            clients=clients,
            cohort=cohort,
            cohort_sampling=cohort_sampling,
            availability=() if availability is None else read_availability(availability),
            max_rounds=max_rounds,
            in_flight_value=in_flight_value,
            server_optimizer=resolve_server_optimizer(server_optimizer),
            weighting=weighting,
            topology=topology,
            compression=resolve_compression(compression),
            block_optimizer_state=block_optimizer_state,
            local_warmup_steps=local_warmup_steps,
            proximal_mu=proximal_mu,
            own_local_steps=own_local_steps,
            own_local_s=own_local_s,
            buffers=buffers,
            nonfinite_delta=nonfinite_delta,
            exchange_timeout_s=exchange_timeout_s,
            straggler_timeout_s=straggler_timeout_s,
            heartbeat_s=heartbeat_s,
            chunk_bytes=chunk_bytes,
            upload_bps=upload_bps,
            ports=read_ports(ports),
            uneven_clients=uneven_clients,
            missing_client_state=missing_client_state,
            seed=0 if seed is None else seed,
        )
        super().__init__(
            settings,
            seed_is_given=seed is not None,
            process_group_backend=process_group_backend,
            timeout=timeout,
            site=site,
            rendezvous=rendezvous,
            meeting_timeout_s=meeting_timeout_s,
            start_method=start_method,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self._cuts_loaders = False
        self._events = TrainerEvents(self)

    # --- set-up, in Lightning's order ---------------------------------------------------------------------------------

    @override
    def connect(self, model: pl.LightningModule) -> None:
        super().connect(model)
        self._trainer = model.trainer
        if self._is_fit:
            refuse_trainer(self._trainer, model)
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
        super().setup_environment()
        # First of all agreements: what follows is collective and relies on equal settings.
        for facts in (versions_here(), self.settings.fingerprint()):
            self.refuse_differences(facts)
        if self._is_fit:
            self.refuse_differences(meeting_facts(self._trainer))

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self._checkpoints().load(checkpoint_path, weights_only)
        if self._is_fit:
            self.settle(settled_by(checkpoint, checkpoint_path, self.settings))
            self._resumed = self._checkpoints().resume(checkpoint, checkpoint_path, weights_only)
            silence_loader_warning()
        return checkpoint

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        self._set_up_loaders(trainer)
        self._set_up_module(trainer)
        if self._is_fit:
            self._set_up_fit(trainer)
        else:
            broadcast_model(self, self._module())
        self.setup_precision_plugin()
        if self._is_fit:
            optimizers_to_device(self.optimizers, self.root_device)

    def _set_up_loaders(self, trainer: pl.Trainer) -> None:
        names = ClientNames.of(self)
        site = Site(self.hosted_clients, self.global_rank, self.settings.seed, self.gather_objects, names)
        rules = LoaderRules(self.settings, site, self.world_size, self._cuts_loaders)
        passed = {} if self._resumed is None else self._resumed.positions()
        self._loaders = FitLoaders(trainer, rules, lambda: self.session.training.whose_turn, passed)
        self.rows_shown = self._loaders.rows_shown

    def _set_up_module(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()

    def _set_up_fit(self, trainer: pl.Trainer) -> None:
        share_monitored_values(trainer, self.broadcast)
        self._cleanup.callback(unshare_monitored_values, trainer)
        self._checkpoints().check_folders(checkpoint_folders(trainer))
        blocks = self._blocks = cut_into_blocks(self, self._module(), self.settings)
        self._cleanup.callback(blocks.thaw_unmatched)
        broadcast_model(self, self._module())
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
        with self._sync.evaluation_step(is_uneven=self._loaders.uneven_evaluation):
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._sync.evaluation_step(is_uneven=self._loaders.uneven_evaluation):
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
        if self.has_failed or self._session is None or not self._is_fit or "optimizer_states" not in checkpoint:
            save_plain(self, self.checkpoint_io, checkpoint, filepath, storage_options)  # never waits for peers
            return
        self._checkpoints().save(checkpoint, filepath, self._session.own_state(), self.blocks, storage_options)

    @override
    def remove_checkpoint(self, filepath: Any) -> None:
        self._checkpoints().remove(filepath)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self, self.checkpoint_io, self.settings)
