"""Values that ranks of a default process group exchange: whole, and never unpickled."""

from __future__ import annotations

from pathlib import Path

from tests.support.launch import run_ranks


def test_a_stranger_in_the_place_of_a_rank_makes_no_other_rank_run_code(tmp_path: Path) -> None:
    outputs = run_ranks(2, ["-m", "tests.distributed.worker_objects", str(tmp_path)])
    assert all("REFUSED" in output for output in outputs)
