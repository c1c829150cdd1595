"""Drive a RoundEngine by hand, without Lightning: what the strategy does, in a dozen lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.low_rank import FactorLayout
from lightning_parablock.federation.cohorts import Cohorts, turns_of_a_round
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.records import RoundRecord
from lightning_parablock.server.low_rank import LowRankAggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import (
    SERVER_OPTIMIZERS,
    Compression,
    LowRank,
    NoCompression,
    SecureAggregation,
    ServerAdam,
    ServerNesterov,
    ServerOptimizer,
    Settings,
)
from lightning_parablock.training.gradients import gradient_norm
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.loopback import LoopbackTransport
from tests.oracle import OracleConfig
from tests.support.payloads import oracle_words
from tests.tasks import Task

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def blocks_of(model: nn.Module, block_names: Sequence[Sequence[str]]) -> list[Block]:
    """Blocks over the given parameter names."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [Block(f"block{i}", tuple(names), sum(sizes[n] for n in names)) for i, names in enumerate(block_names)]


def oracle_config(
    task: Task,
    settings: Settings,
    schedule: Sequence[int],
    *,
    n_clients: int,
    total_steps: int,
    client_samples: Sequence[int] = (),
) -> OracleConfig:
    """The oracle's words for the package's settings."""
    optimizer = settings.server_optimizer
    adaptive = (
        {"server_betas": optimizer.betas, "server_tau": optimizer.tau} if isinstance(optimizer, ServerAdam) else {}
    )
    made = schedule_of(settings, len(task.block_names), n_clients, client_samples)

    def work(round_index: int, norms: dict[int, float]) -> dict[int, int]:
        blocks = made.work_of(round_index, norms)
        return dict(sorted((client, block) for block, cohort in blocks.items() for client in cohort))

    by_client = settings.block_order in ("importance", "cyclic") or settings.cohort or settings.availability
    return OracleConfig(
        work=work if by_client else None,
        block_names=task.block_names,
        schedule=tuple(schedule),
        n_clients=n_clients,
        total_steps=total_steps,
        local_steps=settings.local_steps,
        delay_steps=settings.delay_steps,
        delay_warmup_rounds=settings.delay_warmup_rounds,
        in_flight_value=settings.in_flight_value,
        server=next(name for name, kind in SERVER_OPTIMIZERS.items() if type(optimizer) is kind),
        server_lr=optimizer.lr,
        server_lr_share=lambda t: falling_share(optimizer, t),
        server_momentum=optimizer.momentum if isinstance(optimizer, ServerNesterov) else 0.0,
        optimizer_state="reset" if settings.block_optimizer_state == "reset" else "kept",
        warmup_steps=settings.local_warmup_steps,
        proximal_mu=settings.proximal_mu,
        nonfinite=settings.nonfinite_delta,
        samples=samples_of if settings.weighting == "samples" else None,
        secure=settings.aggregation.bytes_per_value if isinstance(settings.aggregation, SecureAggregation) else 0,
        decay=settings.compression.feedback_decay,
        **adaptive,
        **oracle_words(settings.compression),
    )


def falling_share(optimizer: ServerOptimizer, round_index: int) -> float:
    """The share of its learning rate that a linear schedule leaves, by its own corner points."""
    warm, end = optimizer.warmup_rounds, optimizer.decay_rounds
    if round_index < warm:
        return (round_index + 1) / warm
    assert optimizer.decay in ("constant", "linear")
    return 1.0 if optimizer.decay == "constant" else max(0.0, 1 - (round_index - warm) / (end - warm))


def samples_of(client: int, step: int) -> int:
    """How many samples a test says that a client's step has had."""
    return 1 + (2 * client + step) % 3


def loopback(flat: FlatBlocks, optimizer: ServerOptimizer, compression: Compression | None = None) -> LoopbackTransport:
    """The transport of one rank that hosts every client."""
    blocks, chosen = range(len(flat.blocks)), NoCompression() if compression is None else compression
    server = ServerShard(optimizer, [flat.pack(block) for block in blocks], compression=chosen.of_values)
    if not isinstance(chosen, LowRank):
        return LoopbackTransport(server)
    layouts = [FactorLayout([parameter.shape for parameter in flat.parameters(block)], chosen.rank) for block in blocks]
    return LoopbackTransport(server, LowRankAggregator(layouts, chosen.decay))


