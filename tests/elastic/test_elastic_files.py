from __future__ import annotations

import pytest

from lightning_parablock.strategy.elastic_files import own_folder


@pytest.mark.parametrize(
    ("folder", "own"),
    [
        ("runs/checkpoints", "runs/checkpoints/a"),
        ("runs/a/checkpoints", "runs/a/checkpoints"),
        ("s3://bucket/r", "s3://bucket/r/a"),
        ("s3://bucket/r/", "s3://bucket/r/a"),
        ("s3://bucket/r/a", "s3://bucket/r/a"),
    ],
)
def test_each_site_has_its_own_part_of_a_folder_once(folder: str, own: str) -> None:
    assert own_folder(folder, "a") == own
    assert own_folder(own, "a") == own
