"""Which client trains which block in a round: a pure function of the run's seed, the same on all ranks.

Only the order "importance" depends on the training: on the gradient norms that came with the commits merged so far,
which are also the same on all ranks.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.seeds import derive_seed
from lightning_parablock.settings import BlockOrder

Work = dict[int, tuple[int, ...]]
"""Block -> the clients that train it in a round, both ascending: one exchange each."""


@dataclass(frozen=True)
class Schedule:
    """What is trained in which round.

    Attributes:
        order: Block order.
        n_blocks: Number of blocks.
        seed: The run's seed.
        cohorts: Which clients train in which round.
        factors: Per block, how many times as often it is drawn, where blocks are drawn; None for equally often.
    """

    order: BlockOrder
    n_blocks: int
    seed: int
    cohorts: Cohorts
    factors: tuple[float, ...] | None = None

    def work_of(self, round_index: int, norms: Mapping[int, float]) -> Work:
        """The blocks of a round with their clients.

        Args:
            round_index: Number of the round.
            norms: For "importance": the newest gradient norm of each block that has one merged.
        """
        cohort = self.cohorts.of_round(round_index)
        if self.order != "cyclic":
            return {self._block_of(round_index, norms): cohort}
        work: dict[int, list[int]] = {}
        for client in cohort:
            work.setdefault((round_index + client) % self.n_blocks, []).append(client)
        return {block: tuple(work[block]) for block in sorted(work)}

    def untrained_blocks(self) -> list[int]:
        """Blocks that no round trains: a cyclic order and a rotating cohort may keep pace with each other."""
        if self.order != "cyclic" or self.cohorts.sampling != "rotation" or self.cohorts.availability:
            return []
        left = set(range(self.n_blocks))
        for t in range(math.lcm(self.n_blocks, self.cohorts.n_clients)):
            left.difference_update(self.work_of(t, {}))
            if not left:
                break
        return sorted(left)

    def _block_of(self, round_index: int, norms: Mapping[int, float]) -> int:
        if self.order == "importance" and round_index >= self.n_blocks:
            return _important(norms, self._factors, derive_seed(self.seed, "block of round", round_index))
        if self.order == "random" and self.factors is not None:
            return _drawn(self.factors, derive_seed(self.seed, "block of round", round_index))
        return block_of_round(self.order, self.n_blocks, round_index, self.seed)

    @property
    def _factors(self) -> Sequence[float]:
        return self.factors or (1.0,) * self.n_blocks


def block_of_round(order: BlockOrder, n_blocks: int, round_index: int, seed: int) -> int:
    """Index of the block that round ``round_index`` trains, in [0, n_blocks), where a round trains one block.

    "shuffle" visits every block once per pass, in a fresh permutation each pass, and with more than one block never
    repeats a block across the seam of two passes; "random" draws each round independently and may repeat;
    "importance" begins with a pass of "shuffle", which gives every block a norm.
    """
    pass_index, position = divmod(round_index, n_blocks)
    if order == "sequential":
        return position
    if order == "reverse":
        return n_blocks - 1 - position
    if order == "random":
        return random.Random(derive_seed(seed, "block of round", round_index)).randrange(n_blocks)
    return _permutation(n_blocks, pass_index, seed)[position]


def draw_factors(visit_more: Sequence[tuple[str, float]], block_names: Sequence[str]) -> tuple[float, ...] | None:
    """How many times as often each block is drawn: the product of the factors whose patterns match its name.

    Raises:
        ConfigurationError: a pattern matches no block's name.
    """
    for pattern, _ in visit_more:
        if not any(re.search(pattern, name) for name in block_names):
            raise ConfigurationError(
                f"visit_more: {pattern!r} is found in no block's name; the blocks are {', '.join(block_names)}"
            )
    matching = ([factor for pattern, factor in visit_more if re.search(pattern, name)] for name in block_names)
    return tuple(math.prod(factors) for factors in matching) if visit_more else None


def _important(norms: Mapping[int, float], factors: Sequence[float], seed: int) -> int:
    """Draw a block in proportion to its gradient norm; a block without a known norm counts with the others' mean."""
    known = {block: norm for block, norm in norms.items() if math.isfinite(norm)}
    mean = sum(known.values()) / len(known) if known else 0.0
    weights = [factor * known.get(block, mean) for block, factor in enumerate(factors)]
    return _drawn(weights if any(weights) else factors, seed)


def _drawn(weights: Sequence[float], seed: int) -> int:
    return random.Random(seed).choices(range(len(weights)), weights)[0]


def _permutation(n_blocks: int, pass_index: int, seed: int) -> list[int]:
    # Two blocks that must not repeat across the seam can only alternate: every pass is the first one.
    if n_blocks == 2:
        return _shuffled(n_blocks, 0, seed)
    permutation = _shuffled(n_blocks, pass_index, seed)
    if pass_index and n_blocks > 1 and permutation[0] == _shuffled(n_blocks, pass_index - 1, seed)[-1]:
        # Swapping the first two leaves the last in its place, so a pass needs to know only the shuffle before it.
        permutation[0], permutation[1] = permutation[1], permutation[0]
    return permutation


def _shuffled(n_blocks: int, pass_index: int, seed: int) -> list[int]:
    permutation = list(range(n_blocks))
    random.Random(derive_seed(seed, "permutation of pass", pass_index)).shuffle(permutation)
    return permutation
