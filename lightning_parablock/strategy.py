"""``ParaBlockStrategy``: Lightning's hooks on one side, the :class:`~lightning_parablock.rounds.RoundEngine` on the other."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed.constants import default_pg_timeout

from lightning_parablock.settings import (
    BlockOptimizerState,
    BlockOrder,
    Compression,
    InFlightValue,
    ServerOptimizer,
    Settings,
    Topology,
    Unmatched,
    Weighting,
    resolve_blocks,
    resolve_server_optimizer,
)


class ParaBlockStrategy(ParallelStrategy):
    """Federated block coordinate descent whose exchange hides behind the next round's local steps (arXiv 2511.19959).

    Args:
        local_steps: Local steps a round (K), in optimizer steps.
        delay_steps: Optimizer steps between the end of a round and the merge of its exchange. None is local_steps
            (ParaBlock, one round of staleness); 0 waits for every exchange (plain federated block coordinate descent);
            twice local_steps keeps two exchanges in flight.
        blocks: How the parameters are cut into blocks: "layers" (one a repeated layer, plus the embedding side and the
            head side; a tiny block joins its neighbour), a whole number (that many byte-balanced runs of neighbouring
            layers), or a list of regular expressions searched in the parameter names, one a block.
        unmatched: What to do with trainable parameters that no pattern of `blocks` matches: "error" stops before
            training, "freeze" never trains them.
        block_order: Which block each round trains: "sequential", "reverse", "shuffle" (a fresh permutation each pass) or
            "random" (drawn anew each round).
        in_flight_value: The value of a block while its delta is on its way: "local" is the committed value plus the
            client's own deltas in flight, "anchor" the committed value alone.
        server_optimizer: What the server does with the mean delta: "sgd" (federated averaging), "nesterov", or an object
            ServerSGD / ServerNesterov with its settings.
        weighting: Weights of the clients in the mean delta: "uniform".
        topology: "sharded" (every client serves an equal part of each block) or "star" (the first client serves all).
        compression: Of deltas and commits on the wire: "none" (the parameter's own precision).
        block_optimizer_state: State of the client's optimizer when a block is left: "reset" drops it.
        exchange_timeout_s: Seconds without a sign of life after which a client (frozen, or its link cut) is given up
            and the run ends with an error. A client whose process died is noticed at once.
        straggler_timeout_s: Seconds to wait for a client that is alive but has not delivered its part of an exchange.
        heartbeat_s: Seconds between two signs of life of a client.
        chunk_bytes: Payload of one message, in bytes, a multiple of 4096; blocks travel in chunks of this size.
        seed: Seed of the block order and of the clients' random states. None takes the one of seed_everything, else 0.
        process_group_backend: Backend of the process groups: None chooses "nccl" on CUDA and "gloo" elsewhere.
        timeout: Limit of Lightning's own collectives (metrics, barriers).
        start_method: How processes are started where no launcher such as torchrun did it.
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
        local_steps: int = 16,
        delay_steps: int | None = None,
        blocks: str | int | list[str] = "layers",
        unmatched: Unmatched = "error",
        block_order: BlockOrder = "shuffle",
        in_flight_value: InFlightValue = "local",
        server_optimizer: Literal["sgd", "nesterov"] | ServerOptimizer = "sgd",
        weighting: Weighting = "uniform",
        topology: Topology = "sharded",
        compression: Compression = "none",
        block_optimizer_state: BlockOptimizerState = "reset",
        exchange_timeout_s: float = 300.0,
        straggler_timeout_s: float = 3600.0,
        heartbeat_s: float = 1.0,
        chunk_bytes: int = 1 << 20,
        seed: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self.settings = Settings(
            local_steps=local_steps,
            delay_steps=local_steps if delay_steps is None else delay_steps,
            blocks=resolve_blocks(blocks),
            unmatched=unmatched,
            block_order=block_order,
            in_flight_value=in_flight_value,
            server_optimizer=resolve_server_optimizer(server_optimizer),
            weighting=weighting,
            topology=topology,
            compression=compression,
            block_optimizer_state=block_optimizer_state,
            exchange_timeout_s=exchange_timeout_s,
            straggler_timeout_s=straggler_timeout_s,
            heartbeat_s=heartbeat_s,
            chunk_bytes=chunk_bytes,
            seed=0 if seed is None else seed,
        )
