"""The scales of secure sums go with the versions of a block."""

from __future__ import annotations

import pytest
import torch

from lightning_parablock.elastic.version_scales import VersionScales, as_tensor, from_tensor
from lightning_parablock.errors import ProtocolError
from lightning_parablock.masking.scales import Scale
from lightning_parablock.settings.delay import Delay


def scale(value: int, clients: int = 3) -> Scale:
    return Scale(torch.tensor([value, -value], dtype=torch.int32), clients)


def at(scales: VersionScales, round_index: int) -> int | None:
    found = scales.of((round_index, 0))
    return None if found is None else int(found.sum_of_logs[0])


def test_a_round_takes_the_newest_scale_that_is_merged_when_it_is_submitted() -> None:
    scales = VersionScales(2, Delay(1, 0))
    for t in (0, 1, 3):
        scales.land((t, 0), scale(t))
    scales.land((2, 0), None)  # no client has trained, or it was dropped
    assert [at(scales, t) for t in range(6)] == [None, 0, 1, 1, 3, 3]
    assert scales.at((2, 0)) == scales.at((1, 0)) and scales.of((4, 1)) is None


@pytest.mark.parametrize(
    ("delay", "merged"),
    [
        (Delay(0, 0), 3),
        (Delay(0, 1), 3),
        (Delay(1, 0), 3),
        (Delay(1, 1), 2),
        (Delay(2, 0), 2),
        (Delay(2, 0, 4), 3),
        (Delay(2, 0, 5), 3),
    ],
    ids=str,
)
def test_what_is_merged_when_round_4_is_submitted(delay: Delay, merged: int) -> None:
    assert delay.newest_merged_at_submission(4) == merged


def test_pruning_keeps_what_the_oldest_version_has() -> None:
    scales = VersionScales(1, Delay(1, 0))
    for t in (0, 1, 4):
        scales.land((t, 0), scale(t))
    scales.prune(lambda block: (3, block))
    assert (at(scales, 3), at(scales, 5)) == (1, 4) and scales.at((0, 0)) is None
    scales.begin_with([((5, 0), scale(5))])
    assert (at(scales, 4), at(scales, 6)) == (None, 5)


def test_a_scale_survives_its_way() -> None:
    for one in (scale(7), None):
        back = from_tensor(as_tensor(one), 2000, "a")
        assert (back is None) == (one is None)
        assert one is None or (back is not None and torch.equal(back.sum_of_logs, one.sum_of_logs))


@pytest.mark.parametrize(
    "values",
    [torch.zeros(0, dtype=torch.int32), torch.ones(3), torch.tensor([1, 2], dtype=torch.int32),
     torch.tensor([1, 2, -1], dtype=torch.int32), torch.ones(1, 3, dtype=torch.int32)],
    ids=["empty", "float", "short", "negative", "square"],
)  # fmt: skip
def test_something_else_is_a_named_error(values: torch.Tensor) -> None:
    with pytest.raises(ProtocolError, match=r"from a: .* is no scale of a block"):
        from_tensor(values, 2000, "a")
