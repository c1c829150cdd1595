"""Codecs: the bits of the oracle's, the bytes that were promised, and nothing lost in silence."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.records import PIECE_SCALARS
from lightning_parablock.settings import BF16, COMPRESSIONS, Compression, Int4, Int8, NoCompression, Sparse, TopK
from tests.oracle_codecs import arrives
from tests.support.payloads import EVERY_COMPRESSION, arriving, decoded, encoded, oracle_words

EACH_COMPRESSION = pytest.mark.parametrize("compression", EVERY_COMPRESSION, ids=repr)
LOSSY = pytest.mark.parametrize("compression", [c for c in EVERY_COMPRESSION if c.is_lossy], ids=repr)
INTEGERS = pytest.mark.parametrize(
    "compression", [c for c in EVERY_COMPRESSION if isinstance(c, (Int8, Int4))], ids=repr
)
LARGEST_FLOAT = torch.finfo(torch.float32).max
SMALLEST_FLOAT = 2.0**-149
WIDTHS = [1, 2, 63, 64, 65, 255, 257, 1023, 1024, 1025, 2048, 3333]


def random_values(scalars: int, *, seed: int = 0) -> Tensor:
    return torch.randn(scalars, generator=torch.Generator().manual_seed(seed))


def wild_values(scalars: int) -> Tensor:
    """From the smallest to the largest number within one vector, zeros among them."""
    generator = torch.Generator().manual_seed(1)
    exponents = torch.rand(scalars, generator=generator, dtype=torch.float64) * 276 - 149
    values = (2.0**exponents * random_values(scalars).sign()).clamp(-LARGEST_FLOAT, LARGEST_FLOAT).float()
    return values * (torch.rand(scalars, generator=generator) > 0.2)


INPUTS = {
    "random": random_values,
    "small": lambda scalars: random_values(scalars) * 1e-6,
    "denormal": lambda scalars: random_values(scalars) * 1e-39,
    "below the smallest step": lambda scalars: random_values(scalars) * 2.0**-140,
    "huge": lambda scalars: random_values(scalars).clamp(-3, 3) * 1e38,
    "the largest": lambda scalars: torch.full((scalars,), LARGEST_FLOAT) * random_values(scalars).sign(),
    "zeros": torch.zeros,
    "equal magnitudes": lambda scalars: random_values(scalars).sign() * 1e-4,
    "halfway": lambda scalars: (torch.arange(scalars) % 255 - 127) / 2,
    "wild": wild_values,
}


@EACH_COMPRESSION
@pytest.mark.parametrize("kind", INPUTS)
def test_the_bits_are_the_oracles(compression: Compression, kind: str) -> None:
    codec = codec_of(compression)
    for scalars in WIDTHS:
        values = INPUTS[kind](scalars)
        expected = arrives(values=values, **oracle_words(compression))
        assert torch.equal(arriving(codec, values), expected), scalars


@EACH_COMPRESSION
def test_a_part_of_several_pieces_is_the_pieces_one_after_the_other(compression: Compression) -> None:
    codec, values = codec_of(compression), random_values(2 * PIECE_SCALARS + 1500)
    pieces = [encoded(codec_of(compression), piece) for piece in values.split(PIECE_SCALARS)]
    assert torch.equal(encoded(codec, values), torch.cat(pieces))
    arrived = [
        decoded(codec_of(compression), p, len(v)) for p, v in zip(pieces, values.split(PIECE_SCALARS), strict=True)
    ]
    assert torch.equal(arriving(codec, values), torch.cat(arrived))


@EACH_COMPRESSION
def test_scratch_keeps_nothing_of_what_was_before(compression: Compression) -> None:
    used = codec_of(compression)
    for scalars in (3333, 5, 1024, 70, 9000, 1):
        values = random_values(scalars, seed=scalars)
        assert torch.equal(encoded(used, values), encoded(codec_of(compression), values))
        assert torch.equal(arriving(used, values), arriving(codec_of(compression), values))


@pytest.mark.parametrize(
    ("compression", "scalars", "length"),
    [
        (NoCompression(), 1, 4),
        (NoCompression(), 1025, 4100),
        (BF16(), 3, 6),
        (Int8(), 1, 258),
        (Int8(), 256, 258),
        (Int8(), 257, 516),
        (Int8(), 1 << 20, (1 << 20) + (1 << 13)),
        (Int8(1024), 1025, 2 * 1026),
        (Int4(), 1, 34),
        (Int4(), 64, 34),
        (Int4(), 65, 68),
        (Int4(), 1 << 20, (1 << 19) + (1 << 15)),
        (Int4(4), 1024, 1024),
        (TopK(), 1, 256),
        (TopK(), 1024, 256),
        (TopK(), 1025, 512),
        (TopK(1.0), 1024, 4096),
        (TopK(1e-6), 1 << 20, 4096),
        (TopK(0.001), 1024, 4),
        (TopK(0.0015), 1024, 8),
        (Sparse(), 1, 32),
        (Sparse(), 1024, 32),
        (Sparse(), 1025, 64),
        (Sparse(16), 1024, 52),
        (Sparse(64), 1 << 20, 20 << 10),
    ],
)
def test_payload_bytes(compression: Compression, scalars: int, length: int) -> None:
    assert codec_of(compression).payload_bytes(scalars) == length
    assert encoded(codec_of(compression), random_values(scalars)).shape == (length,)


@pytest.mark.parametrize(
    ("name", "times"), [("none", 1.0), ("bf16", 2.0), ("int8", 3.96), ("int4", 7.5), ("topk", 16.0), ("sparse", 128.0)]
)
def test_times_fewer_bytes_than_float32(name: str, times: float) -> None:
    scalars = 10_000_001
    assert 4 * scalars / codec_of(COMPRESSIONS[name]()).payload_bytes(scalars) >= times * (1 - 1e-4)


def test_without_compression_every_bit_arrives() -> None:
    values = torch.cat([wild_values(1000), torch.tensor([float("nan"), float("inf"), -0.0])])
    arrived = arriving(codec_of(NoCompression()), values)
    assert torch.equal(arrived.view(torch.int32), values.view(torch.int32))


def test_bfloat16_rounds_half_to_even() -> None:
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8])
    assert arriving(codec_of(BF16()), values).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0]


@pytest.mark.parametrize(("compression", "largest"), [(Int8(), 127), (Int4(), 7)])
def test_whole_numbers_of_steps_round_half_to_even(compression: Compression, largest: int) -> None:
    values = torch.tensor([largest, 0.5, 1.5, 2.5, -0.5, -1.5, 2.75, -largest])
    assert arriving(codec_of(compression), values).tolist() == [largest, 0, 2, 2, 0, -2, 3, -largest]


@INTEGERS
def test_every_number_of_steps_arrives_as_it_is(compression: Compression) -> None:
    largest = 127 if isinstance(compression, Int8) else 7
    values = torch.arange(-largest, largest + 1).repeat(4096).float() * 2.0**-5
    values[:: compression.group] = largest * 2.0**-5  # type: ignore[attr-defined]
    assert torch.equal(arriving(codec_of(compression), values), values)


@EACH_COMPRESSION
def test_zeros_arrive_as_zeros_beside_other_groups(compression: Compression) -> None:
    values = random_values(4096)
    values[1024:2048] = 0
    arrived = arriving(codec_of(compression), values)
    assert not arrived[1024:2048].any()
    assert arrived[:1024].any() and arrived[2048:].any()
    assert not arriving(codec_of(compression), torch.zeros(3000)).any()


@EACH_COMPRESSION
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(compression: Compression, bad: float) -> None:
    for scalars, place in ((1, 0), (70, 69), (1024, 500), (5000, 4999), (5000, 3000)):
        values = random_values(scalars)
        values[place] = bad
        arrived = arriving(codec_of(compression), values)
        record = slice(place - place % 1024, place - place % 1024 + 1024)
        assert not arrived[record].isfinite().all()
        elsewhere = torch.cat([arrived[: record.start], arrived[record.stop :]])
        assert elsewhere.isfinite().all()


@INTEGERS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_group_with_one_that_is_not_finite_is_nan_as_a_whole(compression: Compression, bad: float) -> None:
    values = random_values(3000)
    values[1500] = bad
    arrived, expected = arriving(codec_of(compression), values), arrives(values=values, **oracle_words(compression))
    assert torch.equal(arrived.isnan(), expected.isnan())
    assert torch.equal(arrived.nan_to_num(), expected.nan_to_num())
    assert int(arrived.isnan().sum()) == min(compression.group, 3000 - 1024)  # type: ignore[attr-defined]


def test_top_k_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    values = torch.full((1024,), 1e-3)
    values[[7, 700, 1023]] = torch.tensor([-5.0, 3.0, 4.0])
    arrived = arriving(codec_of(TopK(5 / 1024)), values)
    assert arrived.nonzero().flatten().tolist() == [0, 1, 7, 700, 1023]
    assert torch.equal(arrived[[7, 700, 1023]], values[[7, 700, 1023]])


def test_top_k_of_each_1024_and_no_padding_in_a_short_end() -> None:
    values = -random_values(1024 + 10).abs() - 1
    values[:1024] *= 1000
    arrived = arriving(codec_of(TopK(20 / 1024)), values)
    assert int((arrived[:1024] != 0).sum()) == 20
    assert torch.equal(arrived[1024:], values[1024:].bfloat16().float())


def test_sparse_sends_the_largest_of_each_group_and_of_equal_ones_the_first() -> None:
    values = torch.full((1024,), 1e-3)
    values[0::32], values[1::32] = 2.0, -2.0
    values[[33, 1023]] = torch.tensor([-5.0, 2.5])
    arrived = arriving(codec_of(Sparse()), values)
    places = [*range(32)]
    places[1], places[31] = 33, 1023
    assert arrived.nonzero().flatten().tolist() == sorted(places)
    assert arrived[33] == -5, "it alone is above the middle of 0.001 and 5"


def test_sparse_rounds_each_half_of_the_range_to_its_mean() -> None:
    values = torch.zeros(1024)
    values[:32] = torch.tensor([1.0] * 15 + [2.0] * 15 + [4.0, -8.0])  # the middle of the range is 4.5
    arrived = arriving(codec_of(Sparse()), values)
    low = torch.tensor(49 / 31).bfloat16().float()
    assert torch.equal(arrived[:31], low.expand(31))
    assert arrived[31] == -8


@pytest.mark.parametrize("group", [16, 32, 64])
def test_sparse_sends_nothing_for_a_group_of_zeros(group: int) -> None:
    values = torch.zeros(1024)
    values[[5, 6, 7]] = torch.tensor([4.0, -3.0, 1.0])
    arrived = arriving(codec_of(Sparse(group)), values)
    assert arrived.nonzero().flatten().tolist() == [5, 6], "1 is below the middle of 0 and 4, and sent later"
    assert arrived[[5, 6]].tolist() == [3.5, -3.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scalars", [3, 1024, 1500])
def test_sparse_makes_all_that_it_sends_of_a_record_with_one_that_is_not_finite_nan(bad: float, scalars: int) -> None:
    values = random_values(scalars)
    values[2] = bad
    arrived, expected = arriving(codec_of(Sparse()), values), arrives("sparse", values)
    assert torch.equal(arrived.isnan(), expected.isnan()) and arrived[2].isnan()
    assert torch.equal(arrived.nan_to_num(), expected.nan_to_num())


@LOSSY
def test_a_lossy_compression_loses_something(compression: Compression) -> None:
    values = random_values(4096)
    assert not torch.equal(arriving(codec_of(compression), values), values)
    assert not NoCompression().is_lossy


@pytest.mark.parametrize("compression", [c for c in EVERY_COMPRESSION if c != TopK(1.0)], ids=repr)
def test_no_memory_of_a_parts_size_is_taken_once_warm(compression: Compression) -> None:
    scalars = 64 * 1024 + 100
    codec, values, into = codec_of(compression), random_values(scalars), torch.empty(scalars)
    payload = torch.empty(codec.payload_bytes(scalars), dtype=torch.uint8)
    codec.encode(values, payload)
    codec.decode(payload, into)

    def largest_taken(act: Any) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            act()
        return max(event.self_cpu_memory_usage for event in profile.events())

    assert largest_taken(lambda: torch.empty(scalars)) == 4 * scalars  # the measure works
    assert largest_taken(lambda: codec.encode(values, payload)) <= 2 * scalars
    assert largest_taken(lambda: codec.decode(payload, into)) <= 2 * scalars


def test_codecs_of_several_threads_do_not_meet() -> None:
    values = [random_values(50_000, seed=seed) for seed in range(4)]
    expected = [arriving(codec_of(Int4()), each) for each in values]
    right = [True] * 4

    def work(index: int) -> None:
        codec = codec_of(Int4())
        for _ in range(20):
            right[index] &= torch.equal(arriving(codec, values[index]), expected[index])

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads) and all(right)


def test_every_name_has_a_codec_and_nothing_else() -> None:
    for make in COMPRESSIONS.values():
        assert codec_of(make().of_values).payload_bytes(1) > 0
    with pytest.raises(TypeError, match="no codec"):
        codec_of(Compression())
