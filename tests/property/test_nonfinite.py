"""A delta that is not finite never enters a mean: the engine against the oracle, and what it leaves behind."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_parablock.blocks.flat import FlatBlocks, is_finite
from lightning_parablock.errors import NonFiniteError
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.server.aggregation import mean_norm
from lightning_parablock.settings import (
    BF16,
    Int8,
    NoCompression,
    ServerAdam,
    ServerNesterov,
    ServerSGD,
    Settings,
    TopK,
)
from tests.oracle import run_oracle
from tests.support.engine import blocks_of, engine_on, loopback, oracle_config, run_rounds
from tests.tasks import Task, adamw_default, assert_same_bits, mlp_task, poisoned_task

K, TOTAL_STEPS = 4, 30
DELAYS = [0, K, K + 2, 2 * K]
LAST_ROUND = TOTAL_STEPS // K
# Client 1 in round 1; all in round 3; client 2 in the short last one.
POISONED = ((1, 5), *((client, 13 + client) for client in range(3)), (2, TOTAL_STEPS - 1))
SKIPPED = {(1, 1), (3, 0), (3, 1), (3, 2), (LAST_ROUND, 2)}


def settings_for(**changes: Any) -> Settings:
    shared: dict[str, Any] = {"local_steps": K, "delay_steps": K, "block_order": "random", "nonfinite_delta": "skip"}
    return Settings(**{**shared, "seed": 44, **changes})


def engine_for(task: Task, settings: Settings, n_clients: int = 3) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model = task.make_model()
    flat = FlatBlocks(model, blocks_of(model, task.block_names))
    transport = loopback(flat, settings.server_optimizer, settings.compression)
    return engine_on(flat, settings, range(n_clients), transport), model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"server_optimizer": ServerNesterov(), "weighting": "samples"},
        {"server_optimizer": ServerAdam(), "in_flight_value": "anchor"},
        {"compression": Int8()},
        {"compression": TopK(), "in_flight_value": "anchor"},
        {"block_order": "importance", "weighting": "samples"},
        {"block_order": "cyclic"},
        {"cohort": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("delay_steps", DELAYS)
def test_a_skipped_client_is_as_one_that_did_not_train(delay_steps: int, changes: dict[str, Any]) -> None:
    settings = settings_for(delay_steps=delay_steps, **changes)
    task = poisoned_task(mlp_task(), *POISONED)
    engine, model = engine_for(task, settings)
    weights = run_rounds(engine, task, model, adamw_default, TOTAL_STEPS)
    schedule = (
        [] if engine.schedule.order in ("importance", "cyclic") else schedule_of(settings, len(engine.flat.blocks))
    )
    config = oracle_config(task, settings, schedule, n_clients=3, total_steps=TOTAL_STEPS)
    assert_same_bits(weights, run_oracle(config, task.make_model, task.loss_fn, adamw_default).weights)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    skipped = {(record.round, record.client) for record in engine.records if record.nonfinite}
    assert skipped == SKIPPED if settings.cohort is None else skipped <= SKIPPED and skipped
    assert all(record.samples == 0 and record.drift is None for record in engine.records if record.nonfinite)


def schedule_of(settings: Settings, n_blocks: int) -> list[int]:
    return [block_of_round(settings.block_order, n_blocks, t, settings.seed) for t in range(LAST_ROUND + 1)]


def test_each_skipped_client_is_named(caplog: pytest.LogCaptureFixture) -> None:
    task = poisoned_task(mlp_task(), *POISONED)
    engine, model = engine_for(task, settings_for())
    with caplog.at_level(logging.WARNING):
        run_rounds(engine, task, model, adamw_default, TOTAL_STEPS)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(SKIPPED)
    for t, client in SKIPPED:
        (line,) = [line for line in said if f"round {t}, " in line and f"client {client} " in line]
        assert "block 'block" in line and "no weight in this round" in line


def test_by_default_it_stops_before_anything_is_sent() -> None:
    task = poisoned_task(mlp_task(), (1, 5))
    engine, model = engine_for(task, settings_for(nonfinite_delta="stop"))
    with pytest.raises(NonFiniteError, match=r"round 1, block 'block\d': the delta of client 1 contains NaN.*'skip'"):
        run_rounds(engine, task, model, adamw_default, TOTAL_STEPS)
    assert all(is_finite(value) for value in engine.transport.server.values)
    engine.show_committed()
    assert all(is_finite(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("delay_steps", [0, K])
@pytest.mark.parametrize("compression", [NoCompression(), BF16(), Int8()], ids=lambda c: type(c).__name__)
def test_a_commit_that_overflows_is_refused(compression: Any, delay_steps: int) -> None:
    """Every delta is finite; the sum of them, or what the server makes of them, is not."""
    settings = settings_for(compression=compression, delay_steps=delay_steps)
    engine, model = engine_for(mlp_task(), settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteError, match=r"round 0, block 'block\d': the committed value contains NaN or infinity"):
        for _ in range(2):
            for client in engine.begin_round():
                engine.begin_turn(client)
                with torch.no_grad():
                    engine.flat.parameters(engine.block)[0].fill_(3e38)
                for _ in range(K):
                    engine.after_step()
                engine.end_turn()
            engine.end_round()
    engine.show_committed()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_a_server_optimizer_that_overflows_is_refused() -> None:
    engine, _ = engine_for(mlp_task(), settings_for(server_optimizer=ServerSGD(lr=1e10), delay_steps=0), n_clients=1)
    for client in engine.begin_round():
        engine.begin_turn(client)
        with torch.no_grad():
            engine.flat.parameters(engine.block)[0].fill_(1e30)
        engine.after_step()
        engine.end_turn()
    with pytest.raises(NonFiniteError, match="the server optimizer"):
        engine.end_round()


def test_norms_that_are_not_finite_enter_no_mean() -> None:
    nan, inf = math.nan, math.inf
    assert mean_norm([2.0, nan, 4.0], [1, 0, 1]) == 3.0  # of a client without weight
    assert mean_norm([2.0, inf, 4.0], [1, 1, 1]) == 3.0  # of one whose gradient scaler skipped the step
    assert math.isnan(mean_norm([nan, 1.0], [1, 0]))
    assert math.isnan(mean_norm([1.0, 1.0], [0, 0]))


def test_a_block_keeps_its_norm_where_no_client_has_a_new_one() -> None:
    """Else it would never be drawn again."""
    poisoned = [(client, step) for client, step in itertools.product(range(3), range(12, 16))]
    task = poisoned_task(mlp_task(), *poisoned)
    engine, model = engine_for(task, settings_for(block_order="importance", delay_steps=0))
    run_rounds(engine, task, model, adamw_default, TOTAL_STEPS)
    assert engine.norms.keys() == set(range(len(engine.flat.blocks)))
    assert all(norm > 0 for norm in engine.norms.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("numel", [1, 7, 1000, 100_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_scalar_that_is_not_finite_is_found_anywhere(bad: float, numel: int, dtype: torch.dtype) -> None:
    values = torch.randn(numel, dtype=dtype)
    assert is_finite(values) and is_finite(torch.empty(0))
    for place in {0, numel // 2, numel - 1}:
        spoiled = values.clone()
        spoiled[place] = bad
        assert not is_finite(spoiled)


def test_it_may_be_changed_when_a_run_is_resumed() -> None:
    """A run that has stopped is continued with "skip"."""
    from lightning_parablock.checkpointing.client_states import PATH_ONLY

    assert "nonfinite_delta" in PATH_ONLY
    assert replace(settings_for(), nonfinite_delta="stop").fingerprint() != settings_for().fingerprint()
