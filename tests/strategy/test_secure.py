"""Fits whose sums are secure: three sites of a federation, on this machine."""

from __future__ import annotations

from pathlib import Path

from lightning_parablock.masking.submissions import Submissions
from tests.site_kit.sites import identities, signed, unsigned
from tests.support.launch import run_ranks


def test_fits_of_three_sites_equal_the_oracle_and_are_resumed(tmp_path: Path) -> None:
    sites = identities(tmp_path, "abc")
    for site in sites.values():
        Submissions.create(site.folder)
    (tmp_path / "federation.yaml").write_text(signed(unsigned(sites), sites).text)
    for output in run_ranks(3, ["-m", "tests.strategy.worker_secure", str(tmp_path)]):
        lines = output.splitlines()
        for said in ("FIRST EQUAL", "RESUMED EQUAL", "DONE"):
            assert said in lines, output
