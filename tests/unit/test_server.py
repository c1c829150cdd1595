"""The server's arithmetic against the plain formulas, and its indifference to how a block is cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.server.aggregation import weighted_mean
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import (
    BF16,
    Compression,
    Int4,
    Int8,
    ServerAdam,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
    ServerYogi,
    Sparse,
    TopK,
)
from tests.oracle_codecs import arrives

EACH_SERVER = [
    ServerSGD(lr=0.3, warmup_rounds=2, decay="cosine", decay_rounds=5),
    ServerNesterov(),
    ServerAdam(),
    ServerYogi(lr=0.1, decay="linear", decay_rounds=4),
]
EVERYTHING = slice(0, 40)
BIG = 2.0**24  # BIG + 1 is not a float32


def vectors(n: int, seed: int = 0, size: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(n)]


def mean_of(deltas: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    return weighted_mean(deltas, weights, torch.full_like(deltas[0], float("nan")))


def commit(
    server: ServerShard, block: int, part: slice, deltas: Sequence[Tensor], weights: Sequence[int], round_index: int = 0
) -> Tensor:
    """Commit, and look at what the clients are sent."""
    payload = torch.zeros(4 * (part.stop - part.start), dtype=torch.uint8)
    value = server.commit(round_index, block, part, mean_of(deltas, weights), payload)
    assert torch.equal(payload.view(torch.float32), value)
    return value


def run(optimizer: ServerOptimizer, cuts: list[int], n_rounds: int = 3) -> Tensor:
    """Commit some rounds of three clients, the block cut into parts at ``cuts``."""
    server = ServerShard(optimizer, [torch.zeros(3), vectors(1, seed=99)[0]])
    bounds = [0, *sorted(cuts), 40]
    for t in range(n_rounds):
        deltas = vectors(3, seed=t)
        for low, high in itertools.pairwise(bounds):
            commit(server, 1, slice(low, high), [delta[low:high] for delta in deltas], [1, 2, 3], t)
    assert torch.equal(server.values[0], torch.zeros(3)), "a block that was not committed has changed"
    return server.values[1]


def test_the_mean_of_one_is_itself() -> None:
    (delta,) = vectors(1)
    mean = mean_of([delta], [1])
    assert torch.equal(mean, delta)
    assert mean.data_ptr() != delta.data_ptr()


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 2)])
def test_the_mean_is_the_weighted_sum_over_the_sum_of_weights(weights: tuple[int, ...]) -> None:
    deltas = vectors(3)
    expected = sum(w * d.double() for w, d in zip(weights, deltas, strict=True)) / sum(weights)
    assert torch.allclose(mean_of(deltas, weights).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((BIG, 1.0, -BIG), 0.0),  # added from the right it would be 1/3
        ((BIG, -BIG, 1.0), 1 / 3),
        ((5.0, 0.0, 0.0), 5 / 3),  # 5 * (1/3) is another number
        ((BIG, *[1.0] * 15), BIG / 16),  # pairwise or in lanes it would be more
    ],
)
def test_the_sum_goes_in_the_given_order_and_is_divided_once(numbers: tuple[float, ...], expected: float) -> None:
    mean = mean_of([torch.tensor([number]) for number in numbers], [1] * len(numbers))
    assert torch.equal(mean, torch.tensor([expected]))


def test_a_missing_weight_is_an_error() -> None:
    with pytest.raises(ValueError):
        mean_of(vectors(3), [1, 1])


def test_sgd_adds_the_mean_times_its_rate() -> None:
    start, deltas = vectors(1, seed=7)[0], vectors(2)
    for lr in (1.0, 0.3):
        server = ServerShard(ServerSGD(lr=lr), [start.clone()])
        returned = commit(server, 0, EVERYTHING, deltas, [1, 1])
        assert torch.equal(returned, start + lr * ((deltas[0] + deltas[1]) / 2))
        assert torch.equal(server.values[0], returned)


def test_nesterov_follows_its_formula_over_rounds() -> None:
    w, v = vectors(1, seed=7)[0], torch.zeros(40)
    server = ServerShard(ServerNesterov(lr=0.7, momentum=0.9), [w.clone()])
    for t in range(4):
        deltas = vectors(2, seed=t)
        g = (deltas[0] + deltas[1]) / 2
        v = 0.9 * v + g
        w = w + 0.7 * (g + 0.9 * v)
        assert torch.equal(commit(server, 0, EVERYTHING, deltas, [1, 1]), w)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_steps_follow_their_formulas_over_rounds(kind: str) -> None:
    w, m, v = vectors(1, seed=7)[0], torch.zeros(40), torch.full((40,), 0.01**2)
    make = {"adam": ServerAdam, "yogi": ServerYogi}[kind]
    server = ServerShard(make(lr=0.5, betas=(0.8, 0.95), tau=0.01), [w.clone()])
    falls = 0
    for t in range(6):
        deltas = [delta / (1 + t) for delta in vectors(2, seed=t)]
        g = (deltas[0] + deltas[1]) / 2
        m = 0.8 * m + (1 - 0.8) * g
        if kind == "adam":
            v = 0.95 * v + (1 - 0.95) * g**2
        else:
            falls += int((v > g**2).sum())
            v = v - (1 - 0.95) * g**2 * torch.sign(v - g**2)
        w = w + 0.5 * (m / (torch.sqrt(v) + 0.01))
        assert torch.equal(commit(server, 0, EVERYTHING, deltas, [1, 1]), w)
    assert {piece.name: piece.values.tolist() for piece in server.state()} == {
        "momentum": m.tolist(),
        "variance": v.tolist(),
    }
    assert kind == "adam" or 10 < falls < 230


@pytest.mark.parametrize("make", [ServerSGD, ServerNesterov, ServerAdam, ServerYogi])
def test_a_schedule_changes_the_last_factor_alone(make: type[ServerOptimizer]) -> None:
    falling = make(lr=0.5, warmup_rounds=2, decay="linear", decay_rounds=6)
    moved: dict[str, list[Tensor]] = {"falling": [], "constant": []}
    for name, optimizer in (("falling", falling), ("constant", make(lr=0.5))):
        server = ServerShard(optimizer, [torch.zeros(40)])
        for t in range(8):
            before = server.values[0].clone()
            moved[name].append(commit(server, 0, EVERYTHING, vectors(1, seed=t), [1], t) - before)
    for t, share in enumerate([0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]):
        assert torch.allclose(moved["falling"][t], share * moved["constant"][t], rtol=1e-3, atol=1e-6), t


def test_each_block_has_a_velocity_of_its_own() -> None:
    optimizer, (delta,) = ServerNesterov(), vectors(1)
    both = ServerShard(optimizer, [torch.zeros(40), torch.zeros(40)])
    commit(both, 0, EVERYTHING, [delta], [1])
    commit(both, 0, EVERYTHING, [delta], [1])
    commit(both, 1, EVERYTHING, [delta], [1])
    alone = ServerShard(optimizer, [torch.zeros(40)])
    commit(alone, 0, EVERYTHING, [delta], [1])
    assert torch.equal(both.values[1], alone.values[0])
    assert not torch.equal(both.values[0], alone.values[0])


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from(EACH_SERVER))
def test_any_cut_of_a_block_gives_the_same_bits(cuts: list[int], optimizer: ServerOptimizer) -> None:
    assert torch.equal(run(optimizer, cuts), run(optimizer, []))


def test_the_deltas_are_not_changed() -> None:
    deltas = vectors(3)
    kept = [delta.clone() for delta in deltas]
    commit(ServerShard(ServerNesterov(), [torch.zeros(40)]), 0, EVERYTHING, deltas, [1, 1, 1])
    assert all(torch.equal(one, other) for one, other in zip(deltas, kept, strict=True))


@pytest.mark.parametrize("optimizer", EACH_SERVER, ids=lambda optimizer: type(optimizer).__name__)
def test_vector_instructions_and_what_is_left_of_them_give_the_same_bits(optimizer: ServerOptimizer) -> None:
    """Long blocks, cut so that every scalar is once within a vector and once in the rest."""
    n, cuts = 4099, [0, 1, 3, 1000, 1007, 2048, 4098, 4099]
    whole, cut = (ServerShard(optimizer, [torch.ones(n)]) for _ in range(2))
    for t in range(3):
        deltas = vectors(2, seed=t, size=n)
        commit(whole, 0, slice(0, n), deltas, [1, 1], t)
        for low, high in itertools.pairwise(cuts):
            commit(cut, 0, slice(low, high), [delta[low:high] for delta in deltas], [1, 1], t)
    assert torch.equal(whole.values[0], cut.values[0])


LOSSY = pytest.mark.parametrize(
    "compression", [BF16(), Int8(), Int4(), TopK(), Sparse()], ids=lambda c: type(c).__name__
)


def lossy_server(compression: Compression, as_held: Callable[[int, int, Tensor], Tensor] | None = None) -> ServerShard:
    return ServerShard(ServerSGD(lr=0.5), [vectors(1, seed=7)[0]], compression=compression, as_held=as_held)


def send(server: ServerShard, part: slice, deltas: Sequence[Tensor]) -> Tensor:
    """What a client reads from the commit's payload; it must be what the server itself has used."""
    codec, scalars = codec_of(server.compression), part.stop - part.start
    payload = torch.empty(codec.payload_bytes(scalars), dtype=torch.uint8)
    used = server.commit(0, 0, part, mean_of(deltas, [1] * len(deltas)), payload).clone()
    received = torch.empty(scalars)
    codec.decode(payload, received)
    assert torch.equal(received, used)
    return received


