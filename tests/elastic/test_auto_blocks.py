"""``blocks="auto"`` where sites come and go: the founders decide, and a site that joins takes their number."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.elastic.view import Entry
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.auto_blocks import settle_blocks
from lightning_parablock.strategy.elastic_group import ElasticGroup
from tests.elastic.fake_site import Board, FakeSite, enter, together
from tests.support.lightning_run import TaskModule, loader_of, trainer_for
from tests.tasks import adamw_default, mlp_task
from tests.unit.test_blocks import flat_model

TASK, STEPS = mlp_task(), 8
T = TypeVar("T")
FOUR = [100] * 4


class Ranks:
    """A site as the agreement sees it."""

    root_device, num_processes = torch.device("cuda"), 1

    def __init__(self, board: Board, client: int, *, is_founder: bool) -> None:
        site = FakeSite(board, client, is_founder=is_founder)
        entry: Entry = site.enter({})
        self.group = ElasticGroup(self, site, entry)  # type: ignore[arg-type]

    def guard(self, what: str, collective: Any, detail: str = "") -> Any:
        return collective()

    @property
    def world_size(self) -> int:
        return len(self.group.clients)

    def describe(self, rank: int) -> str:
        return f"site {self.group.clients[rank]}"

    def gather_objects(self, value: T) -> list[T]:
        return self.group.gather_objects(value, "settle_blocks")

    def broadcast(self, value: T) -> T:
        return self.group.broadcast(value, 0)


def agreed(ranks: Ranks, memory: float, saved: int | None = None) -> Any:
    settings = Settings(blocks="auto", memory=memory, lighthouse="hub:1", min_clients=1)
    return settle_blocks(ranks, flat_model(FOUR), settings, saved).blocks  # type: ignore[arg-type]


def founded(*memory: float, saved: int | None = None) -> Board:
    """A run whose founders have so much memory, in its first round; ``saved``: in the checkpoint they continue."""
    board = Board({client: "abc"[client] for client in range(len(memory))})
    ranks = [Ranks(board, client, is_founder=True) for client in board.names]
    found = together([partial(agreed, each, own, saved) for each, own in zip(ranks, memory, strict=True)])
    assert found == [2 if saved is None else saved] * len(memory)
    for each in ranks:
        each.group.begin_round(0)
    return board


# What four parameters of 100 scalars take in 1, 2, 3 and 4 blocks: 12,800, 7200, 6000 and 4400 bytes.
@pytest.mark.parametrize("memory", [1e9, 12_800, 7200])
def test_a_site_that_joins_takes_the_number_of_the_run(memory: float) -> None:
    board = founded(1e9, 7200)
    board.names[2] = "c"
    assert agreed(Ranks(board, 2, is_founder=False), memory) == 2


def test_a_founder_that_comes_back_with_more_memory_takes_it_too() -> None:
    board = founded(7200, 1e9)
    assert agreed(Ranks(board, 0, is_founder=False), 1e9) == 2


def test_a_site_with_too_little_memory_for_the_blocks_of_the_run_is_refused() -> None:
    board = founded(1e9, 7200)
    board.names[2] = "c"
    said = "this site cannot join the run: the run has 2 blocks, which take 7.2 kB without activations, and its memory"
    with pytest.raises(ConfigurationError, match=said):
        agreed(Ranks(board, 2, is_founder=False), 7199)


@pytest.mark.parametrize("memory", [1e9, 7200, 10])
def test_founders_that_continue_take_the_number_of_their_checkpoint_and_so_do_joiners(memory: float) -> None:
    board = founded(memory, 1e9, saved=3)
    board.names[2] = "c"
    assert agreed(Ranks(board, 2, is_founder=False), 6000) == 3
    said = "this site cannot join the run: the run has 3 blocks, which take 6.0 kB without"
    with pytest.raises(ConfigurationError, match=said):
        agreed(Ranks(board, 2, is_founder=False), 5999)


def test_the_same_command_continues_a_run_with_the_blocks_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is more memory by now: every checkpoint of a run is of the same blocks."""
    n_blocks = list[int]()
    for memory, first_round, path in ((4e3, 0, None), (1e9, 1, str(tmp_path / "a.ckpt"))):
        enter(monkeypatch, FakeSite(Board({0: "a"}, first_round=first_round), 0))
        strategy = ParaBlockStrategy(
            local_steps=4, blocks="auto", memory=memory, lighthouse="hub:1", min_clients=1, site="a"
        )
        trainer = trainer_for(strategy, max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(TaskModule(TASK, adamw_default), loader_of(STEPS, 0), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        n_blocks.append(len(strategy.blocks))
    assert n_blocks == [2, 2]
