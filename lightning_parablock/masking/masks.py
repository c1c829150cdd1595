"""Masks of one site: what hides its integers from servers, and cancels in the sum over all sites of an exchange.

For every pair of sites i < j there is one stream of bytes per exchange and lane. Value k of the block takes the bytes
kB to kB + B - 1 of it, however the block is cut; site i adds them, site j subtracts them (Bonawitz et al., CCS 2017,
without the recovery of lost sites' masks: an exchange that is not complete is dropped).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_parablock.errors import CallOrderError, MaskReuseError
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.masking.release import require_installed
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.session import MIN_SITES, Session, refuse_too_few
from lightning_parablock.masking.spent import Spent
from lightning_parablock.masking.streams import PIECE_BYTES, MaskStream, pieces


@dataclass
class _Use:
    """One exchange and lane.

    Attributes:
        sites: Sites in the sum, sorted.
        ring: Width of the values.
        streams: Mask bytes shared with each other site, and whether they are added here.
        spent: Scalars whose mask has been used.
        ahead: The sum of all masks for scalars from 0 on, if it has been prepared.
    """

    sites: tuple[str, ...]
    ring: Ring
    streams: list[tuple[bool, MaskStream]]
    spent: Spent = field(default_factory=Spent)
    ahead: Tensor | None = None


class Masks:
    """All masks of one session; ``prepare`` and ``apply`` may be called by different threads.

    Args:
        site: This site's name.
        members: Names of the session's members, this one included.
        session: What it shares with the others.
        min_sites: Least number of sites in a sum.

    Attributes:
        min_sites: The same.

    Raises:
        TooFewSitesError: fewer members than ``min_sites``.
        ConfigurationError: the package ``cryptography`` is missing or too old.
    """

    def __init__(self, site: str, members: Sequence[str], session: Session, min_sites: int = MIN_SITES) -> None:
        self._site, self._members = site, tuple(sorted(members))
        self._session, self.min_sites = session, min_sites
        self._uses: dict[tuple[int, int, Lane], _Use] = {}
        self._first_open_round = 0
        self._lock = threading.Lock()
        require_installed()
        refuse_too_few(self._members, min_sites, "a session")

    def apply(
        self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: Sequence[str] | None = None
    ) -> None:
        """Mask a part of this site's contribution, in place. Nothing may leave the site before.

        Args:
            values: Integers of a ring's type, shape (n,), contiguous, on the host; of all clients of the site together.
            round_index: Round of the exchange.
            block: Index of its block.
            lane: What the values are.
            first: Index within the lane of the part's first value.
            among: Sites with a contribution to the exchange; None for all members. The same for all of its parts.

        Raises:
            MaskReuseError: a mask would be used a second time.
            TooFewSitesError: fewer than ``min_sites`` sites contribute.
            CallOrderError: this site does not contribute, or an earlier part of the exchange had other sites or another
                width.
        """
        stop = first + values.numel()
        ring = Ring(values.element_size())
        with self._lock:
            use = self._use(round_index, block, lane, ring, among)
            self._spend(use, round_index, block, lane, first, stop)
            ahead = use.ahead
            if ahead is not None and use.spent.total >= ahead.numel():
                use.ahead = None
        if ahead is not None and stop <= ahead.numel():
            ring.add(values, ahead[first:stop])
        else:
            _add_masks(use, values, first)

    def prepare(
        self,
        round_index: int,
        block: int,
        lane: Lane,
        n_values: int,
        bytes_per_value: int,
        among: Sequence[str] | None = None,
    ) -> None:
        """Compute the masks of an exchange before its values exist; takes n_values times bytes_per_value of memory.

        Without it, and until it has ended, :meth:`apply` computes them itself. Errors are those of :meth:`apply`, but
        for a round that is closed: a thread that comes late has nothing to prepare.
        """
        ring = Ring(bytes_per_value)
        with self._lock:
            if round_index < self._first_open_round:
                return
            use = self._use(round_index, block, lane, ring, among)
        ahead = torch.zeros(n_values, dtype=ring.dtype, device="cpu")
        _add_masks(use, ahead, 0)
        with self._lock:
            if use.spent.total < n_values:
                use.ahead = ahead

    def close_rounds(self, before: int) -> None:
        """Forget the exchanges of earlier rounds; whatever is still asked of them is refused from now on."""
        with self._lock:
            self._first_open_round = max(self._first_open_round, before)
            self._uses = {key: use for key, use in self._uses.items() if key[0] >= self._first_open_round}

    def _use(self, round_index: int, block: int, lane: Lane, ring: Ring, among: Sequence[str] | None) -> _Use:
        what = f"round {round_index}, block {block}, {lane}"
        if round_index < self._first_open_round:
            raise MaskReuseError(f"{what}: site {self._site!r} has closed this round; nothing of it is masked again")
        sites = self._members if among is None else tuple(sorted(among))
        use = self._uses.get((round_index, block, lane))
        if use is None:
            self._refuse_sites(sites, what)
            streams = self._session.streams(self._site, self._members, sites, round_index, block, lane)
            use = self._uses[round_index, block, lane] = _Use(sites, ring, streams)
        if use.sites != sites or use.ring != ring:
            raise CallOrderError(
                f"{what}: masked for {', '.join(use.sites)} with {use.ring.bytes_per_value} byte(s) per value, and now "
                f"asked for {', '.join(sites)} with {ring.bytes_per_value}; all parts of an exchange have the same"
            )
        return use

    def _refuse_sites(self, sites: tuple[str, ...], what: str) -> None:
        refuse_too_few(sites, self.min_sites, what)
        if self._site not in sites or not set(sites) <= set(self._members) or len(set(sites)) < len(sites):
            raise CallOrderError(
                f"{what}: site {self._site!r} is asked for a mask among {', '.join(sites)}, and the session is one of "
                f"{', '.join(self._members)}"
            )

    def _spend(self, use: _Use, round_index: int, block: int, lane: Lane, first: int, stop: int) -> None:
        if not use.spent.take(first, stop):
            raise MaskReuseError(
                f"round {round_index}, block {block}, {lane} {first} to {stop - 1}: site {self._site!r} masked some "
                "of them before; a second use of a mask shows servers the difference of both contributions"
            )


def _add_masks(use: _Use, values: Tensor, first: int) -> None:
    """Add the masks for values ``first`` and the following ones, piece by piece while each is in the cache."""
    width = use.ring.bytes_per_value
    numbers = use.ring.unsigned(values)
    scratch = bytearray(min(PIECE_BYTES, numbers.nbytes + 16))
    for start, stop in pieces(first * width, (first + len(numbers)) * width):
        part = numbers[start // width - first : stop // width - first]
        for is_added, stream in use.streams:
            mask = stream.read(start, stop, scratch).view(numbers.dtype)
            (np.add if is_added else np.subtract)(part, mask, out=part)
