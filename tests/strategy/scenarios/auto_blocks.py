"""One rank of the fits with ``blocks="auto"`` that test_auto_blocks.py starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from lightning.pytorch import Trainer

from lightning_parablock.blocks.partition import partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.planning.fitting import Budget, fit_of
from lightning_parablock.settings import MAX_AUTO_STEPS
from lightning_parablock.strategy.auto_steps import MIN_AUTO_STEPS
from tests.strategy.scenarios.auto import fitted, settings_of
from tests.strategy.scenarios.resume import BATCHES, EPOCHS, N_RANKS, RANK, SCRATCH, Net, SaveAt, loaders, weights
from tests.tasks import assert_same_bits

AUTO = {"blocks": "auto"}


def memory_of(n_blocks: int, **strategy: Any) -> int:
    """Bytes that so many blocks take on a CPU, where everything counts."""
    trained = fitted({**strategy, "blocks": n_blocks}, max_steps=1)[1]
    module, settings = Net(), settings_of(trained)
    budget = Budget(0, counts_host=True)
    return fit_of(module, partition(module, n_blocks), [budget], N_RANKS, settings).needed_bytes[0]


def n_blocks_of(trainer: Trainer) -> int:
    return len(trainer.strategy.blocks)  # type: ignore[attr-defined]


def same_as_given(auto: Net, trainer: Trainer, strategy: dict[str, Any], **options: Any) -> None:
    """The run has the bits of one that was given its number of blocks, and its settings."""
    given, other = fitted({**strategy, "blocks": n_blocks_of(trainer)}, **options)
    assert settings_of(other) == settings_of(trainer)
    assert_same_bits(weights(auto), weights(given))
    assert auto.losses == given.losses[-len(auto.losses) :]


def the_smallest_memory_counts(n_blocks: int, **strategy: Any) -> Callable[[], None]:
    """One rank has room for one block, the other for no fewer than so many: in both orders of the ranks."""

    def scenario() -> None:
        least = memory_of(n_blocks, **strategy)
        assert least < memory_of(n_blocks - 1, **strategy)
        for small in range(N_RANKS):
            memory = least if small == RANK else 10**9
            module, trainer = fitted({**strategy, **AUTO, "memory": memory})
            assert n_blocks_of(trainer) == settings_of(trainer).blocks == n_blocks
            same_as_given(module, trainer, strategy)

    return scenario


def said() -> None:
    fitted({**AUTO, "memory": [memory_of(2), "1gb"][RANK]}, max_steps=1)


def what_is_free() -> None:
    """Without a budget the device's free memory counts, of which a toy leaves the most."""
    module, trainer = fitted(AUTO, max_epochs=1)
    assert n_blocks_of(trainer) == 1
    same_as_given(module, trainer, {}, max_epochs=1)
    free = int(memory_of(2) / 0.75) + 1
    held = sum(p.numel() * p.element_size() for p in Net().parameters())
    with patch("lightning_parablock.planning.fitting.free_bytes", lambda device, processes: free - held):
        _, trainer = fitted(AUTO, max_steps=1)
    assert n_blocks_of(trainer) == 2


def resumed() -> None:
    """A run that goes on takes the number of its checkpoint, however much memory there is by then."""
    path = SCRATCH / "auto-blocks.ckpt"
    saving, trainer = fitted({**AUTO, "memory": memory_of(3)}, callbacks=[SaveAt("on_train_batch_end", 6, path)])
    assert n_blocks_of(trainer) == 3
    for strategy in ({**AUTO, "memory": "1gb"}, {**AUTO, "memory": 1}, {"blocks": 3}):
        module, again = fitted(strategy, ckpt_path=path)
        assert 0 < len(module.losses) == BATCHES * EPOCHS - 6
        assert settings_of(again) == settings_of(trainer)
        assert_same_bits(weights(module), weights(saving))
    with pytest.raises(ConfigurationError, match="saved with blocks=3, this run has 2"):
        fitted({"blocks": 2}, ckpt_path=path)


def resumed_from_patterns() -> None:
    """The run that was given patterns, or layers, continues with them."""
    for blocks in (["^layers", "^norm"], "layers"):
        path = SCRATCH / f"given-{len(blocks)}.ckpt"
        saving, trainer = fitted({"blocks": blocks}, callbacks=[SaveAt("on_train_batch_end", 6, path)])
        module, again = fitted(AUTO, ckpt_path=path)
        assert settings_of(again) == settings_of(trainer)
        assert_same_bits(weights(module), weights(saving))


def one_fit_after_another() -> None:
    """The second fit keeps what was agreed for the first."""
    least = memory_of(2)
    module, trainer = fitted({**AUTO, "memory": least}, max_epochs=1)
    before = settings_of(trainer)
    with patch("lightning_parablock.strategy.auto_blocks.fewest_blocks") as asked:
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, **loaders("shuffled"))
    assert not asked.called
    assert settings_of(trainer) == before


def with_local_steps() -> None:
    """Both are agreed on: the blocks first, then how many local steps hide their exchange."""
    strategy = {**AUTO, "memory": memory_of(2), "local_steps": "auto"}
    module, trainer = fitted(strategy, max_epochs=1)
    settings = settings_of(trainer)
    assert n_blocks_of(trainer) == settings.blocks == 2
    assert not settings.pending
    assert MIN_AUTO_STEPS <= settings.local_steps == settings.delay_steps <= MAX_AUTO_STEPS
    same_as_given(module, trainer, {"local_steps": settings.local_steps}, max_epochs=1)


def too_little_memory() -> None:
    memory = [10**9, 1000][RANK]
    with pytest.raises(ConfigurationError, match=r"blocks='auto': the memory of (client|rank) 1 .*is 1.0 kB, and even"):
        fitted({**AUTO, "memory": memory}, max_steps=1)


def not_on_every_client() -> None:
    with pytest.raises(ConfigurationError, match="blocks"):
        fitted({"blocks": "auto" if RANK else 2}, max_steps=1)


SCENARIOS: dict[str, Callable[[], None]] = {
    "smallest memory": the_smallest_memory_counts(2),
    "three, star, int8": the_smallest_memory_counts(3, topology="star", compression="int8"),
    "more clients than ranks": the_smallest_memory_counts(2, clients=4, cohort=2),
    "said": said,
    "free": what_is_free,
    "resumed": resumed,
    "resumed from patterns": resumed_from_patterns,
    "twice": one_fit_after_another,
    "local steps": with_local_steps,
    "too little": too_little_memory,
    "differs": not_on_every_client,
}
