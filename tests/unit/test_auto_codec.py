"""``compression="auto"``: what plans and clients choose, from what they measure, and what a checkpoint tells of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.client_states import saved_compression
from lightning_parablock.codecs.compression import AUTO_CODECS
from lightning_parablock.errors import CheckpointError
from lightning_parablock.planning.choice import HEADROOM
from lightning_parablock.planning.compute import relative_step_costs
from lightning_parablock.planning.memory import ModelSize, memory_parts, total_bytes
from lightning_parablock.planning.timing import exchange_s, following_blocks, links_of
from lightning_parablock.planning.traffic import Deltas
from lightning_parablock.planning.variants import Workload, recommended, variants
from lightning_parablock.settings import COMPRESSIONS, MAX_AUTO_STEPS, Int8, Settings, Sparse, TopK
from lightning_parablock.strategy.auto_steps import MIN_AUTO_STEPS, Measured, StepClock, agree_on_pending
from lightning_parablock.transport.link_probe import LinkSample


@given(
    numels=st.lists(st.integers(256, 50_000), min_size=1, max_size=5),
    step_s=st.floats(1e-3, 1.0),
    exchange_bps=st.floats(1e4, 1e8),
    n_ranks=st.integers(2, 4),
    order=st.sampled_from(["sequential", "reverse", "shuffle", "random"]),
    topology=st.sampled_from(["sharded", "star"]),
    asked=st.one_of(st.none(), st.integers(2, 300)),
)
def test_the_clients_agree_on_what_a_plan_recommends(
    numels: list[int], step_s: float, exchange_bps: float, n_ranks: int, order: Any, topology: Any, asked: int | None
) -> None:
    """And both are right, by the definition: with less loss some exchange would not be hidden."""
    sizes = {f"p{i}": numel for i, numel in enumerate(numels)}
    blocks = [Block(name, (name,), numel) for name, numel in sizes.items()]
    costs = relative_step_costs(sizes, blocks)
    steps_s = [step_s * cost / costs[0] for cost in costs]
    sample = LinkSample(1000, 8000 / exchange_bps)
    links = links_of(sample.pair_bytes, sample.elapsed_s, n_ranks, topology)
    given_k = asked or MIN_AUTO_STEPS
    options: dict[str, Any] = {"block_order": order, "topology": topology}
    work = Workload(ModelSize(tuple(numels), 4 * sum(numels)), tuple(steps_s))
    planned = variants(lambda s: (work, s), n_ranks, Settings(local_steps=given_k, **options), links)
    chosen = recommended([v for v in planned if v.settings.topology == topology])

    settings: Any = Settings(local_steps=asked or "auto", compression="auto", **options)  # type: ignore[arg-type]
    deltas = [Deltas(1, n_ranks - 1)] * n_ranks
    settled = agree_on_pending(sizes, blocks, settings, Measured(0, step_s, step_s, MIN_AUTO_STEPS, deltas, sample))
    assert settled.compression == chosen.settings.compression
    assert settled.local_steps == (asked or chosen.choice.local_steps)
    assert not settled.pending

    def hides(codec: Any, k: int) -> bool:
        wanted_s = [HEADROOM * exchange_s(n, n_ranks, settled_with(codec), links) for n in numels]
        return all(k * steps_s[after] >= wanted_s[before] for before, after in following_blocks(order, len(numels)))

    def settled_with(codec: Any) -> Settings:
        return settings.agreed(local_steps=given_k, compression=codec)

    hidden = [codec for codec in AUTO_CODECS if hides(codec, given_k)]
    assert settled.compression == (hidden[0] if hidden else AUTO_CODECS[-1])
    if asked is None and not hidden:
        assert hides(settled.compression, settled.local_steps) or settled.local_steps == MAX_AUTO_STEPS
        assert not hides(settled.compression, settled.local_steps - 1)


def test_memory_is_that_of_the_codec_that_takes_the_most() -> None:
    for n_ranks, topology in ((2, "sharded"), (40, "star")):
        model, options = ModelSize((5000, 3000), 32_000), {"topology": topology, "delay_warmup_rounds": 1}
        auto = memory_parts(model, n_ranks, Settings(compression="auto", **options))  # type: ignore[arg-type]
        each = [memory_parts(model, n_ranks, Settings(compression=codec, **options)) for codec in AUTO_CODECS]
        assert total_bytes(auto, on_device=True) == total_bytes(each[0], on_device=True)
        assert total_bytes(auto, on_device=False) == max(total_bytes(one, on_device=False) for one in each)


@pytest.mark.parametrize(
    ("ticks_s", "shortest_s"), [([1.0, 4.0], 3.0), ([1.0, 1.5, 4.0], 2.5), ([1.0, 4.0, 6.0, 7.0, 9.0], 1.0)]
)
def test_the_first_step_counts_only_where_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, ticks_s: list[float], shortest_s: float
) -> None:
    clock, times_s = StepClock(torch.device("cpu")), iter(ticks_s)
    monkeypatch.setattr("lightning_parablock.strategy.auto_steps.time.perf_counter", lambda: next(times_s))
    for _ in ticks_s:
        assert not clock.is_complete
        clock.tick()
    assert clock.shortest_s == shortest_s
    assert clock.is_complete == (len(ticks_s) > MIN_AUTO_STEPS)


@pytest.mark.parametrize("codec", [*(kind() for kind in COMPRESSIONS.values()), Int8(64), TopK(0.3), Sparse(64, 0.9)])
def test_a_checkpoint_tells_every_codec_with_its_settings(codec: Any) -> None:
    assert saved_compression(Settings(compression=codec).fingerprint(), "a.ckpt") == codec


@pytest.mark.parametrize("text", ["Int8(group", "Int8", "Int9()", "Int8(size=64)", "print('a')", "3"])
def test_a_damaged_codec_is_a_named_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"the option compression in a\.ckpt is malformed"):
        saved_compression({"compression": text}, "a.ckpt")
