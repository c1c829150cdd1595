"""Secure sums in a fit with fixed members: sites state with whom they take part, and the masks that follow from it.

Before the loaders are made, every site signs a statement and verifies those of all others. What a site draws follows
from the run's seed and from a salt, which its lasting record of contributions hands out
(:mod:`lightning_parablock.masking.submissions`): a resumed run repeats its rounds with the same salt and so with the
same bits, and whatever else repeats a round number of this site draws other batches.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.errors import CheckpointError, ConfigurationError, SubmissionError
from lightning_parablock.launching.agreement import versions_here
from lightning_parablock.masking.agreement import Lane, SessionKey
from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.release import require_installed
from lightning_parablock.masking.statements import SignedStatement, Statement
from lightning_parablock.masking.stretches import context_of
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.masking.verifying import session_of
from lightning_parablock.server.aggregations import SecureAggregation
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.membership import read_member
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

KEY = "secure"
"""Of the sidecar: what a site needs to repeat its rounds."""

_WITH = "aggregation='secure'"
_NONCE_BYTES = 16


@dataclass(frozen=True)
class Trust:
    """What the sites of a federation know each other by.

    Attributes:
        roster: Of all sites.
        identity: Of this one.
    """

    roster: Roster
    identity: Identity

    @classmethod
    def of(cls, settings: Settings, site: str | None, backend: str | None) -> Trust:
        """The roster and the keys that the settings name.

        Raises:
            ConfigurationError: one of them is missing, or cannot be used.
        """
        require_installed()
        if backend == "nccl":
            raise ConfigurationError(f"process_group_backend='nccl' with {_WITH} has not been run; use 'gloo'")
        federation, keys = settings.federation, settings.keys
        if federation is None or site is None:
            raise ConfigurationError(
                f"{_WITH} needs federation=federation.yaml, the roster that all sites have signed, and site, this "
                "site's name in it: without them no site knows whose masks they are. See docs/sites.md"
            )
        return cls(*read_member(Path(federation), None if keys is None else Path(keys), site))


class RecordedMasks:
    """Masks of contributions that are on the record, on the disk, before they leave.

    Args:
        masks: Hide them.
        submissions: The record.
        context: Of the sums.
        salt: Of all that the site draws in this fit.
    """

    def __init__(self, masks: Masks, submissions: Submissions, context: str, salt: bytes) -> None:
        self._masks, self._submissions, self._context, self._salt = masks, submissions, context, salt
        self._recorded = set[int]()
        self._lock = threading.Lock()

    def record(self, round_index: int) -> None:
        """Note that the site contributes to the sums of a round.

        Raises:
            SubmissionError: it has done so with other sums, and its contribution would be the same.
        """
        with self._lock:
            if round_index in self._recorded:
                return
            salt = self._submissions.begin(round_index, self._context)
            if salt == self._salt:
                self._recorded.add(round_index)
        if salt != self._salt:
            raise SubmissionError(
                f"round {round_index}: this site has contributed to a sum of other sites, settings or data in a round "
                "of this number, with the batches that this run draws; another run has used this site's keys "
                "meanwhile. Start a new fit, which draws others"
            )

    def apply(
        self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: Sequence[str] | None
    ) -> None:
        """See :meth:`Masks.apply`."""
        self.record(round_index)
        self._masks.apply(values, round_index, block, lane, first, among)

    def prepare(
        self,
        round_index: int,
        block: int,
        lane: Lane,
        n_values: int,
        bytes_per_value: int,
        among: Sequence[str] | None,
    ) -> None:
        """See :meth:`Masks.prepare`."""
        self._masks.prepare(round_index, block, lane, n_values, bytes_per_value, among)

    def close_rounds(self, before: int) -> None:
        """See :meth:`Masks.close_rounds`."""
        with self._lock:
            self._recorded = {round_index for round_index in self._recorded if round_index >= before}
        self._masks.close_rounds(before)


@dataclass(frozen=True)
class SecureFit:
    """What one fit of a site has for secure sums.

    Attributes:
        masks: Hide its contributions.
        salt: Mixed into the seeds of all that its clients draw; empty for nothing.
        nonce: Names the run at this site.
        here: What changes the bits of the site's training beside its data and the settings that all sites share.
    """

    masks: RecordedMasks
    salt: bytes = field(repr=False)
    nonce: bytes
    here: str = ""

    def state(self, data: Sequence[str]) -> dict[str, str]:
        """For the sidecar; ``data`` are hashes of the site's data."""
        return {"nonce": self.nonce.hex(), "salt": self.salt.hex(), "here": self.here, "data": json.dumps(list(data))}

    def refuse_fixed_orders(self, is_fixed: Sequence[bool | None]) -> None:
        """Refuse data whose batches cannot be others than in an earlier run of this site.

        Args:
            is_fixed: Of each hosted client; None where it is not known.

        Raises:
            ConfigurationError: the salt would change nothing.
        """
        if not self.salt:
            return
        if any(is_fixed):
            raise ConfigurationError(
                f"this site has contributed to secure sums before, and with {_WITH} a run that is not the same one "
                "must draw other batches, but the training loader yields them in a fixed order; use shuffle=True"
            )
        if None in is_fixed:
            log.warning(
                "parablock: this site has contributed to secure sums before; its training loader must draw its samples "
                "by torch's random generator, or a server could subtract sums of different runs"
            )

    def refuse_other_data(self, saved: Mapping[str, str] | None, data: Sequence[str]) -> None:
        """Raise a CheckpointError where a resumed run would repeat rounds with other data than it had."""
        if saved is not None and saved["data"] != json.dumps(list(data)):
            raise CheckpointError(
                f"this site's training data are not those with which the checkpoint was saved, or not in batches of "
                f"that size, and with {_WITH} a round that is repeated with other data shows what they are; bring back "
                "the data and the batch size, or start a new fit from the weights"
            )


