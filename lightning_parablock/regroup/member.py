"""A site's own part in regroups: which generations it has sealed, acknowledged and opened."""

from __future__ import annotations

from lightning_parablock.errors import CallOrderError, SealedError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision


class Membership:
    """The state of one site between generations, without threads or messages; the caller holds the lock.

    A regroup takes these steps: :meth:`seal`, the report, :meth:`adopt`, the transfers, :meth:`acknowledge`,
    :meth:`open`. Any of them may be the last one of an attempt; the next attempt has a greater number and begins at
    :meth:`seal`. There is no way back to an older generation: from the seal to an opening the site takes part in no
    exchange and starts no round, whatever happens to the others.

    Args:
        site: Name of the site.

    Attributes:
        log: The log up to the newest generation that the site has opened; empty while it holds nothing.
        sealed: The newest generation for which it has reported; -1 for none.
        acknowledged: The decision with whose state it could open; None if there is none.
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self.log = MembershipLog()
        self.sealed = -1
        self.acknowledged: Decision | None = None

    @property
    def generation(self) -> int:
        """The newest generation that the site has opened; -1 for none."""
        return self.log.generation

    @property
    def client(self) -> int | None:
        """The site's client id; None while it has opened nothing."""
        return self.log.client_of(self.site)

    @property
    def is_sealed(self) -> bool:
        """Whether a regroup is under way: no exchange is accepted and no round starts."""
        return self.sealed > self.generation

    def was_dropped(self, generation: int) -> bool:
        """Whether the run has continued without this site, given that another one has opened ``generation``.

        All members acknowledge a generation before any of them opens it, so one that this site has not sealed has
        opened without it.
        """
        return generation > max(self.sealed, self.generation)

    def seal(self, generation: int) -> None:
        """Begin an attempt: what the site reports from now on stays true until it opens a generation.

        Raises:
            SealedError: the site has sealed this generation or a newer one already.
        """
        if generation <= self.sealed:
            raise SealedError(
                f"site {self.site!r} has sealed generation {self.sealed} and cannot prepare {generation}", self.sealed
            )
        self.sealed = generation

    def adopt(self, decision: Decision) -> Decision | None:
        """Open the acknowledged generation if others have opened it, as the decision for the next one says.

        If the decision does not know it, it never existed: the site forgets it, and what it has staged for it may give
        way to what the decision asks for.

        Returns:
            The decision of the generation that is opened with this call, whose state the caller has to put in place
            before anything else; None if there is nothing to open.

        Raises:
            SealedError: the decision belongs to another attempt.
        """
        self._require_attempt(decision.record.generation, "take the decision for")
        waiting = self.acknowledged
        if waiting is None or waiting.record.generation == decision.record.generation:
            return None
        self.acknowledged = None
        if waiting.record not in decision.log.records[:-1]:
            return None
        self.log = waiting.log
        return waiting

    def acknowledge(self, decision: Decision) -> None:
        """Note that the site holds everything with which the decided generation opens.

        Raises:
            SealedError: the decision belongs to another attempt.
            CallOrderError: the site is no member of it, or is a survivor that has not opened the generation before.
        """
        self._require_attempt(decision.record.generation, "acknowledge")
        client = decision.log.client_of(self.site)
        if client not in decision.record.members:
            raise CallOrderError(f"site {self.site!r} is no member of generation {decision.record.generation}")
        if client not in decision.record.joiners and decision.log.records[:-1] != self.log.records:
            before = MembershipLog(decision.log.records[:-1]).generation
            raise CallOrderError(
                f"site {self.site!r} is in generation {self.generation} and the decision continues from {before}: call "
                "adopt first"
            )
        self.acknowledged = decision

    def open(self, generation: int) -> Decision:
        """Take part in the generation; from now on the site counts as having opened it.

        Returns:
            Its decision, whose state the caller has to put in place.

        Raises:
            SealedError: the site has sealed a newer generation and may open this one only by :meth:`adopt`.
            CallOrderError: the site has not acknowledged it.
        """
        self._require_attempt(generation, "open")
        decision = self.acknowledged
        if decision is None or decision.record.generation != generation:
            raise CallOrderError(f"site {self.site!r} cannot open generation {generation}: it has not acknowledged it")
        self.log, self.acknowledged = decision.log, None
        return decision

    def _require_attempt(self, generation: int, verb: str) -> None:
        if generation != self.sealed:
            raise SealedError(
                f"site {self.site!r} has sealed generation {self.sealed} and cannot {verb} {generation}", self.sealed
            )
