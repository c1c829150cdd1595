from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric

from lightning_parablock.elastic.view import Entry
from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.strategy.elastic_group import Agreed, ElasticGroup
from lightning_parablock.strategy.elastic_metrics import sync_metrics
from tests.elastic.fake_site import Board, FakeSite, together

T = TypeVar("T")


class Ranks:
    """Lets every collective through."""

    process_group_backend = "gloo"
    root_device = torch.device("cpu")

    def guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        return collective()


def groups(board: Board) -> list[ElasticGroup]:
    sites = [FakeSite(board, client) for client in sorted(board.names)]
    return [ElasticGroup(Ranks(), site, site.enter({})) for site in sites]


def guest(board: Board, client: int) -> ElasticGroup:
    site = FakeSite(board, client, is_founder=False)
    return ElasticGroup(Ranks(), site, site.enter({}))


def on_all(made: list[ElasticGroup], work: Callable[[ElasticGroup, int], Any]) -> list[Any]:
    return together([partial(work, group, index) for index, group in enumerate(made)])


def founded() -> tuple[Board, list[ElasticGroup]]:
    return (board := Board({0: "a", 1: "b", 2: "c"})), groups(board)


@pytest.mark.parametrize(
    ("op", "expected"),
    [("sum", 6.0), ("mean", 2.0), ("avg", 2.0), ("min", 1.0), ("max", 3.0), (torch.distributed.ReduceOp.SUM, 6.0)],
)
def test_reductions(op: Any, expected: float) -> None:
    _, made = founded()
    found = on_all(made, lambda group, i: group.reduce(torch.tensor([1.0 + i]), None, op))
    assert all(torch.equal(one, torch.tensor([expected])) for one in found)


def test_sums_go_by_client_id_whoever_comes_first() -> None:
    values = [torch.tensor(1e8), torch.tensor(1.0), torch.tensor(-1e8)]
    _, made = founded()
    found = on_all(made, lambda group, i: group.reduce(values[i], None, "sum"))
    assert all(torch.equal(one, (values[0] + values[1]) + values[2]) for one in found)


def test_gathers_and_broadcasts() -> None:
    _, made = founded()
    assert (
        on_all(made, lambda group, i: group.gather_objects({"i": i, "t": (i, None)}, "f"))
        == [[{"i": i, "t": (i, None)} for i in range(3)]] * 3
    )
    assert on_all(made, lambda group, i: group.broadcast(f"of {i}", 1)) == ["of 1"] * 3
    stacked = on_all(made, lambda group, i: group.all_gather(torch.tensor([i]), None, False))
    assert all(torch.equal(one, torch.tensor([[0], [1], [2]])) for one in stacked)
    uneven = on_all(made, lambda group, i: group.gather_tensors(torch.arange(i)))
    assert [[one.tolist() for one in found] for found in uneven] == [[[], [0], [0, 1]]] * 3
    tensors = [[torch.full((2,), float(i)), torch.tensor(i)] for i in range(3)]
    on_all(made, lambda group, i: group.broadcast_tensors(tensors[i], "weights"))
    assert all(torch.equal(pair[0], torch.zeros(2)) and pair[1] == 0 for pair in tensors)
    on_all(made, lambda group, i: group.barrier("end"))


def test_what_is_not_plain_is_refused_where_it_would_be_sent() -> None:
    group = groups(Board({0: "a"}))[0]
    with pytest.raises(ConfigurationError, match=r"gather in f: it is a torch\.nn\..*Linear; ranks and sites"):
        group.gather_objects(nn.Linear(1, 1), "f")
    with pytest.raises(ConfigurationError, match="no process groups"):
        group.reduce(torch.zeros(1), object(), "sum")
    with pytest.raises(ConfigurationError, match="sites meet at merges only"):
        group.all_gather(torch.zeros(1), None, True)
    with pytest.raises(ConfigurationError, match="no reduction 'band'"):
        group.reduce(torch.zeros(1), None, "band")


def test_sites_in_different_collectives_say_so() -> None:
    _, made = founded()
    with pytest.raises(ProtocolError, match="collective 0"):
        on_all(made, lambda group, i: group.barrier("one" if i else "other"))


