"""What secure sums need in a history: records that outlive processes, masks by generation, an ear at each server."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from lightning_parablock.masking import stretches
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.masking.recorded import Record, RecordedMasks
from lightning_parablock.masking.ring import Ring
from lightning_parablock.regroup.log import Record as Generation
from tests.masking.sessions import session

Contribution = tuple[str, bytes, int]
"""Site, salt, round: what follows from them is trained on the same batches."""
PIECE_BYTES = 32
FEWEST_BYTES = 8
"""Fewer bytes may be equal by chance."""


@dataclass
class SiteRecord:
    """A site's lasting record of its contributions, in memory: the package's rule."""

    name: str
    stretches: stretches.Stretches = ()
    n_salts: int = 0

    def fresh_salt(self) -> bytes:
        return self._new_salt() if self.stretches else stretches.NO_SALT

    def begin(self, round_index: int, context: str, salt: bytes | None = None) -> bytes:
        self.stretches, found = stretches.begin(
            self.stretches, round_index, context, stretches.NO_SALT, self._new_salt, salt
        )
        return found

    def _new_salt(self) -> bytes:
        self.n_salts += 1
        return f"{self.name} {self.n_salts}".encode()


@dataclass
class Ear:
    """All that servers get in a history.

    Attributes:
        sums: Of each contribution the opened sums that hold it: their exchange's round and block, and contributions.
        masks: Pieces of masks that have hidden something.
        n_messages: Messages that have left a site.
        repeated: Masks that have hidden something before.
    """

    sums: dict[Contribution, set[tuple[tuple[int, int], int, frozenset[Contribution]]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    masks: set[bytes] = field(default_factory=set[bytes])
    n_messages: int = 0
    repeated: int = 0

    def open(self, key: tuple[int, int], generation: int, contributions: frozenset[Contribution]) -> None:
        """A server has every part of a chunk."""
        for one in contributions:
            self.sums[one].add((key, generation, contributions))

    @property
    def shared(self) -> int:
        """Contributions that are part of more than one opened sum."""
        return sum(len(sums) > 1 for sums in self.sums.values())

    def hide(self, mask: bytes) -> None:
        """A message is masked."""
        self.n_messages += 1
        for start in range(0, len(mask), PIECE_BYTES):
            piece = mask[start : start + PIECE_BYTES]
            if len(piece) >= FEWEST_BYTES:
                self.repeated += piece in self.masks
                self.masks.add(piece)


class HeardMasks(RecordedMasks):
    """Masks that the ear compares with all others of the history.

    Args:
        ear: The ear.
        site: See :class:`RecordedMasks`, as for all that follows.
        members: See there.
        label: Tells sessions apart.
        record: See there.
    """

    def __init__(self, ear: Ear, site: str, members: Sequence[str], label: str, record: Record) -> None:
        super().__init__(site, members, session(site, members, label), record)
        self._ear = ear

    @override
    def apply(
        self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: Sequence[str] | None = None
    ) -> None:
        mask = values.clone()
        super().apply(values, round_index, block, lane, first, among)
        Ring(values.element_size()).subtract(mask, values)
        self._ear.hide(mask.numpy().tobytes())


@dataclass
class Secured:
    """What the sites of a history with secure sums share.

    Attributes:
        width: Bytes per value.
        ear: At every server.
        records: Of each site, by name.
        keeps_keys: Whether, wrongly, sites keep the keys of their first generation.
    """

    width: int
    ear: Ear = field(default_factory=Ear)
    records: dict[str, SiteRecord] = field(default_factory=dict[str, SiteRecord])
    keeps_keys: bool = False
    n_agreements: int = 0

    def record_of(self, site: str) -> SiteRecord:
        """The record of a site, whichever process asks."""
        return self.records.setdefault(site, SiteRecord(site))

    def masks(self, site: str, salt: bytes, generation: Generation) -> HeardMasks:
        """The masks of a member: members of one generation agree on them, and only one generation has its number."""
        members = sorted(generation.sites[client] for client in generation.members)
        label = "kept" if self.keeps_keys else f"generation {generation.generation}: {generation}"
        context = stretches.context_of(f"{generation.generation}", {name: name.encode() for name in members})
        record = Record(self.record_of(site), context, salt)  # type: ignore[arg-type]
        return HeardMasks(self.ear, site, members, label, record)


def shift_of(salt: bytes) -> float:
    """By what the batches of a salt are others: 0 without one."""
    return zlib.crc32(salt) % 97 / 97 if salt else 0.0
