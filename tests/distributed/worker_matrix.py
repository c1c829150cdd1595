"""One rank of the oracle matrix: runs every configuration on a real process group, compares with the oracle's weights.

Usage: worker_matrix.py ORACLE_FILE - the configurations are rebuilt here, the expected weights read from the file.
"""

from __future__ import annotations

import datetime
import os
import sys

import torch
import torch.distributed as dist

from lightning_parablock.flat import FlatBlocks
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.opening import Federation, open_federation, open_transport
from tests.distributed.matrix import Case, cases
from tests.support.engine import run_on
from tests.tasks import adamw_default, assert_same_bits


def main() -> None:
    """Run all cases of this world size."""
    torch.set_num_threads(1)
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    expected = torch.load(sys.argv[1], weights_only=True)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    n_done = 0
    federations = {
        n_clients: open_federation(Settings(exchange_timeout_s=60), case.clients_of_ranks())
        for n_clients, case in {case.n_clients: case for case in cases(n_ranks)}.items()
    }
    for case in cases(n_ranks):
        weights = _run(case, rank, federations[case.n_clients])
        try:
            assert_same_bits(weights, expected[case.oracle_key])
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
        n_done += 1
    for federation in federations.values():
        if federation.watch is not None:
            assert federation.watch.close(30) == [], "a peer did not say good-bye"
    print(f"CASES EQUAL {n_done}")


def _run(case: Case, rank: int, federation: Federation) -> dict[str, torch.Tensor]:
    def transport(flat: FlatBlocks) -> Transport:
        return open_transport(federation, flat, case.settings, device=torch.device("cpu"), backend="gloo")

    return run_on(
        transport,
        case.task(),
        case.settings,
        clients=case.clients_of_ranks()[rank],
        total_steps=case.total_steps,
        make_optimizer=adamw_default,
    )


if __name__ == "__main__":
    main()
