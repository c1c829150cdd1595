"""Scales, steps and integers, against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_parablock.errors import ConfigurationError, NonFiniteError, SecureSumError
from lightning_parablock.masking.logarithms import UNITS, half_logarithms, table
from lightning_parablock.masking.quantize import dequantize, quantize
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.scales import LEAST_LOG, MOST_LOG, log_scales, n_records, steps
from tests.masking import oracle


def values(scalars: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Values whose records have very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(n_records(scalars), generator=generator)).repeat_interleave(1024)[:scalars]
    return torch.randn(scalars, generator=generator) * sizes


@pytest.mark.parametrize("scalars", [1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e-38, 1e37])
def test_log_scales_are_those_of_exact_arithmetic(scalars: int, size: float) -> None:
    u = values(scalars, seed=scalars, spread=1.0) * size
    assert log_scales([u]).tolist() == oracle.log_scales(u.numpy())


def test_a_quiet_record_counts_as_a_sixteenth_of_its_block() -> None:
    u = torch.zeros(3 * 1024)
    u[:1024] = 8.0
    logs = log_scales([u]).tolist()
    assert logs[0] == 3 * UNITS
    assert logs[1] == logs[2] == round(math.log2(8.0 / math.sqrt(3) / 16) * UNITS)


def test_zeros_and_the_largest_numbers_stay_in_bounds() -> None:
    assert log_scales([torch.zeros(1500)]).tolist() == [LEAST_LOG, LEAST_LOG]
    largest = torch.full((1024,), torch.finfo(torch.float32).max)
    assert log_scales([largest]).tolist() == [MOST_LOG]
    assert 256 * MOST_LOG < 1 << 31 and 256 * LEAST_LOG >= -(1 << 31)
    assert log_scales([torch.zeros(0)]).numel() == 0


def test_log_scales_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    u = values(40_000)
    expected = log_scales([u])
    for piece in (1024, 3 * 1024, 17 * 1024):
        assert torch.equal(log_scales(u.split(piece)), expected)
        monkeypatch.setattr("lightning_parablock.masking.scales.PIECE_SCALARS", piece)
        assert torch.equal(log_scales([u]), expected)


def test_a_record_is_summed_as_described() -> None:
    u = values(1024, seed=5, spread=0.0)
    squares = [float(v) ** 2 for v in u]
    while len(squares) > 1:
        half = len(squares) // 2
        squares = [squares[k] + squares[k + half] for k in range(half)]
    assert log_scales([u]).item() == half_logarithms(np.array([squares[0] / 1024])).item()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    u = values(3000)
    u[2500] = bad
    with pytest.raises(NonFiniteError):
        log_scales([u])
    with pytest.raises(NonFiniteError):
        quantize(u, torch.ones(3), 7, torch.empty(3000, dtype=torch.int8))


def test_the_table_has_the_nearest_doubles_at_every_place_that_is_known() -> None:
    assert table()[0] == 1.0 and table()[UNITS // 2] == math.sqrt(2) and table()[UNITS // 4] == 2**0.25
    assert bool((table()[1:] > table()[:-1]).all())
    assert float(abs(table() - np.exp2(np.arange(UNITS) / UNITS)).max()) <= 4.5e-16


def test_logarithms_change_where_they_round() -> None:
    for k in (0, 1, 4711, 32767):
        edge = table()[2 * k + 1]
        below, above = half_logarithms(np.array([np.nextafter(edge, 0), edge])).tolist()
        assert (below, above) == (k, k + 1)


@pytest.mark.parametrize(("width", "n_clients"), [(1, 2), (1, 16), (2, 3), (2, 256)])
def test_steps_are_those_of_exact_arithmetic(width: int, n_clients: int) -> None:
    limit = Ring(width).limit(n_clients)
    logs = torch.tensor([0, 1, -7, 123_457, LEAST_LOG * n_clients, MOST_LOG * n_clients, 3 * n_clients * UNITS + 1])
    found = steps(logs.to(torch.int32), n_clients, limit, width)
    assert found.dtype == torch.float32
    assert [Fraction(f) for f in found.tolist()] == [oracle.step(s, n_clients, limit, width) for s in logs.tolist()]


def test_the_mean_of_two_clients_is_rounded_half_up() -> None:
    below = 2 * torch.arange(UNITS, dtype=torch.int32)
    halves, above = steps(below + 1, 2, 63, 1), steps(below + 2, 2, 63, 1)
    assert torch.equal(halves, above)
    assert not torch.equal(halves, steps(below, 2, 63, 1))


@pytest.mark.parametrize("mean", [LEAST_LOG - 1, MOST_LOG + 1])
def test_scales_that_no_values_have_are_refused(mean: int) -> None:
    with pytest.raises(SecureSumError, match="no values have"):
        steps(torch.tensor([0, 3 * mean], dtype=torch.int32), 3, 42, 1)


@pytest.mark.parametrize(("width", "n_clients", "limit"), [(1, 2, 63), (1, 16, 7), (2, 2, 16383), (2, 256, 127)])
def test_limits(width: int, n_clients: int, limit: int) -> None:
    assert Ring(width).limit(n_clients) == limit
    assert n_clients * limit <= 2 ** (8 * width - 1) - 1 < n_clients * (limit + 1)


@pytest.mark.parametrize(("width", "n_clients"), [(1, 17), (2, 257), (1, 0)])
def test_too_many_clients_are_refused(width: int, n_clients: int) -> None:
    with pytest.raises(ConfigurationError, match=r"sums at most (16|256) clients"):
        Ring(width).limit(n_clients)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="1, 2 or 4 bytes, not 3"):
        Ring(3)


@pytest.mark.parametrize(("width", "n_clients"), [(1, 3), (1, 16), (2, 3), (2, 256)])
@pytest.mark.parametrize("scalars", [1, 1024, 4500])
def test_integers_and_residuals_are_those_of_exact_arithmetic(width: int, n_clients: int, scalars: int) -> None:
    ring = Ring(width)
    limit = ring.limit(n_clients)
    u = values(scalars, seed=3, spread=0.5)
    u[::97] *= 1000.0  # saturated
    size = steps(log_scales([values(scalars, seed=3, spread=0.5)]) * n_clients, n_clients, limit, width)
    u[::7] = (torch.round(u[::7]) + 0.5) * size.repeat_interleave(1024)[:scalars][::7]  # halves
    wanted = [Fraction(v) for v in u.tolist()]
    sizes = [Fraction(size[k // 1024].item()) for k in range(scalars)]
    expected = [oracle.quantized(v, s, limit) for v, s in zip(wanted, sizes, strict=True)]
    into = torch.empty(scalars, dtype=ring.dtype)
    clamped = quantize(u, size, limit, into)
    assert into.tolist() == expected
    assert clamped == sum(abs(round(v / s)) > limit for v, s in zip(wanted, sizes, strict=True))
    assert clamped > 0 or scalars == 1
    residuals = [v - c * s for v, c, s in zip(wanted, expected, sizes, strict=True)]
    inner = [abs(c) < limit for c in expected]
    assert [Fraction(e) for e, i in zip(u.tolist(), inner, strict=True) if i] == [
        e for e, i in zip(residuals, inner, strict=True) if i
    ], "where nothing is clamped, the residual is exact"
    assert u.tolist() == [float(np.float32(float(e))) for e in residuals], "elsewhere it is rounded once"


def test_values_far_above_their_step_are_clamped() -> None:
    u, into = torch.tensor([1e38, -1e38, 0.0]), torch.empty(3, dtype=torch.int8)
    step = steps(torch.tensor([3 * LEAST_LOG], dtype=torch.int32), 3, 42, 1)
    assert quantize(u, step, 42, into) == 2
    assert into.tolist() == [42, -42, 0] and u.tolist() == torch.tensor([1e38, -1e38, 0.0]).tolist()


def test_no_cut_changes_an_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    u, size = values(9 * 1024 + 5), torch.rand(10).bfloat16().float() + 0.1
    whole, into = u.clone(), torch.empty(u.numel(), dtype=torch.int16)
    clamped = quantize(whole, size, 127, into)
    parts, pieces = u.clone(), torch.empty_like(into)
    monkeypatch.setattr("lightning_parablock.masking.quantize.PIECE_SCALARS", 2048)
    counted = 0
    for first, stop in ((0, 3), (3, 4), (4, 9), (9, 10)):
        part = slice(first * 1024, min(stop * 1024, u.numel()))
        counted += quantize(parts[part], size[first:stop], 127, pieces[part])
    assert torch.equal(parts, whole) and torch.equal(pieces, into) and counted == clamped > 0


@pytest.mark.parametrize("width", [1, 2])
def test_sums_become_values_exactly(width: int) -> None:
    largest = 2 ** (8 * width - 1) - 1
    sums = torch.randint(-largest, largest + 1, (3000,), dtype=Ring(width).dtype)
    size = steps(torch.tensor([100, 777_777, -3_000_001], dtype=torch.int32), 3, 42, width)
    found = dequantize(sums, size, torch.empty(3000))
    exact = [s * Fraction(size[k // 1024].item()) for k, s in enumerate(sums.tolist())]
    assert [Fraction(v) for v in found.tolist()] == exact
