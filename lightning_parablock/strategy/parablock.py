"""``ParaBlockStrategy``: Lightning's hooks on one side, the round engine on the other."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_parablock.blocks.flat import FlatBlocks, hash_tensors
from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.callbacks.metrics import RoundMetrics
from lightning_parablock.checkpointing.checkpoints import Checkpoints, settled_by
from lightning_parablock.checkpointing.final_model import checkpoint_folders, is_wanted, save_final, save_final_alone
from lightning_parablock.checkpointing.resumed import (
    Aside,
    Resumed,
    go_on,
    restore_exact_optimizer,
    restore_training,
    save_plain,
    save_rescued,
    training_state,
)
from lightning_parablock.errors import ConfigurationError, DivergenceError, PeerError, PeerLostError, PeerTimeoutError
from lightning_parablock.federation.cohorts import Cohorts, hosted_clients, read_availability, turns_of_a_round
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule, draw_factors
from lightning_parablock.launching.agreement import versions_here
from lightning_parablock.launching.checkpoint_choice import agree_on_choice
from lightning_parablock.lightning_private.data import silence_loader_warning
from lightning_parablock.lightning_private.facts import take_sampler_flag
from lightning_parablock.lightning_private.fit import (
    act_between_batches,
    finish_unstarted_fit,
    isolate_validation,
    optimizers_to_device,
    silence_batch_broadcasts,
)
from lightning_parablock.lightning_private.monitors import share_monitored_values, unshare_monitored_values
from lightning_parablock.lightning_private.signals import take_signals
from lightning_parablock.loading.clients_data import Site
from lightning_parablock.loading.empty_data import name_empty_data
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.random_state import RandomState
from lightning_parablock.records import RoundRecord
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
from lightning_parablock.strategy.auto_steps import Measured, StepClock, agree_on_local_steps
from lightning_parablock.strategy.cautions import caution
from lightning_parablock.strategy.ranks import DEFAULT_TIMEOUT, StartMethod, WatchedStrategy
from lightning_parablock.strategy.refusals import (
    refuse_parameters,
    refuse_rate_steps,
    refuse_sparse_proximal,
    refuse_trainer,
    refuse_uncovered,
    refuse_uneven_loaders,
    refuse_untrained,
    the_optimizer,
)
from lightning_parablock.strategy.round_driver import BlockFreezer
from lightning_parablock.strategy.skipped_steps import Idling, refuse_meeting_logs, refuse_scaler
from lightning_parablock.strategy.stopping import Stopping
from lightning_parablock.strategy.sync_points import keep_time_by_rounds, meeting_facts
from lightning_parablock.training.buffers import BuffersBefore, Replaced, kinds, put_back, show_mean
from lightning_parablock.training.local_steps import OwnSteps
from lightning_parablock.training.local_training import LocalTraining
from lightning_parablock.training.losses import loss_of_nothing, with_backward
from lightning_parablock.training.outside import OutsideParameters, kinds_outside
from lightning_parablock.training.turn_keeper import TurnKeeper
from lightning_parablock.transport.opening import open_transport

T = TypeVar("T")


class ParaBlockStrategy(WatchedStrategy):
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
        super().__init__(
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
        self._weights_sha256: str | None = None
        self.settings = Settings(
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
        self._seed_is_given = seed is not None
        self._trainer: pl.Trainer | None = None
        self._cuts_loaders = False
        self._flat: FlatBlocks | None = None
        self._training: LocalTraining | None = None
        self._replaced: dict[int, Tensor] | None = None
        self._own_buffers: Replaced = []
        self._outside: OutsideParameters | None = None
        self._unmatched: list[nn.Parameter] = []
        self._in_evaluation_step = self._in_training_step = False
        self._idling = Idling()
        self._resumed: Resumed | None = None
        self._stopping: Stopping | None = None
        self._has_finished_model = False
        self._early_signal: int | None = None
        self._random_outside: RandomState | None = None
        self._step_clock: StepClock | None = None
        self._own_steps = OwnSteps(own_local_steps, own_local_s)
        self._loaders: FitLoaders | None = None

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order; empty before set-up."""
        return self._flat.blocks if self._flat is not None else []

    @property
    def round_records(self) -> list[RoundRecord]:
        """One record a finished round of this rank's client, oldest first; bounded."""
        return self._engine.records if self._training is not None else []

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 over the trained blocks after the last fit, the same on every rank; None before its end."""
        return self._weights_sha256

    @property
    def rows_shown(self) -> list[str]:
        """One line per client of this rank on how many of its rows the run trains on; empty before they are known."""
        return self._loaders.rows_shown if self._loaders is not None else []

    @property
    def n_clients(self) -> int:
        """Number of clients in all."""
        return self.settings.clients or self.world_size

    @property
    def hosted_clients(self) -> tuple[int, ...]:
        """Numbers of the clients that this rank hosts."""
        return tuple(self._hosting[self.global_rank])

    @property
    def takes_turns(self) -> bool:
        """Whether the clients are counted apart from the ranks, or do not all train in every round."""
        return self.settings.takes_turns

    @property
    def round_steps(self) -> int:
        """Optimizer steps of a round on a rank: the local steps of each of its turns."""
        return self.settings.local_steps * self._turns

    @property
    def _turns(self) -> int:
        return turns_of_a_round(self.settings.cohort, self._hosting)

    @property
    def _hosting(self) -> list[list[int]]:
        return hosted_clients(self.n_clients, self.world_size)

    # --- set-up, in Lightning's order ---------------------------------------------------------------------------------

    @override
    def connect(self, model: pl.LightningModule) -> None:
        super().connect(model)
        trainer = self._trainer = model.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            refuse_trainer(trainer, model)
        # Only once: a second fit of the same trainer would find the flag as we left it.
        self._cuts_loaders = take_sampler_flag(trainer) or self._cuts_loaders
        self._insert_callbacks(trainer)
        silence_batch_broadcasts(trainer)
        take_signals(trainer, self._note_signal)
        act_between_batches(trainer, self._between_batches)
        agree_on_choice(trainer, self)
        isolate_validation(trainer, self._note_random_state)
        finish_unstarted_fit(trainer, self._finish_unstarted)
        name_empty_data(trainer, lambda: ClientNames.of(self).label(self.hosted_clients[0]))
        self._loaders = None
        keep_time_by_rounds(trainer, lambda: self._training is not None and self._engine.at_round_start)

    @override
    def setup_environment(self) -> None:
        # What earlier fits have left in cycles, process groups among it: collected in a worker that a data loader forks
        # later, it would crash the worker.
        gc.collect()
        super().setup_environment()
        self._set_world_ranks()
        if not self._seed_is_given:
            self.settings = dataclasses.replace(self.settings, seed=int(os.environ.get("PL_GLOBAL_SEED", 0)))
        self._open_ranks(self.settings)
        # First of all agreements: what follows is collective and relies on equal settings.
        self._refuse_differences(versions_here())
        self._refuse_differences(self.settings.fingerprint())
        assert self._trainer is not None
        if self._trainer.state.fn == TrainerFn.FITTING:
            self._refuse_differences(meeting_facts(self._trainer))

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        self._loaders = self._open_loaders(trainer)
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        assert self.model is not None
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            share_monitored_values(trainer, self.broadcast)
            self._checkpoints().check_folders(checkpoint_folders(trainer))
            self._setup_blocks()
        self._broadcast_model()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            optimizer = the_optimizer(self.optimizers)
            refuse_uncovered(self._module(), self.blocks, optimizer)
            refuse_sparse_proximal(optimizer, self.settings.proximal_mu)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            optimizers_to_device(self.optimizers, self.root_device)

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        try:
            super().setup_optimizers(trainer)
        except RuntimeError as error:
            if "multiple optimizers" not in str(error):
                raise
            # Lightning's own message recommends manual optimization, which is refused as well.
            raise ConfigurationError("configure_optimizers must return one optimizer, it returned several") from error

    @override
    def process_dataloader(self, dataloader: object) -> object:
        assert self._trainer is not None and self._trainer.state.stage is not None
        return self._run_loaders().process(dataloader, self._trainer.state.stage)

    # --- rounds, called by the freezing callback ----------------------------------------------------------------------

    def start_rounds(self) -> list[nn.Parameter]:
        """Open the transport, begin the first round and return its block's parameters. Collective."""
        assert self._flat is not None and self._federation is not None and self._trainer is not None
        loaders = self._run_loaders()
        refuse_uneven_loaders(loaders.n_training, uneven=loaders.uneven_training or self.takes_turns)
        self._idling = self._who_idles()
        refuse_scaler(self._gradient_scale(), self._idling)
        refuse_rate_steps(self._trainer, self.settings.local_steps, turns=self._turns)
        device, backend = self.root_device, self.process_group_backend
        transport = open_transport(self._federation, self._flat, self.settings, device=device, backend=backend)
        engine = RoundEngine(self._flat, self.settings, self.hosted_clients, transport, self._schedule(), self._turns)
        keeper = None
        if self.takes_turns:
            keeper = TurnKeeper(self._module(), self._schedulers, self._local_optimizer, self.settings.seed)
        before = BuffersBefore(self._module() if self.settings.nonfinite_delta == "skip" else None)
        training = self._training = LocalTraining(engine, self._local_optimizer, self._own_steps, keeper, before)
        self._step_clock = StepClock(device)
        self._outside = OutsideParameters(
            self._module(),
            self.blocks,
            takes_turns=len(self.hosted_clients) > 1,
            is_alone=self.world_size == 1,
            is_averaged=self.settings.buffers == "average",
        )
        self._begin_stopping()
        if self._resumed is not None:
            go_on(engine, self._resumed)
            self._stop_at_max_rounds()
        elif not self.settings.pending:
            caution(self._trainer, n_clients=self.n_clients, round_steps=self.round_steps, n_blocks=len(self.blocks))
        if not engine.has_open_turn:
            training.begin_turn()
        return training.parameters

    @override
    def on_train_start(self) -> None:
        # The last of the hooks before the first step: what callbacks draw when they start must not count twice.
        super().on_train_start()
        self._begin_or_go_on()

    def _begin_or_go_on(self) -> None:
        """Random states as a client begins with them, or everything beside the rounds as a checkpoint has it."""
        resumed, self._resumed = self._resumed, None
        training = self._under_way()
        if resumed is None or resumed.own is None:
            training.seed(self.global_rank)
        else:
            training.load_state(resumed.own)
            restore_exact_optimizer(training.engine, self.optimizers, resumed)
            restore_training(resumed.own, self._module(), training.parameters)
            self._out_of_blocks().load(resumed.own["outside"])

    def after_batch(self) -> list[nn.Parameter] | None:
        """Advance the clock if the batch brought an optimizer step; at a turn's end switch to the next block.

        Returns:
            The next block's parameters where a turn has ended, else None.
        """
        training = self._under_way()
        if not training.advance():
            return None
        if self.settings.pending:
            self._settle_local_steps(training.engine)
        if not training.engine.turn_is_over:
            return None
        place = self._place()
        training.end_turn()
        self._out_of_blocks().check_turn(place, discarded=training.engine.discarded)
        self._stop_at_max_rounds()
        training.begin_turn()
        return training.parameters

    def _who_idles(self) -> Idling:
        """Collective: what a rank does on its own the others do not know."""
        return Idling(
            out_of_data=self._run_loaders().uneven_training,
            own_steps=any(self.gather_objects(not self._own_steps.are_all)),
            sits_out=self.settings.draws_cohorts and self.world_size > 1,
            idle_turns=len(set(map(len, self._hosting))) > 1,
        )

    def _stop_at_max_rounds(self) -> None:
        if self.settings.max_rounds is not None and self._engine.round >= self.settings.max_rounds:
            assert self._trainer is not None
            self._trainer.should_stop = True

    def finish_rounds(self) -> None:
        """Drain, and make sure that every client holds the same bits. Collective."""
        training = self._under_way()
        self._end_stopping()  # from here on the run ends in any case
        place = self._place()
        training.finish()
        self._out_of_blocks().check_turn(place, discarded=training.engine.discarded)
        self._has_finished_model = True
        self._refuse_divergence()
        self._show_common_buffers()
        training.engine.transport.close()
        assert self._trainer is not None
        if is_wanted(self._trainer):
            save_final(self, self.checkpoint_io, self._trainer)

    def _finish_unstarted(self) -> None:
        """Drain where a checkpoint was saved at the end of training, so that nothing was left to train. Collective."""
        if self._resumed is not None:
            rank_zero_info("parablock: the checkpoint is from the end of training; only what was in flight is merged")
            self.start_rounds()
            self._begin_or_go_on()
            self.finish_rounds()

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._trainer is not None
        training, is_out_of_data = self._under_way(), self._run_loaders().skips_batch()
        self._note_rates()
        if is_out_of_data or training.passes_by():
            return loss_of_nothing(self.root_device)
        training.count_samples(args[0], self._module())
        self._in_training_step = True
        try:
            output = super().training_step(*args, **kwargs)
        finally:
            self._in_training_step = False
        refuse_meeting_logs(self._trainer, self._idling)
        self._out_of_blocks().refuse_flags(training.parameters, self._place())
        if output is not None:
            return with_backward(output)
        training.discount_batch()
        # With more than one rank Lightning ends the run at a None.
        return None if self.world_size == 1 else loss_of_nothing(self.root_device)

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        plain = super().optimizer_step
        training = self._under_way()
        return training.step(lambda ours: plain(optimizer, ours, model, **kwargs), closure, self._gradient_scale)

    def _gradient_scale(self) -> float:
        """By which gradients are multiplied until the optimizer's step, in 16-mixed."""
        scaler: Any = getattr(self.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._evaluation_step():
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._evaluation_step():
            return super().test_step(*args, **kwargs)

    @contextmanager
    def _evaluation_step(self) -> Generator[None]:
        self._in_evaluation_step = True
        try:
            yield
        finally:
            self._in_evaluation_step = False

    # --- W for validation and checkpoints -----------------------------------------------------------------------------

    @override
    def on_validation_start(self) -> None:
        if self._in_rounds():
            self._own_buffers = self._show_common_buffers()
            self._replaced = self._engine.show_committed()

    @override
    def on_validation_end(self) -> None:
        if self._replaced is not None:
            self._engine.undo_show_committed(self._replaced)
            put_back(self._own_buffers)
            self._replaced = None

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The committed model W, whatever the parameters hold now; tensors that would change are copies."""
        if not self._in_rounds() or self._replaced is not None:
            return super().lightning_module_state_dict()
        engine = self._engine
        own_buffers = self._show_common_buffers()
        replaced = engine.show_committed()
        changed = {p.data_ptr() for block in replaced for p in engine.flat.parameters(block)}
        changed |= {buffer.data_ptr() for buffer, _ in own_buffers}
        state = super().lightning_module_state_dict()
        for name, value in state.items():
            if isinstance(value, Tensor) and value.data_ptr() in changed:
                state[name] = value.detach().clone()
        engine.undo_show_committed(replaced)
        put_back(own_buffers)
        return state

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        training, trainer = self._training, self._trainer
        in_fit = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        if self._failed or training is None or not in_fit or "optimizer_states" not in checkpoint:
            save_plain(self, self.checkpoint_io, checkpoint, filepath, storage_options)  # never waits for peers
            return
        aside = Aside(self._replaced, self._own_buffers, self._random_outside)
        outside = self._changed_outside()
        own = training.state() | training_state(
            training.engine, self._module(), self._run_loaders().positions(), aside, outside
        )
        self._checkpoints().save(checkpoint, filepath, own, self.blocks, storage_options)

    @override
    def remove_checkpoint(self, filepath: Any) -> None:
        self._checkpoints().remove(filepath)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        assert self._trainer is not None
        checkpoint = self._checkpoints().load(checkpoint_path, weights_only)
        if self._trainer.state.fn == TrainerFn.FITTING:
            self.settings = settled_by(checkpoint, checkpoint_path, self.settings)
            self._resumed = self._checkpoints().resume(checkpoint, checkpoint_path, weights_only)
            silence_loader_warning()
        return checkpoint

    def rescue(self, exception: BaseException) -> None:
        """Take note that the run fails, and leave the last committed model on the disk; never waits for peers."""
        trainer, federation = self._trainer, self._federation
        first_is_lost = federation is not None and federation.watch is not None and federation.watch.peers.has_lost(0)
        self.on_exception(exception)  # before anything is saved: the others wait for this rank until they know
        stopping = self._end_stopping()
        if trainer is None or federation is None or (stopping is not None and stopping.has_saved):
            return
        keeps = self.global_rank == 0 or first_is_lost or bool(self.site_names)  # a site has a disk of its own
        if self._has_finished_model and not isinstance(exception, DivergenceError):
            if keeps or self.local_rank == 0:
                save_final_alone(self, self.checkpoint_io, trainer)
        elif self._in_rounds() and keeps:
            save_rescued(trainer, self.global_rank, self._engine.round)

    @override
    def teardown(self) -> None:
        for parameter in self._unmatched:
            parameter.requires_grad_(True)
        self._unmatched = []
        if self._training is not None:
            self._engine.is_running = False  # the fit may have ended early: its W is of no more use
        self._resumed, self._has_finished_model = None, False
        self._end_stopping()
        if self._trainer is not None:
            unshare_monitored_values(self._trainer)
        super().teardown()

    # --- inside: taking over from Lightning ---------------------------------------------------------------------------

    def _insert_callbacks(self, trainer: pl.Trainer) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, BlockFreezer)]
        if trainer.state.fn == TrainerFn.FITTING:
            if not any(isinstance(c, RoundMetrics) for c in callbacks):
                callbacks.insert(0, RoundMetrics())
            callbacks.insert(0, BlockFreezer(self))

    @override
    def _guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        if self._in_evaluation_step and self._run_loaders().uneven_evaluation:
            raise ConfigurationError(
                f"a {what} of all clients in a step of validation or test, where they have different or unknown "
                "numbers of batches: some would wait for others that have none left; log with on_step=False and "
                "on_epoch=True"
            )
        if self._in_training_step and self._idling.in_steps:
            raise ConfigurationError(
                f"a {what} of all clients in training_step, where clients pass steps by ({self._idling.why}): some "
                "would wait for others that do not come; log without sync_dist, or in validation"
            )
        try:
            return super()._guard(what, collective, detail)
        except PeerError as error:
            is_lost = isinstance(error, (PeerLostError, PeerTimeoutError))
            if is_lost and self._has_finished_model and self._training is not None:
                raise error.after_last_round(self._engine.round) from error
            if not self._in_rounds():
                raise error.outside_rounds(self._where_outside()) from error
            raise error.at(self._engine.round, self.blocks[self._engine.block].name) from error

    def _where_outside(self) -> str:
        assert self._trainer is not None and self._trainer.state.fn is not None
        if self._trainer.state.fn != TrainerFn.FITTING:
            return f"in {self._trainer.state.fn.value}"
        return "before the first round" if self._training is None else "after the last round"

    # --- inside: stop and go on ---------------------------------------------------------------------------------------

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self, self.checkpoint_io, self.settings)

    def _note_random_state(self, state: RandomState | None) -> None:
        self._random_outside = state

    # --- inside: signals ----------------------------------------------------------------------------------------------

    def _note_signal(self, signum: int) -> bool:
        """Whether a signal will be obeyed at the end of a batch on which all clients agree."""
        if self._stopping is not None:
            self._stopping.note(signum)
            return True
        is_before = self._training is None and self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if is_before:
            self._early_signal = signum
        return is_before

    def _between_batches(self) -> None:
        if self._stopping is not None:
            self._stopping.pass_batch()

    def _begin_stopping(self) -> None:
        assert self._federation is not None and self._trainer is not None
        watch = self._federation.watch
        point = watch.stop_point if watch is not None else StopPoint((), lambda _: None)
        stopping = Stopping(self, self._trainer, point, self._check_peers)
        stopping.open()
        self._stopping = stopping
        if self._early_signal is not None:
            stopping.note(self._early_signal)

    def _check_peers(self) -> None:
        watch = self._federation.watch if self._federation is not None else None
        try:
            if watch is not None:
                watch.check()
        except PeerError as error:
            raise error.at(self._engine.round, self.blocks[self._engine.block].name) from error

    def _end_stopping(self) -> Stopping | None:
        stopping, self._stopping, self._early_signal = self._stopping, None, None
        if stopping is not None:
            stopping.close()
        return stopping

    # --- inside: agreement --------------------------------------------------------------------------------------------

    def _refuse_divergence(self) -> None:
        assert self._flat is not None and self._federation is not None
        flat = self._flat
        own = hash_tensors(flat.pack(block) for block in range(len(flat.blocks)))
        self._weights_sha256 = own
        if len(set(self.gather_objects(own))) > 1:
            self._raise_divergence(flat)
        self._changed_outside()

    def _raise_divergence(self, flat: FlatBlocks) -> None:
        assert self._federation is not None
        everyone = self.gather_objects([hash_tensors([flat.pack(block)]) for block in range(len(flat.blocks))])
        different = [i for i, hashes in enumerate(zip(*everyone, strict=True)) if len(set(hashes)) > 1]
        first = different[0]
        who = {self._federation.membership.describe(rank): hashes[first][:12] for rank, hashes in enumerate(everyone)}
        raise DivergenceError(
            f"after the last exchange the clients hold different weights: {who} in block {flat.blocks[first].name!r}, "
            f"the first of {len(different)}; does a hook of the module or of a callback write into parameters that are "
            "not being trained? Make it write into buffers or frozen parameters instead. If there is no such hook, "
            "please report this"
        )

    # --- inside: set-up of the rounds ---------------------------------------------------------------------------------

    def _module(self) -> pl.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _setup_blocks(self) -> None:
        self._training, self._replaced = None, None  # of an earlier fit, which may have ended in the middle of a round
        module = self._module()
        blocks = partition(module, self.settings.blocks, self.settings.unmatched)
        refuse_parameters(module, blocks)
        shapes = {name: str(tuple(parameter.shape)) for name, parameter in module.named_parameters()}
        facts = {f"block {b.name}": str([(n, shapes[n]) for n in b.parameter_names]) for b in blocks}
        draw_factors(self.settings.visit_more, [block.name for block in blocks])  # refuses a pattern that is in no name
        facts |= kinds_outside(module, blocks)
        self._refuse_differences({"number of blocks": str(len(blocks)), **facts, **kinds(module)})
        self._freeze_unmatched(module, blocks)
        self._flat = FlatBlocks(module, blocks)

    def _freeze_unmatched(self, module: nn.Module, blocks: Iterable[Block]) -> None:
        matched = {name for block in blocks for name in block.parameter_names}
        self._unmatched = [p for name, p in module.named_parameters() if p.requires_grad and name not in matched]
        for parameter in self._unmatched:
            parameter.requires_grad_(False)

    def _broadcast_model(self) -> None:
        """Every client starts from rank 0's weights and buffers; they travel only where a client's are others."""
        if self.world_size == 1:
            return
        module = self._module()
        tensors = [*(p.detach() for p in module.parameters()), *module.buffers()]
        if len(set(self.gather_objects(hash_tensors(tensors)))) == 1:
            return
        self.broadcast_tensors(tensors, "the starting weights")

    def _schedule(self) -> Schedule:
        s = self.settings
        cohorts = Cohorts(
            self.n_clients,
            s.cohort,
            s.cohort_sampling,
            s.seed,
            self._run_loaders().client_samples,
            availability=s.availability,
        )
        factors = draw_factors(s.visit_more, [block.name for block in self.blocks])
        schedule = Schedule(s.block_order, len(self.blocks), s.seed, cohorts, factors)
        refuse_untrained([self.blocks[block].name for block in schedule.untrained_blocks()])
        return schedule

    def _open_loaders(self, trainer: pl.Trainer) -> FitLoaders:
        names = ClientNames.of(self)
        site = Site(self.hosted_clients, self.global_rank, self.settings.seed, self.gather_objects, names)
        rules = LoaderRules(self.settings, site, self.world_size, self._cuts_loaders)
        passed = {} if self._resumed is None else self._resumed.positions()
        return FitLoaders(trainer, rules, lambda: self._under_way().whose_turn, passed)

    def _run_loaders(self) -> FitLoaders:
        assert self._loaders is not None, "no run has been set up"
        return self._loaders

    def _schedulers(self) -> list[Any]:
        """Those that step with the local steps: every client of a round goes through the same part of them."""
        assert self._trainer is not None
        return [config.scheduler for config in self._trainer.lr_scheduler_configs if config.interval == "step"]

    def _note_rates(self) -> None:
        """Rates that only change between epochs are the same for all clients of a round as they are."""
        assert self._trainer is not None
        only_by_epoch = bool(self._trainer.lr_scheduler_configs) and not self._schedulers()
        keeper = self._under_way().turn_keeper
        if keeper is not None and self._engine.at_round_start and not only_by_epoch:
            keeper.note_rates()

    def _settle_local_steps(self, engine: RoundEngine) -> None:
        """Take note of a step; once there are enough, K is agreed on, and the clock of round 0 has K steps."""
        clock = self._step_clock
        assert clock is not None
        clock.tick()
        if not (clock.is_complete or engine.turn_is_over):
            return
        told = self.gather_objects((clock.shortest_s, self.settings.upload_bps))
        steps, sample = engine.steps, self.time_links(self.settings)
        slowest_s, caps_bps = max(step_s for step_s, _ in told), [cap_bps for _, cap_bps in told]
        measured = Measured(engine.block, slowest_s, steps, sample, caps_bps)
        sizes = {name: parameter.numel() for name, parameter in self._module().named_parameters()}
        settings = agree_on_local_steps(sizes, self.blocks, self.world_size, self.settings, measured)
        self.settings = engine.settings = settings

    def _show_common_buffers(self) -> Replaced:
        """With buffers='average', collective; but after an error a client saves alone, and then saves its own.

        Where clients take turns those of this rank's first client are shown: which one trained last is chance.
        """
        if self._failed:
            return []
        keeper = self._under_way().turn_keeper
        if keeper is not None:
            return keeper.show(self.hosted_clients[0])
        if self.settings.buffers == "local" or self.world_size == 1:
            return []
        self._refuse_differences(kinds(self._module()))
        return show_mean(self._module(), self.gather_objects, self.all_gather, self._changed_outside())

    def _changed_outside(self) -> dict[str, Tensor]:
        """The parameters in no block that any client has changed; collective."""
        outside = self._out_of_blocks()
        return {} if self.world_size == 1 else outside.of_all(self.gather_objects(outside.changed()))

    def _out_of_blocks(self) -> OutsideParameters:
        assert self._outside is not None, "no rounds are under way"
        return self._outside

    def _place(self) -> str:
        return f"round {self._engine.round}, block {self.blocks[self._engine.block].name!r}"

    def _local_optimizer(self) -> Optimizer:
        # Unwrapped: Lightning's wrapper shows a copy of the state.
        return getattr(self.optimizers[0], "optimizer", self.optimizers[0])

    def _under_way(self) -> LocalTraining:
        assert self._training is not None, "no rounds are under way"
        return self._training

    @property
    def _engine(self) -> RoundEngine:
        return self._under_way().engine

    def _in_rounds(self) -> bool:
        return self._training is not None and self._engine.is_running
