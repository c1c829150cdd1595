"""One rank of the oracle matrix: runs every case on a real process group and compares with the oracle, bit for bit.

Usage: worker_matrix.py [--only N] [--spoil] [--lockstep]. The ranks share the oracle's work: each computes the expected
weights of every n-th case in its own process, and they exchange them. ``--only`` takes N cases from all over the
matrix, ``--spoil`` changes the last bit of one expected weight of the last case, so that the comparison must fail, and
``--lockstep`` lets messages keep one order, as NCCL needs it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.opening import Federation, open_federation, open_transport
from lightning_parablock.transport.wires import GlooWire
from tests.distributed.matrix import Case, cases, settings_for
from tests.oracle import run_oracle
from tests.support.engine import run_on
from tests.tasks import adamw_default, assert_same_bits

Weights = dict[str, Tensor]


def main() -> None:
    """Run all cases of this world size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=int, default=None)
    parser.add_argument("--spoil", action="store_true")
    parser.add_argument("--lockstep", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    every = cases(n_ranks)
    chosen = every[:: -(-len(every) // arguments.only)] if arguments.only else every
    if arguments.lockstep:
        GlooWire.posts_early = False
    expected = _expected_weights(chosen, rank, n_ranks)
    if arguments.spoil:
        _change_last_bit(expected[chosen[-1].oracle_key])
    federations = {hosted: open_federation(settings_for(), hosted) for hosted in {case.hosted: None for case in chosen}}
    # Noted, not raised: a rank that stops in the middle would take the others with it.
    wrong = [
        difference
        for case in chosen
        for difference in _differences(case, _run(case, rank, federations[case.hosted]), expected[case.oracle_key])
    ]
    for federation in federations.values():
        if federation.watch is not None:
            assert federation.watch.close(30) == [], "a peer did not say good-bye"
    assert not wrong, f"{len(wrong)} of {len(chosen)} cases differ:\n" + "\n".join(wrong)
    # A thread that is left may abort the process on its way out, exit code -6.
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("parablock")] == []
    lanes = "lockstep" if arguments.lockstep else "streaming"
    print(f"CASES EQUAL {len(chosen)} {lanes}")


def _expected_weights(chosen: Sequence[Case], rank: int, n_ranks: int) -> dict[str, Weights]:
    different = list({case.oracle_key: case for case in chosen}.values())
    own: dict[str, Weights] = {}
    for case in different[rank::n_ranks]:
        task = case.task()
        own[case.oracle_key] = run_oracle(case.oracle_config(), task.make_model, task.loss_fn, adamw_default).weights
    arrays = {key: {name: value.numpy() for name, value in weights.items()} for key, weights in own.items()}
    shares = [arrays] * n_ranks  # as arrays, which pickle ten times as fast as tensors
    dist.all_gather_object(shares, arrays)
    return {
        key: {name: torch.from_numpy(value) for name, value in weights.items()}
        for share in shares
        for key, weights in share.items()
    }


def _change_last_bit(weights: Weights) -> None:
    some = next(reversed(weights.values())).view(-1)
    some[-1] = torch.nextafter(some[-1], torch.tensor(float("inf")))


def _differences(case: Case, actual: Weights, expected: Weights) -> Iterator[str]:
    try:
        assert_same_bits(actual, expected)
    except AssertionError as error:
        yield f"{case}: {error}"


def _run(case: Case, rank: int, federation: Federation) -> Weights:
    def transport(flat: FlatBlocks) -> Transport:
        return open_transport(federation, flat, case.settings, device=torch.device("cpu"), backend="gloo")

    return run_on(
        transport,
        case.task(),
        case.settings,
        hosted=case.clients_of_ranks(),
        rank=rank,
        total_steps=case.total_steps,
        make_optimizer=adamw_default,
    )


if __name__ == "__main__":
    main()
