"""Two ranks of which the second's weights are changed by one bit just before the final check."""

from __future__ import annotations

from unittest import mock

import torch

from lightning_parablock.federation.rounds import RoundEngine
from tests.strategy.worker_fit import N_RANKS, RANK, TASK, strategy
from tests.support.lightning_run import fit

finish = RoundEngine.finish


def tampered(engine: RoundEngine) -> None:
    """Drain, then move one scalar of rank 1 by its last bit."""
    finish(engine)
    if RANK == 1:
        value = engine.flat.pack(0)
        value[3] = torch.nextafter(value[3], torch.tensor(float("inf")))
        engine.flat.unpack(0, value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with mock.patch.object(RoundEngine, "finish", tampered):
        fit(TASK, strategy(), RANK, 8, devices=N_RANKS)
    print("fitted")
