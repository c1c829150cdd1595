"""The problem of known constants has them; slopes, prices and speed-ups are right where they can be told by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rate.figures import leading_bound, price, slope, speedup
from benchmarks.rate.problem import Constants, Problem
from benchmarks.rate.run import Run, mean_squared_gradient, step_size

CLIENTS, ZETA, REPLICAS = 4, 5.0, 3
CONSTANTS = Constants(scalars=12, blocks=3, noise=2.0)


def problem(**changes: Any) -> Problem:
    arguments: dict[str, Any] = {
        "heterogeneity": (ZETA,),
        "clients": CLIENTS,
        "replicas": REPLICAS,
        "seed": 0,
    } | changes
    return Problem(CONSTANTS, **arguments)


def points(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(REPLICAS, CONSTANTS.scalars, generator=generator) for _ in range(n)]


# --- the problem ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [None, *range(CLIENTS)])
def test_the_gradient_is_that_of_the_value(client: int | None) -> None:
    made, x = problem(), points(1)[0].requires_grad_()
    (expected,) = torch.autograd.grad(made.value(x, client).sum(), x)
    torch.testing.assert_close(made.gradient(x.detach(), client), expected, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_the_blocks_are_parts_of_the_whole_one() -> None:
    made, x = problem(), points(1)[0]
    parts = [made.block_gradient(x, 1, block) for block in range(CONSTANTS.blocks)]
    torch.testing.assert_close(torch.cat(parts, dim=1), made.gradient(x, 1))


def test_f_is_the_mean_of_its_clients_and_the_same_for_all_of_them() -> None:
    made, x = problem(), points(1)[0]
    mean = torch.stack([made.gradient(x, client) for client in range(CLIENTS)]).mean(0)
    torch.testing.assert_close(mean, made.gradient(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(problem(clients=2, heterogeneity=(0.0,)).gradient(x), made.gradient(x))


def test_no_pair_of_points_breaks_the_smoothness_and_some_come_near_it() -> None:
    made, largest = problem(), 0.0
    for x, step in zip(points(200), points(400)[200:], strict=True):
        near = x + 0.01 * step
        for client in range(CLIENTS):
            ratio = (made.gradient(x, client) - made.gradient(near, client)).norm(dim=1) / (x - near).norm(dim=1)
            largest = max(largest, float(ratio.max()))
    bound = CONSTANTS.client_smoothness(ZETA)
    assert 0.5 * bound < largest <= bound
    assert bound == CONSTANTS.smoothness + ZETA / math.sqrt(12) == pytest.approx(3 + 1.4434, abs=1e-4)


def test_f_is_not_convex() -> None:
    made = problem()
    hessians = [
        torch.autograd.functional.hessian(lambda x: made.value(x.expand(REPLICAS, -1))[0], x[0]) for x in points(30)
    ]
    curvatures = torch.linalg.eigvalsh(torch.stack(hessians))
    assert -0.25 <= curvatures.min() < -0.1  # least lambda less alpha / 2
    assert curvatures.max() <= CONSTANTS.smoothness


def test_clients_differ_by_zeta_at_the_origin_and_nowhere_by_more() -> None:
    made = problem()

    def distance(x: torch.Tensor) -> torch.Tensor:
        apart = torch.stack([made.gradient(x, client) - made.gradient(x) for client in range(CLIENTS)])
        return apart.square().sum(-1).mean(0)

    torch.testing.assert_close(distance(torch.zeros(REPLICAS, 12)), torch.full((REPLICAS,), ZETA**2))
    assert all((distance(x) < ZETA**2).all() for x in points(50))


def test_the_noise_of_all_blocks_together_has_the_variance_sigma_squared() -> None:
    noise = problem().noise(40_000, torch.Generator().manual_seed(0))
    assert noise.shape == (40_000, REPLICAS, 12 // 3)
    assert CONSTANTS.blocks * noise.square().sum(-1).mean() == pytest.approx(CONSTANTS.noise**2, rel=0.02)
    assert noise.mean().abs() < 0.01


def test_an_odd_number_of_clients_is_refused() -> None:
    with pytest.raises(ValueError, match="an even number"):
        problem(clients=3)


# --- the run ----------------------------------------------------------------------------------------------------------


def means(made: Problem, run: Run) -> list[float]:
    return mean_squared_gradient(made, run).flatten().tolist()


def test_without_noise_delay_0_is_block_coordinate_descent_by_hand() -> None:
    made = Problem(Constants(scalars=12, blocks=1, noise=0.0), heterogeneity=(0.0,), clients=2, replicas=2, seed=0)
    eta, x, total = step_size(made, 8, 2), made.start, torch.zeros(2)
    for _ in range(8):
        total += made.gradient(x).square().sum(-1)
        for _ in range(2):
            x = x - eta * made.gradient(x)
    assert means(made, Run(8, 2, 0, seed=3)) == pytest.approx((total / 8).tolist(), rel=1e-4)


def test_parablock_shows_each_commit_one_round_later() -> None:
    """With one block and no noise it is visible by itself: the first two rounds begin at the same W."""
    made = Problem(Constants(scalars=12, blocks=1, noise=0.0), heterogeneity=(0.0,), clients=2, replicas=2, seed=0)
    at_start = made.gradient(made.start).square().sum(-1).tolist()
    assert means(made, Run(2, 2, 2, seed=3)) == pytest.approx(at_start, rel=1e-6)
    assert means(made, Run(2, 2, 0, seed=3)) != pytest.approx(at_start, rel=1e-2)


def test_replicas_go_their_own_way() -> None:
    made, other = problem(), problem()
    other.start[0] += 1.0
    first, second = (means(p, Run(6, 2, 2, seed=5)) for p in (made, other))
    assert first[0] != second[0]
    assert first[1:] == pytest.approx(second[1:], rel=1e-6)


def test_each_zeta_goes_its_own_way() -> None:
    run = Run(6, 2, 2, seed=5)
    both = mean_squared_gradient(problem(heterogeneity=(0.0, ZETA)), run)
    alone = [mean_squared_gradient(problem(heterogeneity=(zeta,)), run)[0] for zeta in (0.0, ZETA)]
    torch.testing.assert_close(both, torch.stack(alone), rtol=1e-6, atol=0.0)
    assert not torch.allclose(both[0], both[1], rtol=1e-3)


# --- the figures ------------------------------------------------------------------------------------------------------

ROUNDS = [32, 64, 128, 256]


def row(power: float, scale: float = 1.0, noise: float = 0.0, clients: int = 2) -> dict[str, object]:
    spread = 1 + noise * np.random.default_rng(0).standard_normal((len(ROUNDS), 20))
    values = (scale * np.asarray(ROUNDS, dtype=float)[:, None] ** power * spread).tolist()
    return {"clients": clients, "local_steps": 2, "rounds": ROUNDS, "mean_squared_gradient": values}


def test_the_slope_of_a_power_law_is_its_power() -> None:
    found = slope(row(-0.5), at_least_rounds=64)
    assert found["slope"] == pytest.approx(-0.5)
    assert found["interval"] == pytest.approx([-0.5, -0.5])
    assert found["rounds"] == [64, 128, 256]


def test_the_slope_leaves_short_runs_out() -> None:
    bent = row(-0.5)
    bent["mean_squared_gradient"][0] = [100.0] * 20  # type: ignore[index]
    assert slope(bent, at_least_rounds=64)["slope"] == pytest.approx(-0.5)
    assert slope(bent, at_least_rounds=32)["slope"] < -1


def test_the_interval_of_a_slope_holds_it_and_grows_with_the_noise() -> None:
    def width(noise: float) -> float:
        found = slope(row(-0.5, noise=noise), at_least_rounds=32)
        low, high = found["interval"]
        assert low < found["slope"] < high
        return high - low

    assert 5 < width(0.1) / width(0.01) < 20


def test_one_length_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two numbers of rounds of 256 or more"):
        slope(row(-0.5), at_least_rounds=256)


def test_the_price_is_the_ratio_at_each_length() -> None:
    found = price(row(-0.5, scale=3.0, noise=0.1), row(-0.5, scale=2.0, noise=0.1))
    assert [point["ratio"] for point in found] == pytest.approx([1.5] * 4)
    assert found[0]["interval"] == pytest.approx([1.5, 1.5])  # the same noise: pairs are drawn together


def test_a_mean_half_as_large_stands_for_four_times_fewer_rounds() -> None:
    assert speedup(row(-0.5, scale=1.0), row(-0.5, scale=2.0))["speedup"] == pytest.approx(4.0)


def test_the_bound_falls_with_the_root_of_all_steps_of_all_clients() -> None:
    constants = {"blocks": 4, "start_value": 10.0, "smoothness": 3.0, "noise": 4.0}
    bound = leading_bound(row(-0.5, clients=2), constants)
    assert bound[0] == pytest.approx((2 * 4 * 10 * 3 + 16) / math.sqrt(2 * 2 * 32))
    assert bound[0] / bound[2] == pytest.approx(2.0)
