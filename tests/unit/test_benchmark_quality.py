"""The arithmetic of the comparison of first delays, on losses whose shares can be told by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from benchmarks.harness.gsm8k import SIZES
from benchmarks.quality import delays
from lightning_parablock.settings import Settings


def run_of(method: str, seed: int, *losses: float, size: str = "cut-by-round", failed: str | None = None) -> Any:
    curve = [[4 * index, loss] for index, loss in enumerate(losses)]
    return {"size": size, "method": method, "seed": seed, "held_out_loss": curve, "failed": failed}


def test_losses_over_those_without_any_delay_by_step() -> None:
    found = delays.over_blocking(
        [
            run_of("no delay", 0, 8.0, 4.0, 2.0),
            run_of("no delay", 1, 8.0, 5.0),
            run_of("delay K", 0, 8.0, 5.0, 2.0),
            run_of("delay K", 1, 10.0, 5.0, 1.0),  # its last loss has nothing to be compared with
            run_of("delay K", 2, 1.0),
            run_of("delay K", 0, 99.0, size="cut"),
            run_of("delay K", 1, 99.0, failed="lost"),
        ]
    )
    assert found.keys() == {"cut-by-round"}
    assert found["cut-by-round"]["delay K"] == {0: pytest.approx(0.125), 4: pytest.approx(0.125), 8: 0.0}
    assert set(found["cut-by-round"]["no delay"].values()) == {0.0}


@pytest.mark.parametrize("size", delays.SIZES.values())
def test_the_delays_differ_and_every_round_is_measured(size: str) -> None:
    K = SIZES[size].local_steps
    assert SIZES[size].evaluate_every_steps == K
    chosen = delays.methods(K)
    assert delays.BLOCKING in chosen and not any("/" in name for name in chosen)
    made = {name: Settings(local_steps=K, **{"delay_steps": K, **options}).delay for name, options in chosen.items()}
    equal = {pair for pair in itertools.combinations(made, 2) if made[pair[0]] == made[pair[1]]}
    assert equal == ({("delay a quarter of K", "delay half of K")} if size == "quick-by-round" else set())
