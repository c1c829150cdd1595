"""What the sites of a run of processes must hold at its end: the plain loop on the membership log that they wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.transport.chunks import shard_bounds
from tests.elastic.histories import SERVERS
from tests.elastic.oracle import Entry, Plan, replay
from tests.elastic.processes.toy import BLOCKS, K, Replica, batch_size


def check_bits(folder: Path, sites: list[str], width: int) -> MembershipLog:
    """Sites that have reached the end have one log and one model, and its bits are those of the plain loop.

    Args:
        folder: Of the run.
        sites: Names of those that have reached the end.
        width: Of the network.

    Returns:
        The membership log.
    """
    facts = {site: json.loads((folder / f"{site}.json").read_text()) for site in sites}
    first = facts[sites[0]]
    for site in sites:
        for what in ("log", "hash", "steps"):
            assert facts[site][what] == first[what], f"{what} of {site} differs from that of {sites[0]}"
    options = json.loads((folder / "run.json").read_text())["strategy"]
    common = set.intersection(*({step for step, _ in facts[site]["validated"]} for site in sites))
    for site in sites if "federation" not in options else ():  # else metrics stay at their site
        seen = [one for one in facts[site]["validated"] if one[0] in common]
        assert seen == [one for one in first["validated"] if one[0] in common], f"validation at {site} differs"
    log = MembershipLog.from_json(first["log"])
    rows = {client: _rows(folder / f"{site}.rows") for client, site in log.newest.sites.items()}
    replica = Replica(width, dict(log.newest.sites), rows)

    def cohort(t: int, members: tuple[int, ...]) -> dict[int, int]:
        return {client: t % len(BLOCKS) for client in members}

    def weight(client: int, t: int) -> int:
        return K * batch_size(log.newest.sites[client]) if options.get("weighting", "samples") == "samples" else 1

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    server = options.get("server_optimizer", "sgd")
    plan = Plan(
        replica.initial(), first["steps"] // K, K, K, 0, replica.step, cohort, weight,  # type: ignore[arg-type]
        server=server, compression=options.get("compression", "none"), secure=options.get("aggregation", 0),
        **SERVERS[server],
    )  # fmt: skip
    expected = replay(plan, _entries(log, plan.initial, options.get("topology", "sharded"))).W
    torch.set_num_threads(n_threads)
    for site in sites:
        for block, values in enumerate(torch.load(folder / f"{site}.pt", weights_only=True)):
            assert torch.equal(values, expected[block]), f"block {block} of {site} differs from that of the plain loop"
    return log


def _rows(path: Path) -> dict[int, list[int]]:
    """Of each step the rows that it has had; of two processes of a site those of the later one."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    return dict(json.loads(line) for line in lines if line.endswith("\n"))


def _entries(log: MembershipLog, initial: list[Tensor], topology: str) -> list[Entry]:
    """The log in the loop's words."""
    entries = list[Entry]()
    for before, record in zip((None, *log.records), log.records, strict=False):
        restored = []
        for piece in record.restored:
            assert before is not None
            cut = shard_bounds(initial[piece.block].numel(), len(before.order), topology)
            restored.append((piece.block, cut[before.order.index(piece.server)], piece.as_of))
        entries.append(Entry(record.generation, record.members, record.joiners, record.first_round, record.kept,
                             tuple(restored), record.drops))  # fmt: skip
    return entries