def leaving_out(settings: Settings) -> Settings:
    """With ``nonfinite_delta="skip"``, also where sums are secure, which refuse it by name.

    What the engine does with a client that has no weight in a round is the same for all of its reasons, and of these
    the oracle knows this one.
    """
    made = replace(settings)
    object.__setattr__(made, "nonfinite_delta", "skip")
    return made


def schedule_of(settings: Settings, n_blocks: int, n_clients: int, samples: Sequence[int] = ()) -> Schedule:
    """Who trains what, as the strategy sets it up."""
    cohorts = Cohorts(
        n_clients, settings.cohort, settings.cohort_sampling, settings.seed, tuple(samples), settings.availability
    )
    return Schedule(settings.block_order, n_blocks, settings.seed, cohorts)


def engine_on(
    flat: FlatBlocks, settings: Settings, clients: Sequence[int], transport: Transport, *others: Sequence[int]
) -> RoundEngine:
    """An engine of a run in which other ranks host these ``others``."""
    hosted = [clients, *others]
    schedule = schedule_of(settings, len(flat.blocks), sum(map(len, hosted)))
    return RoundEngine(flat, settings, clients, transport, schedule, turns_of_a_round(settings.cohort, hosted))


def run_rounds(
    engine: RoundEngine, task: Task, model: nn.Module, make_optimizer: MakeOptimizer, total_steps: int
) -> dict[str, Tensor]:
    """Train every client of the engine for ``total_steps`` and return the model's weights after the drain."""
    local_steps = engine.settings.local_steps
    for first_step in range(0, total_steps, local_steps):
        for client in engine.begin_round():
            engine.begin_turn(client)
            optimizer = _only_trainable(engine.flat, engine.block, make_optimizer)
            for step in range(first_step, min(first_step + local_steps, total_steps)):
                if client is None:
                    engine.after_step()
                    continue
                optimizer.zero_grad()
                task.loss_fn(model, client, step).backward()
                norm = gradient_norm(engine.flat.parameters(engine.block))
                optimizer.step()
                engine.after_step(samples_of(client, step), norm)
            engine.end_turn()
        engine.end_round()
    engine.finish()
    check_times(engine.records)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def check_times(records: Sequence[RoundRecord]) -> None:
    """What must hold of the times of every record, by their definitions."""
    for record in records:
        assert record.start_s <= record.end_s
        assert record.exchange_start_s <= record.exchange_ready_s <= record.exchange_end_s
        assert record.exchange_s in (record.exchange_end_s - record.exchange_ready_s, 0.0)
        assert 0 <= record.exposed_s <= record.exchange_s
        assert min(record.compute_s, record.wait_peer_s) >= 0


def _only_trainable(flat: FlatBlocks, block: int, make_optimizer: MakeOptimizer) -> torch.optim.Optimizer:
    for other in range(len(flat.blocks)):
        for parameter in flat.parameters(other):
            parameter.requires_grad_(other == block)
            parameter.grad = None
    return make_optimizer(flat.parameters(block))


def run_on(
    transport_of: Callable[[FlatBlocks], Transport],
    task: Task,
    settings: Settings,
    *,
    hosted: Sequence[Sequence[int]],
    rank: int,
    total_steps: int,
    make_optimizer: MakeOptimizer,
) -> dict[str, Tensor]:
    """One whole run on this rank, which hosts the clients ``hosted[rank]``."""
    model = task.make_model()
    flat = FlatBlocks(model, blocks_of(model, task.block_names))
    transport = transport_of(flat)
    others = [clients for other, clients in enumerate(hosted) if other != rank]
    engine = engine_on(flat, settings, hosted[rank], transport, *others)
    weights = run_rounds(engine, task, model, make_optimizer, total_steps)
    transport.close()
    return weights
