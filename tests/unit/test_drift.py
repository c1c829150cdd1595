"""How far a client's delta is from the mean, by hand and in the engine's records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation.drift import lr_of_mean, relative_drift
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import Int8, ServerNesterov, ServerSGD, Settings
from lightning_parablock.transport.loopback import LoopbackTransport
from tests.support.engine import blocks_of, engine_on, run_rounds, samples_of
from tests.tasks import adamw_default, mlp_task

K, STEPS, N_CLIENTS = 4, 30, 3
TASK = mlp_task()


def test_by_hand() -> None:
    before, mean = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])
    after = before + 0.5 * mean
    assert relative_drift(torch.tensor([3.0, 4.0]), before, after, 0.5) == 0
    assert relative_drift(torch.zeros(2), before, after, 0.5) == 1
    assert relative_drift(torch.tensor([3.0, 14.0]), before, after, 0.5) == 2
    assert relative_drift(torch.tensor([3.0, 4.0]), before, before, 1.0) is None


def test_it_is_of_the_whole_block_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, before, mean = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    whole = relative_drift(delta, before, before + mean, 1.0)
    monkeypatch.setattr("lightning_parablock.federation.drift.PIECE", 64)
    assert relative_drift(delta, before, before + mean, 1.0) == pytest.approx(whole, rel=1e-6)
    assert whole == pytest.approx(float((mean - delta).norm() / mean.norm()), rel=1e-6)


def test_only_plain_averaging_tells_the_mean() -> None:
    plain = Settings(server_optimizer=ServerSGD(lr=0.5))
    assert lr_of_mean(plain, 0, is_exact=True) == 0.5
    assert lr_of_mean(plain, 0, is_exact=False) is None
    assert lr_of_mean(replace(plain, compression=Int8()), 0, is_exact=True) is None
    assert lr_of_mean(replace(plain, server_optimizer=ServerNesterov()), 0, is_exact=True) is None
    falling = ServerSGD(decay="linear", decay_rounds=4)
    assert lr_of_mean(Settings(server_optimizer=falling), 4, is_exact=True) is None  # nothing moves any more


class Listening(LoopbackTransport):
    """Keeps every delta with its weight, by round."""

    def __init__(self, server: ServerShard) -> None:
        super().__init__(server)
        self.heard: dict[int, dict[int, tuple[Tensor, int]]] = {}

    def submit(self, round_index: int, block: int, uploads: Any, cohort: Any) -> Any:
        self.heard[round_index] = {c: (upload.delta.double(), upload.weight) for c, upload in uploads.items()}
        return super().submit(round_index, block, uploads, cohort)


def run(settings: Settings, samples: Any = samples_of) -> tuple[RoundEngine, Listening]:
    model = TASK.make_model()
    flat = FlatBlocks(model, blocks_of(model, TASK.block_names))
    values = [flat.pack(block) for block in range(len(flat.blocks))]
    transport = Listening(ServerShard(settings.server_optimizer, values, compression=settings.compression))
    engine = engine_on(flat, settings, range(N_CLIENTS), transport)
    run_rounds(engine, TASK, model, adamw_default, STEPS)
    return engine, transport


@pytest.mark.parametrize("delay_steps", [0, 3, K, K + 2, 2 * K])
@pytest.mark.parametrize("changes", [{}, {"weighting": "samples"}, {"server_optimizer": ServerSGD(lr=0.5)}], ids=str)
def test_records_say_what_the_deltas_say(delay_steps: int, changes: dict[str, Any]) -> None:
    settings = Settings(local_steps=K, delay_steps=delay_steps, block_order="random", seed=44)
    engine, transport = run(replace(settings, **changes))
    assert len(engine.records) == N_CLIENTS * len(transport.heard) == N_CLIENTS * 8
    for record in engine.records:
        deltas = transport.heard[record.round]
        mean = sum(weight * delta for delta, weight in deltas.values()) / sum(weight for _, weight in deltas.values())
        expected = (deltas[record.client][0] - mean).norm() / mean.norm()
        # W after less W before has lost the digits that W is larger by.
        assert record.drift == pytest.approx(float(expected), rel=2e-3)
        steps = range(record.round * K, min((record.round + 1) * K, STEPS))
        assert record.samples == sum(samples_of(record.client, step) for step in steps)
    assert max(record.drift or 0 for record in engine.records) > 0.1


def test_who_did_not_train_has_no_drift_and_no_samples() -> None:
    settings = Settings(local_steps=K, delay_steps=K)
    engine, _ = _idle_run(settings)
    for record in engine.records:
        idle = record.client == 1 and record.round >= 2
        assert (record.drift is None, record.samples == 0) == (idle, idle), record


def _idle_run(settings: Settings) -> tuple[RoundEngine, Listening]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.engine.samples_of", lambda client, step: int(client != 1 or step < 2 * K))
        return run(settings)


def test_a_lossy_codec_has_no_drift() -> None:
    engine, _ = run(Settings(local_steps=K, delay_steps=K, compression=Int8()))
    assert engine.records and all(record.drift is None for record in engine.records)