@LOSSY
def test_server_and_clients_apply_the_same_decoded_commit(compression: Compression) -> None:
    server = lossy_server(compression)
    at_client = server.values[0].clone()
    for t in range(5):
        at_client = at_client + send(server, EVERYTHING, vectors(3, seed=t))
        assert torch.equal(server.values[0], at_client)


@LOSSY
def test_what_a_commit_leaves_out_comes_with_later_ones(compression: Compression) -> None:
    server = lossy_server(compression)
    start = server.values[0].clone()
    wanted = torch.zeros(40, dtype=torch.float64)
    for t in range(20):
        deltas = vectors(2, seed=t)
        send(server, EVERYTHING, deltas)
        wanted += 0.5 * (deltas[0] + deltas[1]) / 2
    (piece,) = server.state()
    assert piece.name == "residual"
    assert piece.values.abs().max() > 0
    assert torch.allclose(server.values[0] + piece.values, start + wanted.float(), rtol=0, atol=1e-5)


def test_what_a_commit_leaves_out_decays() -> None:
    server, left = lossy_server(Sparse(decay=0.5)), torch.zeros(40)
    for t in range(5):
        before = server.values[0].clone()
        deltas = vectors(2, seed=t)
        received = send(server, EVERYTHING, deltas)
        wanted = 0.5 * mean_of(deltas, [1, 1]) + 0.5 * left
        assert torch.equal(received, arrives("sparse", wanted))
        left = wanted - (server.values[0] - before)
        (piece,) = server.state()
        assert torch.equal(piece.values, left)


