"""Factors of a block's matrices: what is sent and kept, the same bits as the oracle's, and what excludes them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import partition
from lightning_parablock.codecs.compression import LowRank, NoCompression, Sparse
from lightning_parablock.codecs.feedback import Coder, Residual
from lightning_parablock.codecs.low_rank import TILE_SCALARS, Bases, FactorLayout, halved_sum, orthonormal
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.server.aggregation import Received
from lightning_parablock.server.low_rank import LowRankAggregator
from lightning_parablock.server.optimizers import ServerNesterov, ServerOptimizer, ServerSGD
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.strategy.refusals import refuse_factors
from tests import oracle_low_rank as oracle

SHAPES = [(30, 20), (7,), (5, 4, 3, 3), (4, 4)]
NUMEL = 30 * 20 + 7 + 180 + 16
RANK = 2
LAYOUT = FactorLayout(SHAPES, RANK)
CODER = Coder(NoCompression())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(flat: Tensor) -> oracle.Values:
    """The block's values under the names of its parameters, as the oracle has them."""
    parts = flat.split([torch.Size(shape).numel() for shape in SHAPES])
    return {str(place): part.view(shape) for place, (part, shape) in enumerate(zip(parts, SHAPES, strict=True))}


def project(layout: FactorLayout, bases: Bases, wanted: Tensor) -> Tensor:
    """What is sent of a block's values, which become what is left out."""
    left: dict[int, Tensor] = {}
    sent = layout.project(
        bases, lambda part: wanted[part].clone(), lambda part, values: left.update({part.start: values})
    )
    wanted.copy_(torch.cat([left[start] for start in sorted(left)]))
    return sent


def in_one(values: oracle.Values) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])


# --- one block --------------------------------------------------------------------------------------------------------


def test_matrices_have_factors_where_both_together_are_no_larger() -> None:
    assert LAYOUT.numel == NUMEL
    # 30 x 20, 5 x 36 of a convolution, and 4 x 4, whose factors together are as large as it; the vector travels whole.
    assert LAYOUT.carried(sends_left=True) == 2 * 30 + 7 + 2 * 5 + 2 * 4
    assert LAYOUT.carried(sends_left=False) == 2 * 20 + 7 + 2 * 36 + 2 * 4
    assert LAYOUT.most_carried == 127 and LAYOUT.has_factors
    assert not FactorLayout([(4, 4), (7,)], 3).has_factors
    assert FactorLayout([(4, 4)], 3).carried(sends_left=True) == 16
    assert FactorLayout([(), (0, 5), (3,)], 1).carried(sends_left=True) == 4


def test_what_is_sent_and_what_is_left_out_are_all_of_the_deltas() -> None:
    bases, left = LAYOUT.first_bases(0), torch.zeros(NUMEL)
    total, arrived = torch.zeros(NUMEL, dtype=torch.float64), torch.zeros(NUMEL, dtype=torch.float64)
    for visit in range(8):
        delta = noise(NUMEL, seed=visit)
        left = delta + left
        sent = project(LAYOUT, bases, left)  # leaves there what it does not send
        total += delta
        arrived += LAYOUT.expand(bases, sent)
        bases = LAYOUT.next_bases(0, bases, sent)
    assert torch.allclose(arrived + left, total, rtol=0, atol=1e-5)
    assert left[:600].abs().max() > 0 and not left[600:607].any()


def test_a_matrix_of_the_rank_arrives_whole_at_the_second_visit() -> None:
    layout = FactorLayout([(30, 20)], RANK)
    delta = (noise(30, RANK) @ noise(RANK, 20, seed=1)).view(-1)
    bases, left, arrived = layout.first_bases(0), torch.zeros(600), torch.zeros(600)
    for _ in range(2):
        left = left + delta
        sent = project(layout, bases, left)
        arrived += layout.expand(bases, sent)
        bases = layout.next_bases(0, bases, sent)
    assert torch.allclose(arrived, 2 * delta, atol=1e-4)
    assert torch.allclose(left, torch.zeros(600), atol=1e-4)


def test_every_step_has_the_bits_of_the_oracle() -> None:
    bases = LAYOUT.first_bases(3)
    told = oracle.at_first(3, named(torch.zeros(NUMEL)), RANK)
    for visit in range(5):
        assert (told.left_next, [*told.on]) == (bases.sends_left, ["0", "2", "3"])
        assert all(torch.equal(one, other) for one, other in zip(bases.vectors, told.on.values(), strict=True))
        wanted = noise(NUMEL, seed=visit)
        expected, left = oracle.send(told, named(wanted.clone()))
        sent = project(LAYOUT, bases, wanted)
        assert torch.equal(sent, in_one(expected)) and torch.equal(wanted, in_one(left))
        like = named(torch.zeros(NUMEL))
        assert torch.equal(LAYOUT.expand(bases, sent), in_one(oracle.receive(told, expected, like)))
        bases, told = LAYOUT.next_bases(3, bases, sent), oracle.tell(3, told, expected)