def saved_of(resumed: Resumed | None) -> Mapping[str, str] | None:
    """What the checkpoint that is resumed says of this site's secure sums; None for a new fit."""
    return None if resumed is None or resumed.own is None else resumed.own[KEY]


def open_secure(ranks: RankStrategy, settings: Settings, trust: Trust, resumed: Resumed | None) -> SecureFit:
    """Exchange statements, verify those of all sites, and find the salt; collective.

    Args:
        ranks: The ranks, which have met.
        settings: The run's settings.
        trust: Roster and identity.
        resumed: The checkpoint that is resumed; None for a new fit.

    Raises:
        ConfigurationError: a site is no member, or too few are.
        StatementError: a site states something else than this one.
        CheckpointError: the checkpoint cannot be repeated to the bit here.
        SubmissionError: this site's record cannot be used, or has another salt for the round.
    """
    choice = settings.aggregation
    assert isinstance(choice, SecureAggregation)
    here = _here(ranks, settings)
    saved, round_index = _saved(resumed, here), 0 if resumed is None else resumed.round
    submissions = Submissions(trust.identity.folder)
    nonce = secrets.token_bytes(_NONCE_BYTES) if saved is None else bytes.fromhex(saved["nonce"])
    key, members = SessionKey.new(), tuple(sorted(ranks.site_names))
    own = SignedStatement.by(
        trust.identity,
        Statement(
            site=trust.identity.card.name,
            run=ranks.gather_objects(nonce.hex())[0],
            roster=trust.roster.digest,
            generation=0,
            members=members,
            kept=(),
            dropped=(),
            session_key=key.public,
            identifier=submissions.identifier(nonce),
        ),
    )
    texts = ranks.gather_objects(own.text.decode("ascii"))
    received = [SignedStatement.parse(_bytes(text), site) for text, site in zip(texts, ranks.site_names, strict=True)]
    session, identifiers = session_of(own, key, received, trust.roster, choice.min_sites)
    context = context_of(json.dumps(sorted(settings.fingerprint().items())), identifiers)
    salt = submissions.begin(round_index, context)
    if saved is not None:
        _refuse_other_salt(saved, salt, resumed, submissions, context)
    masks = Masks(own.statement.site, members, session, choice.min_sites)
    return SecureFit(RecordedMasks(masks, submissions, context, salt), salt, nonce, here)


def _bytes(text: object) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else b""


def _here(ranks: RankStrategy, settings: Settings) -> str:
    """What changes the bits of a site's training beside its data and the settings that all sites share."""
    own = {
        "threads": torch.get_num_threads(),
        "device": ranks.root_device.type,
        "own_local_steps": settings.own_local_steps,
    }
    return json.dumps({**versions_here(), **own}, sort_keys=True)


def _saved(resumed: Resumed | None, here: str) -> dict[str, str] | None:
    if resumed is None:
        return None
    with reading("what the checkpoint says of this site's secure sums", CheckpointError):
        found = saved_of(resumed) or {}
        saved = {name: str(found[name]) for name in ("nonce", "salt", "here", "data")}
        for name in ("nonce", "salt"):
            bytes.fromhex(saved[name])
    if saved["here"] != here:
        raise CheckpointError(
            f"the checkpoint was saved with {saved['here']} at this site, which now has {here}: repeated rounds "
            f"would have other bits, and with {_WITH} their difference could be read; use the same versions, threads, "
            "device and own_local_steps, or start a new fit from the weights"
        )
    return saved


def _refuse_other_salt(
    saved: Mapping[str, str], salt: bytes, resumed: Resumed | None, submissions: Submissions, context: str
) -> None:
    if salt.hex() != saved["salt"]:
        raise SubmissionError(
            "this run cannot be continued from its checkpoint: its rounds would be repeated for other sums, since "
            "another site, or its record of contributions, is not what it was; start a new fit from the weights"
        )
    own: dict[str, Any] = (resumed.own if resumed is not None else None) or {"engine": {"in_flight": []}}
    for round_index in sorted({row[0] for row in own["engine"]["in_flight"]}):
        submissions.confirm(round_index, context, salt)
