"""The benchmark of secure sums, on hosts: the parts that have fresh processes, and those whose processes fit again."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.secure import cost, peers


def test_one_aggregation_of_the_peers_part() -> None:
    made = peers._by_parablock(Namespace(peer_scalars=1 << 12, aggregations=2), "secure, 1 byte, star", 100.0)
    assert len(made["seconds"]) == 2 and all(sent > 1 << 12 for sent in made["upload_bytes"][1:])


def test_a_pair_of_the_cost_part_has_the_bytes_that_are_stated() -> None:
    options = Namespace(rounds=6, scalars=1 << 12, rate_mbit=100.0)
    with cost.Workers(cost.SITES) as workers:
        hosts = cost._Hosts(options, workers, cost.Case("sleep", "sharded", "secure, 1 byte", 1.0))
        plan = cost._Plan(0.001, 1, 1, 6)
        for is_swapped in (False, True):  # processes that have fitted without secure sums, and with them
            found = cost.cost_figures(hosts.pair(plan, is_swapped=is_swapped))
            assert found["secure_bytes_not_as_stated"] == 0
