"""What must hold of the method, asked of the package's engine: several clients on one rank, one process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks, hash_tensors
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import ServerNesterov, ServerSGD, Settings
from lightning_parablock.transport.loopback import LoopbackTransport
from tests.oracle import run_fedbcd, run_oracle
from tests.support.engine import blocks_of, engine_on, oracle_config, run_rounds
from tests.tasks import OPTIMIZERS, Task, assert_same_bits, mlp_task, relative_difference, transformer_task

K = 4
TOTAL_STEPS = 30  # seven rounds and a short last one
DELAYS = [0, 3, K, K + 2, 2 * K, 3 * K]
SEED = 44  # see test_the_order_repeats_blocks
MLP, TIED = mlp_task(), transformer_task(tied=True)
EACH_TASK = pytest.mark.parametrize("task", [MLP, TIED], ids=["mlp", "tied transformer"])
SERVERS = {"sgd": ServerSGD(), "nesterov": ServerNesterov()}

Weights = dict[str, Tensor]


@dataclass
class Run:
    """What came out of a run of the engine."""

    weights: Weights
    engine: RoundEngine
    increments: list[tuple[int, int, Tensor]]  # (round, block, W after - W before), in commit order
    start: list[Tensor]  # W of each block at the start


class Recording(LoopbackTransport):
    """Also notes by how much each commit moved W."""

    def __init__(self, server: ServerShard) -> None:
        super().__init__(server)
        self.increments: list[tuple[int, int, Tensor]] = []

    def submit(self, round_index: int, block: int, uploads: Any, cohort: Any) -> Any:
        before = self._server.values[block].clone()
        exchange = super().submit(round_index, block, uploads, cohort)
        self.increments.append((round_index, block, self._server.values[block] - before))
        return exchange


def settings_for(**changes: Any) -> Settings:
    return replace(Settings(local_steps=K, delay_steps=K, block_order="random", seed=SEED), **changes)


def schedule(task: Task, settings: Settings, n_blocks: int | None = None) -> list[int]:
    n_rounds = -(-TOTAL_STEPS // settings.local_steps)
    n_blocks = n_blocks or len(task.block_names)
    return [block_of_round(settings.block_order, n_blocks, t, settings.seed) for t in range(n_rounds)]


def run(
    task: Task,
    settings: Settings,
    n_clients: int,
    optimizer: str = "adamw_default",
    block_names: Sequence[Sequence[str]] | None = None,
) -> Run:
    model = task.make_model()
    flat = FlatBlocks(model, blocks_of(model, block_names or task.block_names))
    start = [flat.pack(block) for block in range(len(flat.blocks))]
    transport = Recording(ServerShard(settings.server_optimizer, [value.clone() for value in start]))
    engine = engine_on(flat, settings, range(n_clients), transport)
    weights = run_rounds(engine, task, model, OPTIMIZERS[optimizer], TOTAL_STEPS)
    return Run(weights, engine, transport.increments, start)


def fedbcd(task: Task, settings: Settings, n_clients: int, optimizer: str = "adamw_default") -> Weights:
    config = oracle_config(task, settings, schedule(task, settings), n_clients=n_clients, total_steps=TOTAL_STEPS)
    return run_fedbcd(config, task.make_model, task.loss_fn, OPTIMIZERS[optimizer])


@EACH_TASK
def test_the_order_repeats_blocks(task: Task) -> None:
    """Else nothing below would see a block that comes up again while it is in flight."""
    order = schedule(task, settings_for())
    assert any(one == other for one, other in itertools.pairwise(order))
    assert any(one == other for one, other in zip(order, order[2:], strict=False))
    assert set(order) == set(range(len(task.block_names)))


# 1: delay 0 is federated block coordinate descent.


@EACH_TASK
@pytest.mark.parametrize(("server", "n_clients"), [("sgd", 1), ("sgd", 3), ("nesterov", 2)])
def test_delay_0_has_the_bits_of_fedbcd(task: Task, server: str, n_clients: int) -> None:
    for in_flight_value in ("local", "anchor"):
        settings = settings_for(delay_steps=0, server_optimizer=SERVERS[server], in_flight_value=in_flight_value)
        assert_same_bits(run(task, settings, n_clients).weights, fedbcd(task, settings, n_clients))


@EACH_TASK
@pytest.mark.parametrize(("delay_steps", "warmup"), [(2, 8), (K, 100), (2 * K, 8), (K + 2, 9)])
def test_a_warm_up_as_long_as_the_run_has_the_bits_of_fedbcd(task: Task, delay_steps: int, warmup: int) -> None:
    settings = settings_for(delay_steps=delay_steps, delay_warmup_rounds=warmup, server_optimizer=ServerNesterov())
    assert_same_bits(run(task, settings, 2).weights, fedbcd(task, settings, 2))


# 2: one client waits for nobody.


@EACH_TASK
def test_one_client_has_the_bits_of_delay_0_at_every_delay(task: Task) -> None:
    expected = run(task, settings_for(delay_steps=0), 1).weights
    for delay_steps in DELAYS[1:]:
        assert_same_bits(run(task, settings_for(delay_steps=delay_steps), 1).weights, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_is_plain_block_coordinate_training(optimizer: str) -> None:
    settings = settings_for(delay_steps=K + 2)
    model = MLP.make_model()
    parameters = dict(model.named_parameters())
    order = schedule(MLP, settings)
    for step in range(TOTAL_STEPS):
        if step % K == 0:
            local = OPTIMIZERS[optimizer]([parameters[name] for name in MLP.block_names[order[step // K]]])
        model.zero_grad()
        MLP.loss_fn(model, 0, step).backward()
        local.step()
    plain = {name: parameter.detach() for name, parameter in parameters.items()}
    assert relative_difference(run(MLP, settings, 1, optimizer).weights, plain) < 1e-5


# 3: clients that see the same data have nothing to wait for either.


@EACH_TASK
@pytest.mark.parametrize("n_clients", [2, 4])
def test_same_data_has_the_bits_of_fedbcd_at_every_delay(task: Task, n_clients: int) -> None:
    task = task.with_same_data()
    expected = fedbcd(task, settings_for(), n_clients)
    for delay_steps in DELAYS if n_clients == 2 else [K + 2]:
        assert_same_bits(run(task, settings_for(delay_steps=delay_steps), n_clients).weights, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_data_on_three_clients_equals_fedbcd_to_rounding(optimizer: str) -> None:
    task = MLP.with_same_data()
    expected = fedbcd(task, settings_for(), 3, optimizer)
    for delay_steps in DELAYS:
        actual = run(task, settings_for(delay_steps=delay_steps), 3, optimizer).weights
        assert relative_difference(actual, expected) < 1e-5


def test_different_data_differs_at_every_delay_order_server_and_in_flight_value() -> None:
    """Without this, the equalities above could hold because an option does nothing."""
    changes: list[dict[str, Any]] = [{"delay_steps": delay} for delay in DELAYS]
    changes += [{"delay_warmup_rounds": warmup} for warmup in (1, 3, 5)]
    changes += [{"in_flight_value": "anchor"}, {"server_optimizer": ServerNesterov()}, {"block_order": "reverse"}]
    results = [run(MLP, settings_for(**change), 2, "sgd").weights for change in changes]
    for one in range(len(results)):
        for other in range(one):
            assert relative_difference(results[one], results[other]) > 1e-4, (changes[one], changes[other])


# 4, as far as one rank goes: several clients on one model equal the oracle, where each has a model of its own.


@EACH_TASK
@pytest.mark.parametrize(
    ("delay_steps", "in_flight_value", "server"),
    [(3, "local", "sgd"), (K + 2, "local", "nesterov"), (K + 2, "anchor", "sgd"), (2 * K, "anchor", "nesterov")],
)
def test_several_clients_on_one_rank_equal_the_oracle(
    task: Task, delay_steps: int, in_flight_value: Any, server: str
) -> None:
    settings = settings_for(delay_steps=delay_steps, in_flight_value=in_flight_value, server_optimizer=SERVERS[server])
    config = oracle_config(task, settings, schedule(task, settings), n_clients=3, total_steps=TOTAL_STEPS)
    expected = run_oracle(config, task.make_model, task.loss_fn, OPTIMIZERS["adamw_default"])
    assert_same_bits(run(task, settings, 3).weights, expected.weights)


@EACH_TASK
@pytest.mark.parametrize("warmup", [1, 3, 6])
@pytest.mark.parametrize("delay_steps", [0, 2, K, K + 2, 2 * K, 3 * K])
def test_a_warm_up_without_delay_equals_the_oracle(task: Task, delay_steps: int, warmup: int) -> None:
    value = ("local", "anchor")[(delay_steps // 2 + warmup) % 2]
    settings = settings_for(
        delay_steps=delay_steps,
        delay_warmup_rounds=warmup,
        in_flight_value=value,
        server_optimizer=SERVERS[("sgd", "nesterov")[warmup % 2]],
    )
    config = oracle_config(task, settings, schedule(task, settings), n_clients=3, total_steps=TOTAL_STEPS)
    expected = run_oracle(config, task.make_model, task.loss_fn, OPTIMIZERS["adamw_default"])
    assert_same_bits(run(task, settings, 3).weights, expected.weights)


# 5: with one block, two known algorithms.


def local_training(task: Task, client: int, start: Weights, steps: range) -> Weights:
    model = task.make_model()
    model.load_state_dict(start, strict=False)
    optimizer = OPTIMIZERS["adamw_default"](list(model.parameters()))
    for step in steps:
        optimizer.zero_grad()
        task.loss_fn(model, client, step).backward()
        optimizer.step()
    return {name: value.detach() - start[name] for name, value in model.named_parameters()}


def mean_of(deltas: list[Weights]) -> Weights:
    total = deltas[0]
    for delta in deltas[1:]:
        total = {name: total[name] + delta[name] for name in total}
    return {name: total[name] / len(deltas) for name in total}


def plus(one: Weights, other: Weights) -> Weights:
    return {name: one[name] + other[name] for name in one}


def rounds() -> list[range]:
    return [range(first, min(first + K, TOTAL_STEPS)) for first in range(0, TOTAL_STEPS, K)]


def initial(task: Task) -> Weights:
    return {name: value.detach().clone() for name, value in task.make_model().named_parameters()}


@EACH_TASK
def test_one_block_at_delay_0_is_federated_averaging(task: Task) -> None:
    weights = initial(task)
    for steps in rounds():
        weights = plus(weights, mean_of([local_training(task, client, weights, steps) for client in range(3)]))
    actual = run(task, settings_for(delay_steps=0), 3, block_names=task.as_one_block())
    assert_same_bits(actual.weights, weights)


@EACH_TASK
def test_one_block_at_delay_k_is_delay_corrected_local_sgd(task: Task) -> None:
    """X = W + Delta: the mean is one round old, a client's own progress is not."""
    weights = initial(task)
    starts, late = [weights] * 3, None
    for steps in rounds():
        deltas = [local_training(task, client, starts[client], steps) for client in range(3)]
        weights = plus(weights, mean_of(late)) if late else weights
        starts, late = [plus(weights, delta) for delta in deltas], deltas
    assert late is not None
    actual = run(task, settings_for(delay_steps=K), 3, block_names=task.as_one_block())
    assert_same_bits(actual.weights, plus(weights, mean_of(late)))