def test_an_exchange_that_brings_nothing_tells_nothing() -> None:
    bases = LAYOUT.first_bases(0)
    assert LAYOUT.next_bases(0, bases, torch.zeros(LAYOUT.carried(sends_left=True))) is bases


def test_a_matrix_that_does_not_move_still_has_a_basis() -> None:
    layout = FactorLayout([(30, 20), (8, 9)], RANK)
    wanted = noise(600 + 72)
    wanted[600:] = 0
    bases = layout.first_bases(0)
    for _ in range(3):
        bases = layout.next_bases(0, bases, project(layout, bases, wanted.clone()))
        for vectors in bases.vectors:
            assert torch.allclose(vectors.T @ vectors, torch.eye(RANK), atol=1e-6)


# --- arithmetic that all ranks must agree on --------------------------------------------------------------------------


def test_products_are_added_one_after_the_other() -> None:
    rows, columns = TILE_SCALARS // 16 + 3, 40
    layout = FactorLayout([(rows, columns)], 3)
    bases = layout.first_bases(0)
    factor, (right,) = noise(rows, 3), bases.vectors
    products = factor[:, None, :] * right[None, :, :]
    expected = (products[..., 0] + products[..., 1]) + products[..., 2]
    assert torch.equal(layout.expand(bases, factor.view(-1)).view(rows, columns), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 1000])
def test_the_second_half_is_added_to_the_first_one(n: int) -> None:
    values = noise(n).double()
    expected = [*values.tolist(), *[0.0] * ((1 << (n - 1).bit_length()) - n)]
    while len(expected) > 1:
        half = len(expected) // 2
        expected = [one + other for one, other in zip(expected[:half], expected[half:], strict=True)]
    assert halved_sum(values).item() == expected[0]


def test_columns_become_orthonormal_in_their_order() -> None:
    columns = noise(50, 4)
    found = orthonormal(columns, 0)
    assert torch.allclose(found.T @ found, torch.eye(4), atol=1e-6)
    assert torch.allclose(found @ (found.T @ columns), columns, atol=1e-5)
    assert torch.allclose(found[:, 0], columns[:, 0] / columns[:, 0].norm(), atol=1e-6)


def test_columns_that_depend_on_others_are_replaced() -> None:
    first = noise(50, 1)
    columns = torch.cat([first, 3 * first, torch.zeros(50, 1), noise(50, 1, seed=1)], dim=1)
    found = orthonormal(columns, 7, 1)
    assert torch.allclose(found.T @ found, torch.eye(4), atol=1e-6)
    assert torch.equal(found, orthonormal(columns, 7, 1))


def test_more_columns_than_dimensions_end_in_zeros() -> None:
    found = orthonormal(torch.eye(2, 3), 0)
    assert torch.equal(found, torch.eye(2, 3))


def test_values_that_are_not_finite_end_too() -> None:
    assert not orthonormal(torch.full((9, 2), float("nan")), 0).isfinite().any()
    assert orthonormal(torch.full((9, 1), float("inf")), 0).shape == (9, 1)


def test_first_bases_are_the_same_in_every_run_and_differ_between_blocks() -> None:
    def flat(bases: Bases) -> Tensor:
        return torch.cat([vectors.view(-1) for vectors in bases.vectors])

    assert torch.equal(flat(LAYOUT.first_bases(1)), flat(FactorLayout(SHAPES, RANK).first_bases(1)))
    assert not torch.equal(flat(LAYOUT.first_bases(1)), flat(LAYOUT.first_bases(2)))


# --- exchanges --------------------------------------------------------------------------------------------------------


