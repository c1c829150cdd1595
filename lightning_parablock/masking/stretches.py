"""Which rounds a site has contributed to which sums, and with which salt: the rule that keeps sums apart.

Two opened sums that hold the same contribution of one site, and differ in another one, can be subtracted. A site's
contribution to a round is a function of the run's seed and of a salt that is mixed into it. So: **for one salt, a round
is contributed to one context alone.** A context stands for everything that decides what else is in the sum. In the same
context a repeated round has the same salt, the same bits and the same sum, which tells nothing new; in another one it
has a salt that was never used in that round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightning_parablock.errors import SubmissionError

NO_SALT = b""
"""The first salt of a new site: its contributions follow from the run's seed."""


@dataclass(frozen=True)
class Stretch:
    """Rounds that were contributed with one salt to one context.

    Attributes:
        context: From :func:`context_of`.
        salt: What was mixed into the seed of the batches.
        first: First round.
        last: Last round. Rounds in between in which the site did not contribute count as contributed.
    """

    context: str
    salt: bytes
    first: int
    last: int

    def covers(self, round_index: int) -> bool:
        """Whether a round belongs to it."""
        return self.first <= round_index <= self.last


Stretches = tuple[Stretch, ...]
"""All of a site's stretches, of all its runs; the one used last is the last one."""


def context_of(fingerprint: str, identifiers: Mapping[str, bytes]) -> str:
    """What decides which contributions are added up, as 64 hexadecimal digits.

    Args:
        fingerprint: Of the settings that all sites share.
        identifiers: Of each site among whose clients the round's sums are formed, its
            :meth:`~lightning_parablock.masking.submissions.Submissions.identifier`. It is another one where the site
            cannot repeat its contributions, because its record was lost or its data have changed: then no site
            repeats its own.
    """
    digest = hashlib.sha256(b"lightning-parablock context 1\n")
    for part in (fingerprint.encode(), *(part for site in sorted(identifiers) for part in (site, identifiers[site]))):
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def begin(
    stretches: Stretches,
    round_index: int,
    context: str,
    first_salt: bytes,
    new_salt: Callable[[], bytes],
    wanted: bytes | None = None,
) -> tuple[Stretches, bytes]:
    """Choose the salt of a round.

    Args:
        stretches: What has been contributed so far.
        round_index: The round that begins.
        context: Of its sums.
        first_salt: The salt to begin with, which was never used before the record began.
        new_salt: Draws one that was never used.
        wanted: To take where the rule allows it; None for the one used last.

    Returns:
        The stretches with this round, and its salt.
    """
    for stretch in reversed(stretches):
        if stretch.context == context and stretch.covers(round_index):
            return _to_the_end(stretches, stretch, stretch), stretch.salt
    salt = wanted if wanted is not None else stretches[-1].salt if stretches else first_salt
    if any(stretch.salt == salt and stretch.covers(round_index) for stretch in stretches):
        salt = new_salt()
    return _extended(stretches, round_index, context, salt), salt


def refuse_unless_begun(stretches: Stretches, round_index: int, context: str, salt: bytes) -> None:
    """The last check before a contribution leaves the site.

    Raises:
        SubmissionError: a contribution of this round and salt may be part of another sum.
    """
    if not any(s.context == context and s.salt == salt and s.covers(round_index) for s in stretches):
        raise SubmissionError(
            f"round {round_index}: its contribution was made for a sum of other sites or settings and must not enter "
            "this one, which would let somebody subtract the two; the exchange is to be dropped, not repeated"
        )


def _extended(stretches: Stretches, round_index: int, context: str, salt: bytes) -> Stretches:
    """Let the newest stretch reach to the round, where no other one of its salt or context is in between."""
    newest = stretches[-1] if stretches else None
    if newest is not None and (newest.context, newest.salt) == (context, salt) and newest.last < round_index:
        between = range(newest.last + 1, round_index + 1)
        others = [s for s in stretches[:-1] if s.salt == salt or s.context == context]
        if not any(s.first < between.stop and s.last >= between.start for s in others):
            return _to_the_end(stretches, newest, replace(newest, last=round_index))
    return (*stretches, Stretch(context, salt, round_index, round_index))


def _to_the_end(stretches: Stretches, old: Stretch, new: Stretch) -> Stretches:
    return (*(stretch for stretch in stretches if stretch is not old), new)
