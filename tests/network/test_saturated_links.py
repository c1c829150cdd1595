"""Slow is not dead: an exchange that fills the links for longer than the silence limit loses no site."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hosts import HostCluster
from tests.elastic.processes.apart import Apart
from tests.elastic.processes.run import ElasticRun
from tests.elastic.processes.toy import network

SITES = ("a", "b", "c")


@pytest.mark.parametrize(("rate_mbit", "width", "topology"), [(10, 1000, "sharded"), (20, 1150, "star")])
def test_no_site_is_lost_on_saturated_links(rate_mbit: int, width: int, topology: str, tmp_path: Path) -> None:
    """The large block comes up every third round; local steps take far less time than its exchange."""
    with (
        HostCluster(1 + len(SITES), rate=f"{rate_mbit}mbit") as cluster,
        ElasticRun(tmp_path, width=width, places=Apart(cluster), topology=topology, upload_bps=None) as run,
    ):
        block_bytes = 4 * sum(p.numel() for p in network(width)[2].parameters())
        upload_bytes = block_bytes * (len(SITES) - 1) * {"sharded": 2 / len(SITES), "star": 1}[topology]
        assert 8 * upload_bytes / (1e6 * rate_mbit) > 2 * run.silence_s
        run.found(*SITES)
        log = run.end(*SITES, rounds=5)
    assert [record.members for record in log.records] == [(0, 1, 2)]