def test_a_guest_takes_the_founders_results_with_its_own_value_added() -> None:
    board, made = founded()
    on_all(made, lambda group, i: set_up(group, 10 * i))
    on_all(made, lambda group, i: group.begin_round(0))
    board.names[5] = "new"
    newcomer = guest(board, 5)
    assert newcomer.clients == (0, 1, 2, 5)
    assert set_up(newcomer, 7) == ([0, 10, 20, 7], 0, 7.0 + 30.0)


def test_a_guest_that_was_a_founder_takes_its_old_place() -> None:
    board, made = founded()
    on_all(made, lambda group, i: set_up(group, 10 * i))
    on_all(made, lambda group, i: group.begin_round(0))
    back = guest(board, 0)
    assert back.clients == (0, 1, 2)
    # A broadcast stays that of the founder: the others have gone by it.
    assert set_up(back, 7) == ([7, 10, 20], 0, 7.0 + 30.0)


def set_up(group: ElasticGroup, value: int) -> tuple[Any, Any, Any]:
    group.barrier("start")
    gathered, first = group.gather_objects(value, "set_up"), group.broadcast(value, 0)
    weights = torch.full((2,), float(value))
    group.broadcast_tensors([weights], "weights")
    if group.agreed.results and weights[0] != 0.0:
        assert weights.tolist() == [value, value], "a guest keeps its own weights until it is admitted"
    return gathered, first, group.reduce(torch.tensor(float(value)), None, "sum").item()


def test_a_guest_with_another_set_up_is_told_so() -> None:
    board, made = founded()
    on_all(made, lambda group, i: set_up(group, i))
    on_all(made, lambda group, i: group.begin_round(0))
    newcomer = guest(board, 5)
    newcomer.barrier("start")
    with pytest.raises(ConfigurationError, match=r"\(barrier other\), where theirs was gather in set_up"):
        newcomer.barrier("other")
    other = ElasticGroup(Ranks(), FakeSite(board, 6), Entry(False, 6, {}, 0, Agreed().to_bytes()))
    with pytest.raises(ConfigurationError, match="where theirs was the first round"):
        other.barrier("start")


def test_collectives_follow_the_members_of_the_round() -> None:
    board, made = founded()
    on_all(made, lambda group, i: set_up(group, i))
    on_all(made, lambda group, i: group.begin_round(0))
    board.regroup((0, 2), 1)
    left = [made[0], made[2]]
    assert on_all(left, lambda group, i: group.gather_objects(i, "validation")) == [[0, 1]] * 2
    board.names[5] = "new"
    newcomer = guest(board, 5)
    set_up(newcomer, 9)
    board.regroup((0, 2, 5), 4, joiners=(5,))
    newcomer._site.number = left[0]._site.number  # type: ignore[attr-defined]
    three = [*left, newcomer]
    for group in three:
        group.begin_round(4)
    assert on_all(three, lambda group, i: group.gather_objects(i, "validation")) == [[0, 1, 2]] * 3
    assert [group.clients for group in three] == [(0, 2, 5)] * 3


def test_alone_no_other_site_is_asked() -> None:
    _, made = founded()
    group = made[1]
    with group.alone():
        group.barrier("file")
        assert group.clients == (1,)
        assert group.broadcast("mine", 0) == "mine"
        assert group.gather_objects(3, "f") == [3]
        assert torch.equal(group.reduce(torch.tensor(2.0), None, "mean"), torch.tensor(2.0))
    assert group.clients == (0, 1, 2)


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.parts = MeanMetric(), CatMetric()


def test_metrics_of_a_module_count_all_sites() -> None:
    _, made = founded()
    modules = [Module() for _ in made]
    undo = [sync_metrics(module, group) for module, group in zip(modules, made, strict=True)]

    def compute(_: ElasticGroup, i: int) -> tuple[Tensor, Tensor]:
        for value in range(i + 1):
            modules[i].mean.update(float(value))
            modules[i].parts.update(torch.tensor([float(i)]))
        return modules[i].mean.compute(), modules[i].parts.compute()

    for mean, parts in on_all(made, compute):
        assert torch.equal(mean, torch.tensor(4.0 / 6.0))
        assert parts.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    assert copy.deepcopy(modules[0]).mean.dist_sync_fn == made[0].gather_tensors
    undo[0]()
    modules[0].mean.reset()
    modules[0].mean.update(3.0)
    assert modules[0].mean.compute() == 3.0
