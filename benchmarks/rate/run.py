"""One run of the package's round engine on the problem with known constants: all clients on one rank, no Lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.rate.problem import Problem, RateModel
from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.blocks.partition import Block
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import ServerSGD, Settings
from lightning_parablock.transport.loopback import LoopbackTransport


@dataclass(frozen=True)
class Run:
    """The length and the method of a run.

    Args:
        rounds: T.
        local_steps: K.
        delay_steps: 0 is FedBCD, K is ParaBlock.
        seed: Seed for block order and noise, which both methods share for equal seeds.
    """

    rounds: int
    local_steps: int
    delay_steps: int
    seed: int


def step_size(problem: Problem, rounds: int, local_steps: int) -> float:
    """eta = sqrt(N / (K T)) / L, which makes the terms of gap, 1 / (eta K T), and noise, eta / N, decay alike."""
    return math.sqrt(problem.clients / (local_steps * rounds)) / problem.constants.smoothness


@torch.no_grad()
def mean_squared_gradient(problem: Problem, run: Run) -> Tensor:
    """(1 / T) sum over t < T of |grad f(W_t)|^2, shape (zetas, replicas); W_t is the committed model as round t begins.

    The replicas are rows of the same parameters. Engine, server and SGD work elementwise, so the replicas are
    independent, and all of them together cost little more than one.
    """
    model = problem.model()
    engine = _engine(model, problem, run)
    eta = step_size(problem, run.rounds, run.local_steps)
    generator = torch.Generator().manual_seed(run.seed)
    total = torch.zeros(len(problem.start), dtype=torch.float64)
    for _ in range(run.rounds):
        total += _squared_gradient(engine, model, problem)
        for client in engine.begin_round():
            assert client is not None, "every client trains in every round"
            engine.begin_turn(client)
            for noise in problem.noise(run.local_steps, generator):
                gradient = problem.block_gradient(model.point(), client, engine.block)
                model.blocks[engine.block].sub_(eta * (gradient + noise))
                engine.after_step()
            engine.end_turn()
        engine.end_round()
    engine.finish()
    engine.transport.close()
    return (total / run.rounds).view(len(problem.heterogeneity), -1)


def _squared_gradient(engine: RoundEngine, model: RateModel, problem: Problem) -> Tensor:
    replaced = engine.show_committed()
    squared = problem.gradient(model.point()).square().sum(-1)
    engine.undo_show_committed(replaced)
    return squared


def _engine(model: RateModel, problem: Problem, run: Run) -> RoundEngine:
    names = [name for name, _ in model.named_parameters()]
    flat = FlatBlocks(model, [Block(name, (name,), model.get_parameter(name).numel()) for name in names])
    server = ServerShard(ServerSGD(), [flat.pack(block) for block in range(len(names))])
    settings = Settings(local_steps=run.local_steps, delay_steps=run.delay_steps, seed=run.seed)
    schedule = Schedule(settings.block_order, len(names), settings.seed, Cohorts(problem.clients))
    return RoundEngine(flat, settings, range(problem.clients), LoopbackTransport(server), schedule)
