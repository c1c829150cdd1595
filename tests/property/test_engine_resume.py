"""Resuming below Lightning: an engine stopped anywhere and rebuilt from its state ends with the same bits."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation import snapshot
from lightning_parablock.settings import (
    Compression,
    Int4,
    Int8,
    LowRank,
    NoCompression,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
    Settings,
    Sparse,
    TopK,
)
from lightning_parablock.training.gradients import gradient_norm
from lightning_parablock.transport.base import Transport
from tests.support.engine import blocks_of, engine_on, loopback
from tests.tasks import Task, adamw_default, assert_same_bits, transformer_task

K, TOTAL_STEPS = 3, 17
TASK = transformer_task(tied=True)
UNTIED = transformer_task()
"""The block that comes up most often has a matrix here."""


class Site:
    """One rank: model, engine, and an optimizer whose state is dropped when a block is left."""

    def __init__(self, settings: Settings, n_clients: int, task: Task = TASK) -> None:
        self.task, self.model = task, task.make_model()
        self.settings, self.n_clients = settings, n_clients
        self.clock = 0
        self._build()

    def _build(self) -> None:
        flat = FlatBlocks(self.model, blocks_of(self.model, self.task.block_names))
        self.engine = engine_on(flat, self.settings, range(self.n_clients), self.transport_of(flat))
        self.optimizer: torch.optim.Optimizer | None = None

    def transport_of(self, flat: FlatBlocks) -> Transport:
        """The transport of the only rank."""
        return loopback(flat, self.settings.server_optimizer, self.settings.compression)

    def advance(self) -> None:
        """The next event: a local step, for which a turn may open, or the end of a turn, perhaps of its round."""
        engine = self.engine
        if engine.has_open_turn and engine.turn_is_over:
            engine.end_turn()
            if engine.round_is_over:
                engine.end_round()
            self.optimizer = None
            return
        if not engine.has_open_turn:
            turns = engine.turns or engine.begin_round()
            engine.begin_turn(turns[engine.turn])
        self._step()
        self.clock += 1

    def round_of_all(self) -> None:
        """One whole round of every client of the rank; the last one is short."""
        n_steps = min(K, TOTAL_STEPS - self.engine.round * K)
        for client in self.engine.begin_round():
            self.engine.begin_turn(client)
            for _ in range(n_steps):
                self._step()
            self.engine.end_turn()
            self.optimizer = None
        self.engine.end_round()
        self.clock += n_steps

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        flat = self.engine.flat
        for block in range(len(flat.blocks)):
            for parameter in flat.parameters(block):
                parameter.requires_grad_(block == self.engine.block)
                parameter.grad = None
        return adamw_default(flat.parameters(self.engine.block))

    def _step(self) -> None:
        client = self.engine.active_client
        if client is None:
            self.engine.after_step()
            return
        if self.optimizer is None:
            self.optimizer = self._fresh_optimizer()
        self.optimizer.zero_grad()
        self.task.loss_fn(self.model, client, self.engine.round * K + self.engine.steps).backward()
        norm = gradient_norm(self.engine.flat.parameters(self.engine.block))
        self.optimizer.step()
        self.engine.after_step(1, norm)

    def saved(self) -> bytes:
        """A checkpoint: W, the engine's state as seen while W is shown, and the optimizer's."""
        replaced = self.engine.show_committed()
        content: dict[str, Any] = {"W": self.model.state_dict(), "engine": snapshot.state_of(self.engine, replaced)}
        content["optimizer"] = None if self.optimizer is None else self.optimizer.state_dict()
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.engine.undo_show_committed(replaced)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        """Become the site that saved, on a new model."""
        content = torch.load(io.BytesIO(saved), weights_only=True)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(7.0)  # nothing may come from here
        self.model.load_state_dict(content["W"])
        self._build()
        snapshot.restore(self.engine, content["engine"])
        if content["optimizer"] is not None:
            self.optimizer = self._fresh_optimizer()
            self.optimizer.load_state_dict(content["optimizer"])

    def finish(self) -> dict[str, Tensor]:
        """Drain and return the weights."""
        self.engine.finish()
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


@pytest.mark.parametrize("server", [ServerSGD(), ServerNesterov()], ids=["sgd", "nesterov"])
@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("delay_steps", [0, 2, K, K + 1, 2 * K, 3 * K])
def test_stopped_after_every_event_and_rebuilt(delay_steps: int, in_flight_value: Any, server: Any) -> None:
    stop_after_every_event(settings_for(delay_steps, in_flight_value, server, NoCompression()))


@pytest.mark.parametrize(
    ("delay_steps", "compression"),
    [
        (0, Int4()),
        (2, TopK()),
        (K, Int4()),
        (K + 1, TopK()),
        (2 * K, Int8()),
        (3 * K, Int4()),
        (K, Sparse(16, decay=0.9)),
    ],
    ids=str,
)
def test_residuals_survive_it_too(delay_steps: int, compression: Compression) -> None:
    stop_after_every_event(settings_for(delay_steps, "local", ServerNesterov(), compression))


@pytest.mark.parametrize("codec", [LowRank(2), LowRank(3, decay=0.9)], ids=str)
@pytest.mark.parametrize("delay_steps", [0, 2, K, K + 1, 2 * K, 3 * K])
def test_bases_of_exchanges_in_flight_survive_it_too(delay_steps: int, codec: Compression) -> None:
    server = ServerSGD() if codec.feedback_decay == 1 else ServerNesterov()
    stop_after_every_event(settings_for(delay_steps, "local", server, codec), UNTIED)


@pytest.mark.parametrize("warmup", [1, 2, 3])
@pytest.mark.parametrize("delay_steps", [2, K, K + 1, 2 * K])
def test_in_a_warm_up_and_after_it(delay_steps: int, warmup: int) -> None:
    compression = (Int8(), NoCompression(), Int4())[warmup - 1]
    settings = settings_for(delay_steps, "local", ServerNesterov(), compression)
    stop_after_every_event(replace(settings, delay_warmup_rounds=warmup))


def stop_after_every_event(settings: Settings, task: Task = TASK) -> None:
    whole = Site(settings, 1, task)
    while whole.clock < TOTAL_STEPS:
        whole.advance()
    site = Site(whole.settings, 1, task)
    while site.clock < TOTAL_STEPS:
        site.advance()
        site.load(site.saved())
    assert_same_bits(site.finish(), whole.finish())


@pytest.mark.parametrize("compression", [NoCompression(), Int8()], ids=["none", "int8"])
def test_several_clients_of_a_rank_are_stopped_between_rounds(compression: Compression) -> None:
    whole = Site(settings_for(2 * K, "local", ServerNesterov(), compression), 3)
    site = Site(whole.settings, 3)
    while whole.clock < TOTAL_STEPS:
        whole.round_of_all()
        site.round_of_all()
        site.load(site.saved())
    assert_same_bits(site.finish(), whole.finish())


COHORTS: list[dict[str, Any]] = [
    {"cohort": 2},
    {"cohort": 2, "block_order": "importance"},
    {"block_order": "cyclic"},
    {"cohort": 3, "cohort_sampling": "rotation", "block_order": "cyclic"},
    {"cohort": 2, "delay_warmup_rounds": 2},
]


@pytest.mark.parametrize("changes", COHORTS, ids=str)
@pytest.mark.parametrize("delay_steps", [0, 2, K, K + 1, 2 * K])
def test_cohorts_stopped_after_every_event_and_rebuilt(delay_steps: int, changes: dict[str, Any]) -> None:
    """Several clients in turn, idle turns, several blocks per round: also between two turns, and within the first."""
    settings = replace(settings_for(delay_steps, "local", ServerNesterov(), Int4()), **changes)
    whole, site = Site(settings, 4), Site(settings, 4)
    while whole.engine.round < 5:
        whole.advance()
        site.advance()
        site.load(site.saved())
        if whole.engine.has_open_turn:
            assert site.engine.block == whole.engine.block  # in an idle turn the last one
    assert_same_bits(site.finish(), whole.finish())


@pytest.mark.parametrize("changes", [{}, {"cohort": 2}], ids=str)
@pytest.mark.parametrize("delay_steps", [2, K + 1])
def test_norms_merged_inside_a_round_do_not_change_its_block(delay_steps: int, changes: dict[str, Any]) -> None:
    """After the first pass blocks are drawn by norms, some of which come in the middle of the round they draw."""
    settings = replace(
        settings_for(delay_steps, "local", ServerNesterov(), NoCompression()), block_order="importance", **changes
    )
    whole, site = Site(settings, 3), Site(settings, 3)
    blocks: list[int] = []
    while whole.engine.round < 3 * len(whole.engine.flat.blocks):
        whole.advance()
        site.advance()
        site.load(site.saved())
        blocks.append(whole.engine.block)
        if whole.engine.has_open_turn:
            assert site.engine.block == whole.engine.block
    assert len(set(blocks)) == len(whole.engine.flat.blocks)
    assert_same_bits(site.finish(), whole.finish())


def test_the_norm_is_that_of_the_first_step_on_which_a_client_trains() -> None:
    settings = replace(settings_for(K, "local", ServerSGD(), NoCompression()), block_order="importance")
    engine = Site(settings, 1).engine
    (client,) = engine.begin_round()
    assert client is not None and not engine.wants_gradient_norm
    engine.begin_turn(client)
    for samples, norm, still_wanted in ((0, 0.0, True), (1, 3.0, False), (1, 5.0, False)):
        engine.after_step(samples, norm)
        assert engine.wants_gradient_norm == still_wanted
    assert engine.clients[client].gradient_norm == 3.0


@pytest.mark.parametrize("lost", ["in_flight", "server", "active", "residuals", "aggregator", "aggregator in flight"])
def test_each_part_of_the_state_is_needed(lost: str) -> None:
    """The comparisons above can fail: without a part of the state the bits are others."""
    lost, _, is_in_flight = lost.partition(" ")
    server, codec = (ServerSGD(), LowRank(2)) if lost == "aggregator" else (ServerNesterov(), Int4())
    whole = Site(settings_for(K, "local", server, codec), 1, UNTIED)
    while whole.clock < TOTAL_STEPS:
        whole.advance()
    site = Site(whole.settings, 1, UNTIED)
    while site.clock < 4 * K + 1:
        site.advance()
    content = torch.load(io.BytesIO(site.saved()), weights_only=True)
    part = content["engine"][lost]
    values = {
        "active": lambda: [part["values"]],
        "in_flight": lambda: [d[2] for d in part],
        "residuals": lambda: [e[2] for e in part],
        "aggregator": lambda: [basis for _, t, _, bases in part if (t >= 0) == bool(is_in_flight) for basis in bases],
    }
    for tensor in values.get(lost, lambda: [piece["values"] for piece in part])():
        tensor.mul_(0.5)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    site.load(buffer.getvalue())
    while site.clock < TOTAL_STEPS:
        site.advance()
    actual = site.finish()
    assert any(not torch.equal(actual[name], value) for name, value in whole.finish().items())


def settings_for(delay_steps: int, in_flight_value: Any, server: ServerOptimizer, compression: Compression) -> Settings:
    return Settings(
        local_steps=K,
        delay_steps=delay_steps,
        block_order="random",
        in_flight_value=in_flight_value,
        server_optimizer=server,
        compression=compression,
        seed=7,  # blocks 4, 4, 0, 4, 1, 4: one comes up again at once and after two rounds
    )
