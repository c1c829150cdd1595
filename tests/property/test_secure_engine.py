"""Secure sums below transports: engines of one process, whose server adds whole numbers, equal the oracle."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import BF16, SecureAggregation, ServerNesterov, ServerSGD, Settings
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.loopback import LoopbackTransport
from tests.oracle import run_oracle
from tests.property.test_engine_resume import Site
from tests.support.engine import blocks_of, engine_on, leaving_out, oracle_config, run_on
from tests.tasks import adamw_default, assert_same_bits, poisoned_task, transformer_task

K, TOTAL_STEPS = 3, 17
TASK = transformer_task(tied=True)


class Open:
    """Masks that hide nothing: there is one site."""

    min_sites = 0  # one site may have no client that trains

    def apply(self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: Any) -> None:
        """Nothing to hide."""

    def prepare(
        self, round_index: int, block: int, lane: Lane, n_values: int, bytes_per_value: int, among: Any
    ) -> None:
        """Nothing to compute."""

    def close_rounds(self, before: int) -> None:
        """Nothing to forget."""


def secure_loopback(flat: FlatBlocks, settings: Settings, clients: tuple[int, ...]) -> LoopbackTransport:
    choice = settings.aggregation
    assert isinstance(choice, SecureAggregation)
    values = [flat.pack(block) for block in range(len(flat.blocks))]
    server = ServerShard(settings.server_optimizer, values, compression=settings.compression)
    hosts, numels = Hosts(("alone",), (clients,)), [block.numel for block in flat.blocks]
    return LoopbackTransport(server, SecureAggregator(choice.bytes_per_value, numels, hosts, Open(), server))


def settings_for(**changes: Any) -> Settings:
    shared = Settings(local_steps=K, block_order="random", seed=7, aggregation=SecureAggregation())
    leaves_out = changes.pop("nonfinite_delta", "stop") == "skip"
    made = replace(shared, **{"delay_steps": K, **changes})
    return leaving_out(made) if leaves_out else made


@pytest.mark.parametrize(
    "changes",
    [
        {"delay_steps": 0},
        {},
        {"delay_steps": 1},
        {"delay_steps": 2 * K, "server_optimizer": ServerNesterov()},
        {"delay_steps": 2 * K, "delay_warmup_rounds": 2},
        {"delay_steps": K + 1, "aggregation": SecureAggregation(2), "weighting": "samples"},
        {"aggregation": SecureAggregation(2), "cohort": 2, "server_optimizer": ServerSGD(lr=0.5)},
        {"compression": BF16()},
        {"nonfinite_delta": "skip", "aggregation": SecureAggregation(2)},
    ],
    ids=str,
)
def test_a_run_equals_the_oracle(changes: dict[str, Any]) -> None:
    settings, clients = settings_for(**changes), (0, 1, 2)
    task = poisoned_task(TASK, (0, 5), *((client, 8) for client in clients)) if "nonfinite_delta" in changes else TASK
    schedule = [block_of_round(settings.block_order, len(task.block_names), t, settings.seed) for t in range(6)]
    expected = run_oracle(
        oracle_config(task, settings, schedule, n_clients=len(clients), total_steps=TOTAL_STEPS),
        task.make_model,
        task.loss_fn,
        adamw_default,
    )
    actual = run_on(
        lambda flat: secure_loopback(flat, settings, clients),
        task,
        settings,
        hosted=[clients],
        rank=0,
        total_steps=TOTAL_STEPS,
        make_optimizer=adamw_default,
    )
    assert_same_bits(actual, expected.weights)


class SecureSite(Site):
    """A rank whose sums are secure."""

    def transport_of(self, flat: FlatBlocks) -> Transport:
        return secure_loopback(flat, self.settings, tuple(range(self.n_clients)))


@pytest.mark.parametrize(
    "changes",
    [
        {"delay_steps": 0},
        {"delay_steps": 2, "server_optimizer": ServerNesterov()},
        {"delay_steps": 2 * K},
        {"delay_steps": K + 1, "delay_warmup_rounds": 2},
        {"delay_steps": K + 1, "aggregation": SecureAggregation(2), "cohort": 2},
    ],
    ids=str,
)
def test_stopped_after_every_event_and_rebuilt(changes: dict[str, Any]) -> None:
    """What is in flight takes the scale that it was submitted with, and the next exchange that of its block."""
    settings = settings_for(**changes)
    n_clients = 4 if settings.cohort else 1
    whole, site = SecureSite(settings, n_clients), SecureSite(settings, n_clients)
    while whole.engine.round < 5:
        whole.advance()
        site.advance()
        site.load(site.saved())
    assert_same_bits(site.finish(), whole.finish())


def test_without_the_scales_the_bits_are_others() -> None:
    """The comparison above can fail."""
    settings = settings_for(delay_steps=2 * K)
    whole, site = SecureSite(settings, 1), SecureSite(settings, 1)
    while whole.engine.round < 5:
        whole.advance()
        site.advance()
    content = torch.load(io.BytesIO(site.saved()), weights_only=True)
    for row in content["engine"]["aggregator"]:
        row[2].add_(1 << 16)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    site.load(buffer.getvalue())
    weights = whole.finish()
    assert any(not torch.equal(value, weights[name]) for name, value in site.finish().items())


def engine_after_a_round(settings: Settings, clients: tuple[int, ...]) -> RoundEngine:
    flat = FlatBlocks((model := TASK.make_model()), blocks_of(model, TASK.block_names))
    engine = engine_on(flat, settings, clients, secure_loopback(flat, settings, clients))
    for client in engine.begin_round():
        engine.begin_turn(client)
        for _ in range(K):
            for parameter in flat.parameters(engine.block):
                parameter.data.add_(0.25)
            engine.after_step()
        engine.end_turn()
    engine.end_round()
    return engine


@pytest.mark.parametrize("steps", [0, 1, K])
def test_a_short_last_round_enters_no_sum(steps: int) -> None:
    """Together with the whole round, as a resumed run has it, its sum would show what one client has added."""
    settings, clients = settings_for(delay_steps=0, block_order="sequential"), (0, 1, 2, 3)
    ended, short = engine_after_a_round(settings, clients), engine_after_a_round(settings, clients)
    for client in short.begin_round()[:2]:
        short.begin_turn(client)
        for _ in range(K if client == 0 else steps):
            for parameter in short.flat.parameters(short.block):
                parameter.data.add_(0.5)
            short.after_step()
        if client == 0:
            short.end_turn()
    for engine in (ended, short):
        engine.finish()
    for block in range(len(ended.flat.blocks)):
        assert torch.equal(short.flat.pack(block), ended.flat.pack(block))
    assert short.round == ended.round == 1
