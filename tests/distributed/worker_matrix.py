"""One rank of the oracle matrix: runs every case on a real process group and compares with the oracle, bit for bit.

Usage: worker_matrix.py [--only N] [--spoil] [--lockstep] [--secure] [--late] [--foreign]. The ranks share the oracle's
work: each computes the expected weights of every n-th case in its own process, and they exchange them. ``--only`` takes
N cases from all over the matrix, ``--spoil`` changes the last bit of one expected weight of the last case, so that the
comparison must fail, and ``--lockstep`` lets messages keep one order, as NCCL needs it. ``--secure`` takes the cases of
secure sums, ``--late`` lets messages leave late, and ``--foreign`` gives the last site masks of another session, so
that no sum can be opened.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.masking.masks import Masks
from lightning_parablock.settings import SecureAggregation
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.opening import Federation, open_federation, open_transport
from lightning_parablock.transport.wires import GlooWire, Ticket, Transfer
from tests.distributed.matrix import Case, cases, settings_for
from tests.distributed.matrix_secure import secure_cases
from tests.masking.sessions import names, session
from tests.oracle import run_oracle
from tests.support.engine import run_on
from tests.tasks import adamw_default, assert_same_bits

Weights = dict[str, Tensor]


def main() -> None:
    """Run all cases of this world size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=int, default=None)
    parser.add_argument("--spoil", action="store_true")
    for flag in ("--lockstep", "--secure", "--late", "--foreign"):
        parser.add_argument(flag, action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    every = secure_cases(n_ranks) if arguments.secure else cases(n_ranks)
    sites = tuple(reversed(names(n_ranks))) if arguments.secure else ()  # masks go by name, sums by rank
    label = "foreign" if arguments.foreign and rank == n_ranks - 1 else ""
    if arguments.late:
        _let_messages_leave_late(rank)
    chosen = every[:: -(-len(every) // arguments.only)] if arguments.only else every
    if arguments.lockstep:
        GlooWire.posts_early = False
    expected = _expected_weights(chosen, rank, n_ranks)
    if arguments.spoil:
        _change_last_bit(expected[chosen[-1].oracle_key])
    # A rank may still see a peer's end of the run before: so runs of one federation have equally many rounds.
    federations = {
        key: open_federation(settings_for(), key[0], sites)
        for key in {(case.hosted, case.total_steps): None for case in chosen}
    }
    # Noted, not raised: a rank that stops in the middle would take the others with it.
    wrong = [
        difference
        for case in chosen
        for difference in _differences(
            case,
            _run(case, rank, federations[case.hosted, case.total_steps], label),
            expected[case.oracle_key],
        )
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


def _let_messages_leave_late(rank: int) -> None:
    post, drawn = GlooWire.post, random.Random(rank)

    def late(
        self: GlooWire, receives: Sequence[Transfer], sends: Sequence[Transfer]
    ) -> tuple[list[Ticket], list[Ticket]]:
        if sends and drawn.random() < 0.2:
            time.sleep(0.003 * drawn.random())
        return post(self, receives, sends)

    GlooWire.post = late  # type: ignore[method-assign]


def _masks(case: Case, rank: int, sites: Sequence[str], label: str) -> Masks | None:
    if not isinstance(case.settings.aggregation, SecureAggregation):
        return None
    return Masks(sites[rank], sites, session(sites[rank], sites, label), min_sites=0)


def _run(case: Case, rank: int, federation: Federation, label: str) -> Weights:
    masks = _masks(case, rank, federation.membership.sites, label)

    def transport(flat: FlatBlocks) -> Transport:
        return open_transport(federation, flat, case.settings, device=torch.device("cpu"), backend="gloo", masks=masks)

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