class Alone:
    """The aggregator of a rank that serves everything, and W."""

    def __init__(self, optimizer: ServerOptimizer | None = None, *, decay: float = 1.0) -> None:
        self.aggregator = LowRankAggregator([LAYOUT], decay)
        self.server = ServerShard(optimizer or ServerSGD(), [torch.zeros(NUMEL)])

    def submit(self, round_index: int, deltas: list[Tensor], weights: list[int] | None = None) -> dict[int, Upload]:
        weights = weights or [1] * len(deltas)
        uploads = {
            client: Upload(delta, weight, Residual(None, torch.full((NUMEL,), torch.nan)))
            for client, (delta, weight) in enumerate(zip(deltas, weights, strict=True))
        }
        self.aggregator.stages((round_index, 0), uploads, range(len(deltas)))
        return uploads

    def finish(self, round_index: int, uploads: dict[int, Upload], parts: int = 3) -> Tensor:
        """W after it, from as many parts."""
        key, aggregator = (round_index, 0), self.aggregator
        aggregator.begin(self.server, key)
        carried = aggregator.carried_scalars(key, NUMEL)
        contributions, brought = aggregator.contributions(key, uploads, range(len(uploads))), torch.empty(carried)
        cuts = [carried * i // parts for i in range(parts + 1)]
        for part in (slice(*pair) for pair in itertools.pairwise(cuts)):
            received = {
                client: Received(one.weight, 0.0, lambda one=one, part=part: one.here(part, CODER))
                for client, one in contributions.items()
            }
            payload = torch.empty(4 * (part.stop - part.start), dtype=torch.uint8)
            made = aggregator.commit(self.server, key, part, aggregator.aggregate(key, received, part), payload)
            assert torch.equal(payload.view(torch.float32), made)
            brought[part] = made
        return aggregator.whole(self.server, key, brought)


def test_a_basis_counts_from_the_merge_on() -> None:
    alone, delta = Alone(), noise(NUMEL)
    both = [alone.submit(t, [delta]) for t in range(2)]
    w = [torch.zeros(NUMEL), *(alone.finish(t, both[t]) for t in range(2))]
    alone.aggregator.settle(0)
    w.append(alone.finish(2, alone.submit(2, [delta])))
    first, second, third = (after - before for before, after in itertools.pairwise(w))
    assert torch.allclose(first, second, atol=1e-6) and not torch.allclose(first, third, atol=1e-2)
    assert torch.equal(alone.server.values[0], w[-1])


def test_every_rank_moves_w_by_the_server_optimizer() -> None:
    half, whole = Alone(ServerSGD(lr=0.5)), Alone()
    brought, expected = (one.finish(0, one.submit(0, [noise(NUMEL)])) for one in (half, whole))
    assert torch.equal(brought, 0.5 * expected)
    nesterov = Alone(ServerNesterov(lr=1.0, momentum=0.5))
    assert torch.equal(nesterov.finish(0, nesterov.submit(0, [noise(NUMEL)])), expected + 0.5 * expected)
    assert nesterov.server.state() == []  # it is in flight, and would be submitted again
    nesterov.server.settle(0)
    (piece,) = nesterov.server.state()
    assert (piece.name, piece.first) == ("velocity", 0) and torch.equal(piece.values, expected)


def test_clients_without_weight_are_left_out_of_the_mean() -> None:
    alone, others = Alone(), Alone()
    expected = others.finish(0, others.submit(0, [noise(NUMEL)]))
    assert torch.equal(alone.finish(0, alone.submit(0, [noise(NUMEL), noise(NUMEL, seed=1)], [2, 0])), expected)


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_what_was_left_out_decays_before_it_is_added(decay: float) -> None:
    alone, before = Alone(decay=decay), noise(NUMEL, seed=5)
    after = torch.full((NUMEL,), torch.nan)
    upload = {0: Upload(noise(NUMEL), 1, Residual(before.clone(), after))}
    alone.aggregator.stages((0, 0), upload, [0])
    alone.finish(0, upload)
    wanted = noise(NUMEL) + before * decay
    project(LAYOUT, LAYOUT.first_bases(0), wanted)
    assert torch.equal(after, wanted)


def test_the_state_has_what_the_next_exchange_and_those_in_flight_project_on() -> None:
    alone = Alone()
    first = alone.submit(0, [noise(NUMEL)])
    in_flight = alone.submit(1, [noise(NUMEL, seed=1)])
    alone.finish(0, first)
    alone.aggregator.settle(0)
    other = Alone()
    other.aggregator.load_state(alone.aggregator.state())
    other.server.values[0].copy_(alone.server.values[0])
    assert [row[:2] for row in other.aggregator.state()] == [[0, -1], [0, 1]]
    other.aggregator.stages((1, 0), in_flight, [0])
    assert torch.equal(other.finish(1, in_flight), alone.finish(1, in_flight))
    assert other.aggregator.carried_scalars((1, 0), NUMEL) == LAYOUT.carried(sends_left=True)
    later = [noise(NUMEL, seed=2)]
    assert torch.equal(other.finish(2, other.submit(2, later)), alone.finish(2, alone.submit(2, later)))
    assert alone.aggregator.carried_scalars((2, 0), NUMEL) == LAYOUT.carried(sends_left=False)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"lighthouse": "hub:1", "site": "a", "min_clients": 2}, "a site that joins would not know what the"),
        ({"aggregation": "secure"}, "compression=LowRank with aggregation='secure'"),
    ],
    ids=str,
)
def test_options_that_factors_exclude(options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigurationError, match=needle):
        ParaBlockStrategy(compression="low_rank", **options)
    ParaBlockStrategy(**options)  # other compressions take them


@pytest.mark.parametrize("rank", [0, -1, 2.0, "8", True, None])
def test_a_wrong_rank(rank: Any) -> None:
    with pytest.raises(ConfigurationError, match="compression rank"):
        LowRank(rank)


def test_a_rank_with_which_everything_would_travel_whole_is_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))  # as adapters of LoRA with rank 8
    with pytest.raises(ConfigurationError, match="more values than its two factors of rank 8"):
        refuse_factors(partition(model, 2), LowRank())
    refuse_factors(partition(model, 2), LowRank(4))
    refuse_factors(partition(model, 2), Sparse())
