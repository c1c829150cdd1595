"""Properties of the mean delta: who comes first changes nothing, weights sum to one, who did not train has no part."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.server.aggregation import mean_norm, weighted_mean
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import ServerSGD
from lightning_parablock.transport.loopback import LoopbackTransport

EXAMPLES = settings(max_examples=150, derandomize=True, deadline=None, database=None)
WEIGHTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=12)


def deltas_of(n_clients: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(50, generator=generator) * 10.0 ** (client % 5 - 2) for client in range(n_clients)]


@EXAMPLES
@given(WEIGHTS, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_the_order_in_which_clients_come_changes_no_bit(weights: list[int], seed: int, random: object) -> None:
    deltas = deltas_of(len(weights), seed)
    results: list[Tensor] = []
    for order in (range(len(weights)), random.sample(range(len(weights)), len(weights))):  # type: ignore[attr-defined]
        transport = LoopbackTransport(ServerShard(ServerSGD(), [torch.zeros(50)]))
        uploads = {client: Upload(deltas[client], weights[client]) for client in order}
        results.append(transport.submit(0, 0, uploads, sorted(uploads)).wait(lambda: torch.zeros(50)))
    assert torch.equal(*results)


@EXAMPLES
@given(WEIGHTS.filter(any), st.integers(0, 2**31))
def test_the_weights_sum_to_one(weights: list[int], seed: int) -> None:
    """So clients that all went the same way move the model that way, whatever their weights."""
    (delta,) = deltas_of(1, seed)
    mean = weighted_mean([delta] * len(weights), weights, torch.empty(50))
    assert torch.allclose(mean, delta, rtol=1e-5, atol=0)
    assert abs(mean_norm([3.0] * len(weights), weights) - 3.0) < 1e-12


@EXAMPLES
@given(WEIGHTS, st.integers(0, 2**31))
def test_who_has_no_weight_has_no_part(weights: list[int], seed: int) -> None:
    deltas = deltas_of(len(weights), seed)
    whole = weighted_mean(deltas, weights, torch.empty(50))
    trained = [client for client, weight in enumerate(weights) if weight]
    others = weighted_mean([deltas[c] for c in trained], [weights[c] for c in trained], torch.empty(50))
    assert torch.equal(whole, others)


@EXAMPLES
@given(WEIGHTS.filter(any), st.integers(0, 2**31))
def test_the_mean_lies_between_its_deltas(weights: list[int], seed: int) -> None:
    deltas = deltas_of(len(weights), seed)
    mean = weighted_mean(deltas, weights, torch.empty(50))
    trained = torch.stack([delta for delta, weight in zip(deltas, weights, strict=True) if weight])
    slack = 1e-4 * trained.abs().amax(dim=0)
    assert (mean <= trained.amax(dim=0) + slack).all()
    assert (mean >= trained.amin(dim=0) - slack).all()