@LOSSY
def test_where_clients_hold_w_in_bfloat16_the_server_has_what_they_have(compression: Compression) -> None:
    def as_held(block: int, first: int, values: Tensor) -> Tensor:
        return values.to(torch.bfloat16).float()

    server = lossy_server(compression, as_held)
    server.values[0] = as_held(0, 0, server.values[0])
    at_client, wanted = server.values[0].bfloat16(), server.values[0].double()
    for t in range(20):
        deltas = vectors(2, seed=t)
        at_client = (at_client.float() + send(server, EVERYTHING, deltas)).bfloat16()
        wanted += 0.5 * (deltas[0] + deltas[1]) / 2
        assert torch.equal(server.values[0], at_client.float())
    (piece,) = server.state()  # W itself need not be saved: the clients have it
    assert piece.name == "residual"
    assert torch.allclose((server.values[0] + piece.values).double(), wanted, rtol=0, atol=1e-5)


def test_without_compression_a_server_of_bfloat16_clients_saves_its_own_w() -> None:
    exact, rounded = (
        ServerShard(ServerSGD(), [torch.zeros(40)], as_held=as_held) for as_held in (None, lambda b, f, v: v)
    )
    assert [piece.name for piece in exact.state()] == []
    assert [piece.name for piece in rounded.state()] == ["value"]
