"""Masks of contributions that are on the site's lasting record, on the disk, before they leave."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import SubmissionError
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.session import MIN_SITES, Session
from lightning_parablock.masking.submissions import Submissions


@dataclass(frozen=True)
class Record:
    """What a fit notes its contributions with.

    Attributes:
        submissions: The site's record.
        context: Of the sums.
        salt: Of all that the site draws in this fit.
    """

    submissions: Submissions
    context: str
    salt: bytes = field(repr=False)


class RecordedMasks(Masks):
    """Masks of one session, each round of which is noted before anything of it is masked.

    Args:
        site: This site's name.
        members: Names of the session's members, this one included.
        session: What it shares with the others.
        record: The record.
        min_sites: Least number of sites in a sum.
    """

    def __init__(
        self, site: str, members: Sequence[str], session: Session, record: Record, min_sites: int = MIN_SITES
    ) -> None:
        super().__init__(site, members, session, min_sites)
        self._record = record
        self._recorded = set[int]()
        self._lock_of_record = threading.Lock()

    @property
    def salt(self) -> bytes:
        """Of all that the site draws in this fit."""
        return self._record.salt

    def record(self, round_index: int) -> None:
        """Note that the site contributes to the sums of a round.

        Raises:
            SubmissionError: it has done so with other sums, and its contribution would be the same.
        """
        with self._lock_of_record:
            if round_index in self._recorded:
                return
            salt = self._record.submissions.begin(round_index, self._record.context, self._record.salt)
            if salt == self._record.salt:
                self._recorded.add(round_index)
        if salt != self._record.salt:
            raise SubmissionError(
                f"round {round_index}: this site has contributed to a sum of other sites, settings or data in a round "
                "of this number, with the batches that this run draws; another run has used this site's keys "
                "meanwhile. Start a new fit, which draws others"
            )

    @override
    def apply(
        self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: Sequence[str] | None = None
    ) -> None:
        self.record(round_index)
        super().apply(values, round_index, block, lane, first, among)

    @override
    def close_rounds(self, before: int) -> None:
        with self._lock_of_record:
            self._recorded = {round_index for round_index in self._recorded if round_index >= before}
        super().close_rounds(before)