# 6: the weights moved by what was committed.


@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("server", ["sgd", "nesterov"])
@pytest.mark.parametrize("delay_steps", DELAYS)
def test_weights_moved_by_the_sum_of_the_increments(delay_steps: int, server: str, in_flight_value: Any) -> None:
    settings = settings_for(delay_steps=delay_steps, server_optimizer=SERVERS[server], in_flight_value=in_flight_value)
    result = run(MLP, settings, 3)
    assert [(t, block) for t, block, _ in result.increments] == list(enumerate(schedule(MLP, settings)))
    for block, start in enumerate(result.start):
        total = torch.zeros_like(start)
        for _, _, increment in (entry for entry in result.increments if entry[1] == block):
            total = total + increment
        moved = result.engine.flat.pack(block) - start
        assert relative_difference({"block": total}, {"block": moved}) < 1e-5


# 10: after the drain everybody holds W.


@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("delay_steps", DELAYS)
def test_after_the_drain_every_client_and_the_server_have_one_hash(delay_steps: int, in_flight_value: Any) -> None:
    result = run(MLP, settings_for(delay_steps=delay_steps, in_flight_value=in_flight_value), 3)
    engine, blocks = result.engine, range(len(result.start))
    assert isinstance(engine.transport, LoopbackTransport)
    hashes = {hash_tensors(engine.transport._server.values), hash_tensors(engine.flat.pack(b) for b in blocks)}
    for client in engine.clients.values():
        assert client.in_flight == []
        hashes.add(hash_tensors(engine.model.committed(client, b) for b in blocks))
        hashes.add(hash_tensors(engine.model.held(client, b) for b in blocks))
    assert len(hashes) == 1
    assert not any(engine.model._stored), "the drain left copies of W behind"


# Records: complete, in order, one per client and round.


@pytest.mark.parametrize("delay_steps", DELAYS)
def test_every_round_leaves_one_record_a_client(delay_steps: int) -> None:
    settings = settings_for(delay_steps=delay_steps)
    engine = run(MLP, settings, 2).engine
    order = schedule(MLP, settings)
    found = [(r.round, r.client, r.block, r.steps) for r in engine.records]
    last = len(order) - 1
    expected = {
        (t, client, f"block{block}", TOTAL_STEPS % K if t == last else K)
        for t, block in enumerate(order)
        for client in range(2)
    }
    assert len(found) == len(expected)
    assert set(found) == expected
    for client in range(2):
        own = [r for r in engine.records if r.client == client]
        assert [r.round for r in own] == list(range(len(order)))
    for record in engine.records:
        assert record.start_s <= record.end_s <= record.exchange_end_s
        assert record.exchange_start_s <= record.exchange_ready_s <= record.exchange_end_s
        assert min(record.compute_s, record.exchange_s, record.exposed_s, record.wait_peer_s) >= 0
