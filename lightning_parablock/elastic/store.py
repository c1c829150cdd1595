"""W as of every exchange that a member may still need, in host memory: what this site lands, gives and continues from.

An exchange lands here once its whole commit is here, and every exchange before it. W of the clients advances later, at
the merge; what has landed is what redone exchanges start from, what a joiner begins with, and what a member that lacks
a commit is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_parablock.errors import CallOrderError
from lightning_parablock.regroup.keys import BEFORE_ALL, Key


class CommittedStore:
    """Versions of each block's W, oldest first; thread-safe, and no tensor in it is ever changed.

    A version is named by the exchange after which it was W. The value before the first exchange has round -1: see
    :meth:`first_key`.

    Args:
        initial: W of each block before any exchange, shape (numel,), float32, on the host; kept, not copied.
        as_held: (block, values) -> what the clients' parameters can hold of them, where commits are increments of what
            the clients hold, as with a lossy codec; None where W is stored as it is received.
    """

    def __init__(self, initial: Sequence[Tensor], as_held: Callable[[int, Tensor], Tensor] | None = None) -> None:
        self._as_held = as_held
        self._lock = threading.Lock()
        self._landed = BEFORE_ALL
        self._versions = [[(first_key(block), value)] for block, value in enumerate(initial)]

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self._versions)

    @property
    def landed(self) -> Key:
        """The newest exchange that has landed; :data:`BEFORE_ALL` before the first."""
        with self._lock:
            return self._landed

    def land(self, key: Key, value: Tensor) -> None:
        """Add the value of W after an exchange; this object takes over the tensor.

        Args:
            key: The exchange; newer than every one that has landed.
            value: Shape (numel,), float32, on the host: the result of :meth:`Exchange.wait`, for which W before the
                exchange is :meth:`newest`.

        Raises:
            CallOrderError: an exchange that is not newer than the last one.
        """
        held = value if self._as_held is None else self._as_held(key[1], value)
        with self._lock:
            if key <= self._landed:
                raise CallOrderError(f"exchange {key} cannot land after {self._landed}")
            self._versions[key[1]].append((key, held))
            self._landed = key

    def begin_with(self, versions: Sequence[tuple[Key, Tensor]], landed: Key) -> None:
        """Forget everything, and begin with given versions; of each block at least one.

        Args:
            versions: With their exchanges, in any order; taken over.
            landed: The newest exchange that counts as landed.
        """
        with self._lock:
            self._versions = [[] for _ in self._versions]
            for key, value in sorted(versions, key=lambda version: version[0]):
                self._versions[key[1]].append((key, value))
            missing = [block for block, held in enumerate(self._versions) if not held]
            if missing:
                raise CallOrderError(f"no value of the committed model for blocks {missing}")
            self._landed = landed

    def newest(self, block: int) -> Tensor:
        """W of the block after the newest exchange that has landed; not to be changed."""
        with self._lock:
            return self._versions[block][-1][1]

    def newest_key(self, block: int) -> Key:
        """The exchange after which :meth:`newest` is W."""
        with self._lock:
            return self._versions[block][-1][0]

    def at(self, key: Key) -> Tensor:
        """W of the exchange's block after it; not to be changed.

        Raises:
            CallOrderError: it has not landed here, or is not kept any more.
        """
        with self._lock:
            if not 0 <= key[1] < len(self._versions):
                raise CallOrderError(f"there is no block {key[1]}; the model has {len(self._versions)}")
            for known, value in reversed(self._versions[key[1]]):
                if known == key:
                    return value
            kept = [known for known, _ in self._versions[key[1]]]
        raise CallOrderError(f"the commit of round {key[0]}, block {key[1]} is not here; those of {kept} are")

    def keys(self, block: int) -> list[Key]:
        """The exchanges whose W is kept, oldest first."""
        with self._lock:
            return [key for key, _ in self._versions[block]]

    def value_before(self, block: int, round_index: int) -> tuple[Key, Tensor]:
        """The newest version of the block from rounds up to and with ``round_index``; at least the initial one.

        Raises:
            CallOrderError: it is not kept any more.
        """
        with self._lock:
            older = [version for version in self._versions[block] if version[0][0] <= max(round_index, -1)]
        if not older:
            raise CallOrderError(f"W of block {block} as of round {round_index} is not kept any more")
        return older[-1]

    def after(self, block: int, key: Key) -> list[tuple[Key, Tensor]]:
        """The versions of the block from exchanges newer than ``key``, oldest first."""
        with self._lock:
            return [version for version in self._versions[block] if version[0] > key]

    def prune(self, all_landed: Key, merged_round: int) -> None:
        """Drop what no member can ask for any more.

        Args:
            all_landed: The newest exchange that has landed on every member: none lacks it or an older one.
            merged_round: A joiner begins with W as of this round or a newer one.
        """
        with self._lock:
            for versions in self._versions:
                begin = max((i for i, (key, _) in enumerate(versions) if key[0] <= merged_round), default=0)
                while begin and versions[begin - 1][0] > all_landed:
                    begin -= 1
                del versions[:begin]


def first_key(block: int) -> Key:
    """Names the value of a block before the first exchange."""
    return -1, block
