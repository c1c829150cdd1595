"""Which block a round trains, and every derived seed: pure functions of the run's seed, shared by all clients."""

from __future__ import annotations

import hashlib
import random

from lightning_parablock.settings import BlockOrder


def derive_seed(seed: int, *labels: object) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(7, "client", 3)``; the same on every machine."""
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def block_of_round(order: BlockOrder, n_blocks: int, round_index: int, seed: int) -> int:
    """Index of the block that round ``round_index`` trains, in [0, n_blocks).

    "shuffle" visits every block once a pass, in a fresh permutation each pass, and never repeats a block across the
    seam of two passes if there is more than one block; "random" draws each round on its own and may repeat.
    """
    pass_index, position = divmod(round_index, n_blocks)
    if order == "sequential":
        return position
    if order == "reverse":
        return n_blocks - 1 - position
    if order == "random":
        return random.Random(derive_seed(seed, "block of round", round_index)).randrange(n_blocks)
    return _permutation(n_blocks, pass_index, seed)[position]


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
