"""What must hold of a codec for any numbers: cuts change nothing, errors are bounded, and feedback loses nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.settings import BF16, Compression, Int4, Int8, Sparse, TopK
from tests.oracle_codecs import arrives
from tests.support.payloads import EVERY_COMPRESSION, arriving, decoded, encoded, oracle_words

LARGEST = {Int8: 127, Int4: 7}
EACH_COMPRESSION = pytest.mark.parametrize("compression", EVERY_COMPRESSION, ids=repr)
LOSSY = pytest.mark.parametrize("compression", [c for c in EVERY_COMPRESSION if c.is_lossy], ids=repr)
EXAMPLES = settings(max_examples=60, derandomize=True, deadline=None, database=None)
TOP_EXPONENT = 127  # of float32
SMALLEST_STEP = 2.0**-126


@st.composite
def vectors(draw: st.DrawFn, *, most_scalars: int = 4500, exponents: tuple[int, int] = (-149, TOP_EXPONENT)) -> Tensor:
    """Finite values of one magnitude or of many, some of them zero."""
    scalars = draw(st.integers(1, most_scalars))
    low, high = sorted(draw(st.tuples(st.integers(*exponents), st.integers(*exponents))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    powers = low + (high - low) * torch.rand(scalars, generator=generator, dtype=torch.float64)
    values = (torch.randn(scalars, generator=generator).clamp(-1.9, 1.9) * 2.0**powers).float()
    return values * (torch.rand(scalars, generator=generator) >= draw(st.sampled_from([0.0, 0.5, 0.95])))


def in_groups(values: Tensor, group: int) -> Tensor:
    """Whole groups, shape (groups, group), in float64."""
    return torch.nn.functional.pad(values.double(), (0, -values.numel() % group)).view(-1, group)


@EACH_COMPRESSION
@EXAMPLES
@given(values=vectors())
def test_the_bits_are_the_oracles(compression: Compression, values: Tensor) -> None:
    assert torch.equal(arriving(codec_of(compression), values), arrives(values=values, **oracle_words(compression)))


@EACH_COMPRESSION
@EXAMPLES
@given(values=vectors(), cuts=st.lists(st.integers(0, 4), max_size=4))
def test_cuts_at_multiples_of_1024_change_no_byte(compression: Compression, values: Tensor, cuts: list[int]) -> None:
    codec = codec_of(compression)
    bounds = sorted({0, values.numel(), *(1024 * cut for cut in cuts if 1024 * cut < values.numel())})
    parts = [values[start:stop] for start, stop in pairwise(bounds)]
    payloads = [encoded(codec, part) for part in parts]
    whole = encoded(codec, values)
    assert torch.equal(whole, torch.cat(payloads))
    arrived = [decoded(codec, payload, part.numel()) for payload, part in zip(payloads, parts, strict=True)]
    assert torch.equal(decoded(codec, whole, values.numel()), torch.cat(arrived))
    assert whole.numel() == codec.payload_bytes(values.numel()) == sum(codec.payload_bytes(p.numel()) for p in parts)


@pytest.mark.parametrize("compression", [Int8(), Int8(4), Int8(1024), Int4(), Int4(4), Int4(1024)], ids=repr)
@EXAMPLES
@given(values=vectors())
def test_whole_steps_are_off_by_half_a_step_at_most(compression: Int8 | Int4, values: Tensor) -> None:
    arrived = in_groups(arriving(codec_of(compression), values), compression.group)
    exact = in_groups(values, compression.group)
    largest = LARGEST[type(compression)]
    step = (exact.abs().amax(1, keepdim=True) / largest).clamp(min=SMALLEST_STEP)
    stored = step.float().bfloat16().double()
    assert ((stored - step).abs() <= step * 2.0**-8).all()
    # The quotient is rounded once to 24 bits before it is rounded to a whole number.
    assert ((arrived - exact).abs() <= stored / 2 + exact.abs() * 2.0**-24).all()
    numbers = arrived / stored
    assert torch.equal(numbers, numbers.round()) and (numbers.abs() <= largest).all()


@EXAMPLES
@given(values=vectors(exponents=(-120, TOP_EXPONENT - 1)))
def test_bfloat16_is_off_by_a_256th_at_most(values: Tensor) -> None:
    arrived = arriving(codec_of(BF16()), values).double()
    assert ((arrived - values.double()).abs() <= values.double().abs() * 2.0**-8).all()


@EXAMPLES
@given(values=vectors(exponents=(-120, TOP_EXPONENT - 1)), kept=st.integers(1, 1024))
def test_top_k_sends_no_more_than_k_and_nothing_smaller_than_what_it_leaves_out(values: Tensor, kept: int) -> None:
    arrived = in_groups(arriving(codec_of(TopK(kept / 1024)), values), 1024)
    rounded = in_groups(values.bfloat16().float(), 1024)
    sent = arrived != 0
    assert torch.equal(sent.sum(1), (rounded != 0).sum(1).clamp(max=kept))
    assert torch.equal(arrived[sent], rounded[sent])
    smallest_sent = torch.where(sent, rounded.abs(), torch.inf).amin(1)
    assert (torch.where(sent, 0.0, rounded.abs()).amax(1) <= smallest_sent).all()


@EACH_COMPRESSION
@EXAMPLES
@given(values=vectors(exponents=(-30, 30)), data=st.data())
def test_what_is_not_finite_is_still_not_finite(compression: Compression, values: Tensor, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, values.numel() - 1))
    values[place] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    assert not arriving(codec_of(compression), values).isfinite().all()


@LOSSY
@EXAMPLES
@given(
    deltas=st.lists(st.integers(0, 2**32), min_size=1, max_size=12),
    scalars=st.integers(1, 2500),
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=5),
)
def test_sent_and_residual_are_the_sum_of_the_deltas(
    compression: Compression, deltas: list[int], scalars: int, exponents: list[int]
) -> None:
    codec, residual = codec_of(compression), torch.zeros(scalars)
    total, sent, rounding = (torch.zeros(scalars, dtype=torch.float64) for _ in range(3))
    for visit, seed in enumerate(deltas):
        delta = torch.randn(scalars, generator=torch.Generator().manual_seed(seed))
        delta *= 2.0 ** exponents[visit % len(exponents)]
        wanted = delta + residual
        arrived = arriving(codec, wanted)
        residual = wanted - arrived
        total += delta.double()
        sent += arrived.double()
        rounding += 2.0**-24 * (wanted.double().abs() + residual.double().abs())  # of one addition, one subtraction
    assert ((sent + residual.double() - total).abs() <= rounding * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("compression", "share"),
    [(BF16(), 2**-8), (Int8(), 1 / 254), (Int8(4), 1 / 254), (Int4(), 1 / 14), (Int4(1024), 1 / 14)],
    ids=repr,
)
@EXAMPLES
@given(seed=st.integers(0, 2**32), scalars=st.integers(1, 2500))
def test_the_residual_does_not_grow(compression: Compression, share: float, seed: int, scalars: int) -> None:
    """An error of a share p of the largest value at most gives e <= p (1 + e), so e <= p / (1 - p), for ever."""
    codec, residual = codec_of(compression), torch.zeros(scalars)
    delta = torch.randn(scalars, generator=torch.Generator().manual_seed(seed))
    share *= 1 + 2**-7  # a step is rounded to bfloat16
    for _ in range(40):
        wanted = delta + residual
        residual = wanted - arriving(codec, wanted)
        assert float(residual.abs().max()) <= share / (1 - share) * float(delta.abs().max())


@EXAMPLES
@given(values=vectors(exponents=(-40, 40)), kept=st.integers(1, 1024))
def test_top_k_leaves_out_less_than_its_share_of_the_squares(values: Tensor, kept: int) -> None:
    """|u - Q(u)|^2 <= (1 - k / n) |u|^2 (arXiv 1809.07599), up to the rounding to bfloat16."""
    arrived = in_groups(arriving(codec_of(TopK(kept / 1024)), values), 1024)
    exact = in_groups(values, 1024)
    compared_rounded = ((1 + 2**-8) / (1 - 2**-8)) ** 2
    bound = ((1 - kept / 1024) * compared_rounded + 2**-16) * (exact**2).sum(1)
    assert (((arrived - exact) ** 2).sum(1) <= bound * (1 + 1e-9)).all()


@EXAMPLES
@given(values=vectors(exponents=(-40, 40)), group=st.sampled_from([16, 32, 64]))
def test_sparse_sends_one_of_each_group_and_takes_its_square_off_the_error(values: Tensor, group: int) -> None:
    """Levels are means, so what is sent is orthogonal to its error: |u - Q(u)|^2 = |u|^2 - |Q(u)|^2, to rounding."""
    arrived = in_groups(arriving(codec_of(Sparse(group)), values), 1024)
    exact = in_groups(values, 1024)
    assert ((arrived != 0).view(len(exact), group, -1).sum(1) <= 1).all()
    assert (arrived.view(len(exact), group, -1) * exact.view(len(exact), group, -1) >= 0).all()
    left, sent, whole = (((one) ** 2).sum(1) for one in (arrived - exact, arrived, exact))
    rounding = 2.0**-6 * sent + 1024 * (exact.abs().amax(1) * 2.0**-16) ** 2
    assert ((left - (whole - sent)).abs() <= rounding).all()
    assert (sent >= exact.abs().amax(1) ** 2 / 4 * (1 - 2.0**-6)).all()
