"""The verbs of a round: what a profile shows of them, and what happens where they are called in another order."""

from __future__ import annotations

from collections import Counter

import pytest
from torch.profiler import ProfilerActivity, profile

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.errors import CallOrderError
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.settings import ServerSGD, Settings
from tests.support.engine import blocks_of, engine_on, loopback, run_rounds
from tests.tasks import adamw_default, mlp_task

K, ROUNDS, N_CLIENTS = 2, 4, 2
TASK = mlp_task()


def run_of(delay_steps: int) -> tuple[RoundEngine, object]:
    model = TASK.make_model()
    flat = FlatBlocks(model, blocks_of(model, TASK.block_names))
    settings = Settings(local_steps=K, delay_steps=delay_steps)
    return engine_on(flat, settings, range(N_CLIENTS), loopback(flat, ServerSGD())), model


@pytest.mark.parametrize(("delay_steps", "merges"), [(0, ROUNDS), (1, N_CLIENTS * ROUNDS + 1), (K, ROUNDS + 1)])
def test_a_profile_shows_every_verb(delay_steps: int, merges: int) -> None:
    """Merges: one per round; inside turns, where they fall there, one per turn; and the last one as the run ends."""
    engine, model = run_of(delay_steps)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run_rounds(engine, TASK, model, adamw_default, K * ROUNDS)  # type: ignore[arg-type]
    ranges = Counter(event.name for event in seen.events() or [] if event.name.startswith("parablock::"))
    assert ranges == {
        "parablock::begin_round": ROUNDS,
        "parablock::begin_turn": ROUNDS * N_CLIENTS,
        "parablock::end_turn": ROUNDS * N_CLIENTS,
        "parablock::end_round": ROUNDS,
        "parablock::submit": ROUNDS,
        "parablock::land": ranges["parablock::land"],
        "parablock::merge": merges,
    }
    assert ranges["parablock::land"] >= ROUNDS


def test_no_step_and_no_end_without_a_turn() -> None:
    engine, _ = run_of(K)
    engine.begin_round()
    for verb in (engine.after_step, engine.end_turn):
        with pytest.raises(CallOrderError, match=r"no turn is open: call begin_turn first"):
            verb()
    engine.begin_turn(0)
    engine.after_step()
    engine.end_turn()
    with pytest.raises(CallOrderError, match="no turn is open"):
        engine.after_step()


def test_without_a_client_that_trains_there_is_no_start() -> None:
    engine, _ = run_of(K)
    engine.begin_round()
    with pytest.raises(CallOrderError, match="no client is training"):
        _ = engine.start
    engine.begin_turn(None)
    with pytest.raises(CallOrderError, match="no client is training"):
        _ = engine.start
    engine.end_turn()
    engine.begin_turn(1)
    assert engine.start.shape == (engine.flat.blocks[engine.block].numel,)
