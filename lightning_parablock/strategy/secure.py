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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer

from lightning_parablock.checkpointing.client_states import PATH_ONLY
from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.checks import require
from lightning_parablock.errors import CheckpointError, ConfigurationError, SubmissionError
from lightning_parablock.loading.digests import why_not_known
from lightning_parablock.masking.agreement import SessionKey
from lightning_parablock.masking.recorded import Record, RecordedMasks
from lightning_parablock.masking.release import require_installed
from lightning_parablock.masking.statements import SignedStatement, Statement
from lightning_parablock.masking.stretches import context_of
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.masking.verifying import session_of
from lightning_parablock.server.aggregations import SecureAggregation
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.membership import Member
from lightning_parablock.strategy.conditions import conditions_here, repeats_bits
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.refused_together import refused_together
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

KEY = "secure"
"""Of the sidecar: what a site needs to repeat its rounds."""

_WITH = "aggregation='secure'"
_NONCE_BYTES = 16

KNOWN_ORDERS = (
    "use a DataLoader over a data set that has a length and indices, with shuffle=True or a sampler that draws from "
    "torch's random generator alone"
)
"""What a training loader must be for a salt to change its batches; in messages."""


def require_member(member: Member | None, backend: str) -> Member:
    """This site of a federation, with which secure sums can be made.

    Raises:
        ConfigurationError: the settings name no federation, or something that masks need is missing.
    """
    require_installed()
    require(backend != "nccl", f"process_group_backend='nccl' with {_WITH} has not been run; use 'gloo'")
    if member is None:
        raise ConfigurationError(
            f"{_WITH} needs federation=federation.yaml, the roster that all sites have signed, and site, this site's "
            "name in it: without them no site knows whose masks they are. See docs/sites.md"
        )
    return member


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
        """For the sidecar; ``data`` are digests of the site's data."""
        return {"nonce": self.nonce.hex(), "salt": self.salt.hex(), "here": self.here, "data": json.dumps(list(data))}

    def refuse_fixed_orders(self, is_fixed: Sequence[bool | None]) -> None:
        """Refuse data whose batches cannot be others than in an earlier run of this site.

        Args:
            is_fixed: Of each hosted client; None where it is not known.

        Raises:
            ConfigurationError: the salt would change nothing, or it cannot be known whether it does.
        """
        if not self.salt:
            return
        require(
            not any(is_fixed),
            f"this site has contributed to secure sums before, and with {_WITH} a run that is not the same one must "
            "draw other batches, but the training loader yields them in a fixed order; use shuffle=True",
        )
        require(
            None not in is_fixed,
            f"this site has contributed to secure sums before, and with {_WITH} a run that is not the same one must "
            f"draw other batches, which cannot be seen of the training loader; {KNOWN_ORDERS}",
        )

    def refuse_other_data(self, saved: Mapping[str, str] | None, data: Sequence[str]) -> None:
        """Make sure that a resumed run does not repeat rounds with other data than it had.

        Args:
            saved: What the checkpoint says; None for a new fit.
            data: Digests of the site's data.

        Raises:
            CheckpointError: the data are others, or cannot be compared.
        """
        unknown = next(filter(None, map(why_not_known, data)), None)
        if saved is None:
            if unknown is not None:
                log.warning(
                    f"parablock: this fit cannot be resumed from its checkpoints: with {_WITH} the training data must "
                    f"be the same then, and these cannot be compared: {unknown}"
                )
        elif saved["data"] != json.dumps(list(data)):
            what = "are not those with which the checkpoint was saved, or make other batches"
            if unknown is not None:
                what = f"cannot be compared with those with which the checkpoint was saved ({unknown})"
            raise CheckpointError(
                f"this site's training data {what}, and with {_WITH} a round that is repeated with other data shows "
                "what they are; bring back the data, the tokenizer, the order and the batch size, or start a new fit "
                "from the weights"
            )


def saved_of(resumed: Resumed | None) -> Mapping[str, str] | None:
    """What the checkpoint that is resumed says of this site's secure sums; None for a new fit."""
    return None if resumed is None or resumed.own is None else resumed.own[KEY]


def open_secure(
    ranks: RankStrategy, trainer: Trainer, settings: Settings, member: Member, resumed: Resumed | None
) -> SecureFit:
    """Exchange statements, verify those of all sites, and find the salt; collective.

    Args:
        ranks: The ranks, which have met.
        trainer: The trainer.
        settings: The run's settings.
        member: Roster and identity.
        resumed: The checkpoint that is resumed; None for a new fit.

    Raises:
        ConfigurationError: a site is no member, or too few are.
        StatementError: a site states something else than this one.
        CheckpointError: the checkpoint cannot be repeated to the bit here.
        SubmissionError: this site's record cannot be used, or has another salt for the round.

    What one site refuses is a ConfigurationError at all others.
    """
    here = json.dumps(conditions_here(trainer, ranks.root_device, settings), sort_keys=True)
    repeats = repeats_bits(ranks.root_device)
    own = refused_together(ranks, lambda: _OwnSide.of(member, resumed, here, repeats=repeats))
    key, members = SessionKey.new(), tuple(sorted(ranks.site_names))
    statement = SignedStatement.by(
        member.identity,
        Statement(
            site=member.identity.card.name,
            run=ranks.gather_objects(own.nonce.hex())[0],
            roster=member.roster.digest,
            generation=0,
            members=members,
            kept=(),
            dropped=(),
            session_key=key.public,
            identifier=own.identifier,
        ),
    )
    texts = ranks.gather_objects(statement.text.decode("ascii"))

    def verified() -> RecordedMasks:
        choice = settings.aggregation
        assert isinstance(choice, SecureAggregation)
        received = [
            SignedStatement.parse(_bytes(said), site) for said, site in zip(texts, ranks.site_names, strict=True)
        ]
        session, identifiers = session_of(statement, key, received, member.roster, choice.min_sites)
        record = own.record(context_of(_deciding(settings), identifiers), resumed)
        return RecordedMasks(statement.statement.site, members, session, record, choice.min_sites)

    masks = refused_together(ranks, verified)
    return SecureFit(masks, masks.salt, own.nonce, here)


@dataclass(frozen=True)
class _OwnSide:
    """What a site brings to the agreement.

    Attributes:
        submissions: Its record of contributions.
        saved: What the checkpoint that is resumed says; None for a new fit.
        nonce: Names the run here.
        identifier: Names the record and the run, for the other sites.
    """

    submissions: Submissions
    saved: Mapping[str, str] | None
    nonce: bytes
    identifier: bytes

    @classmethod
    def of(cls, member: Member, resumed: Resumed | None, here: str, *, repeats: bool) -> _OwnSide:
        if not repeats:
            _refuse_to_repeat(resumed)
        saved = _saved(resumed, here)
        submissions = Submissions(member.identity.folder)
        nonce = secrets.token_bytes(_NONCE_BYTES) if saved is None else bytes.fromhex(saved["nonce"])
        return cls(submissions, saved, nonce, submissions.identifier(nonce))

    def record(self, context: str, resumed: Resumed | None) -> Record:
        """The record for sums of this context, with the salt of the round that begins."""
        if self.saved is None:
            salt = self.submissions.begin(0, context, self.submissions.fresh_salt())
        else:
            salt = bytes.fromhex(self.saved["salt"])
            self._continue(context, salt, resumed)
        return Record(self.submissions, context, salt)

    def _continue(self, context: str, salt: bytes, resumed: Resumed | None) -> None:
        own: dict[str, Any] = (resumed.own if resumed is not None else None) or {"engine": {"in_flight": []}}
        in_flight = sorted({row[0] for row in own["engine"]["in_flight"]})
        try:
            self.submissions.begin_again(0 if resumed is None else resumed.round, context, salt, in_flight)
        except SubmissionError as error:
            raise SubmissionError(
                f"this run cannot be continued from its checkpoint, since another site, a setting, or a record of "
                f"contributions is not what it was: {error}; bring that back, or start a new fit from the weights"
            ) from error


def _deciding(settings: Settings) -> str:
    """The settings that decide what is in a sum, for a context.

    How a block is cut into messages and who adds them up is none of it: whole numbers add up to the same bits.
    """
    return json.dumps(sorted(item for item in settings.fingerprint().items() if item[0] not in PATH_ONLY))


def _bytes(text: object) -> bytes:
    return text.encode("utf-8", "replace") if isinstance(text, str) else b""


def _refuse_to_repeat(resumed: Resumed | None) -> None:
    """This device has other bits each time."""
    what = (
        f"with {_WITH} a resumed run must repeat its rounds with the same bits, which this device does with "
        "Trainer(deterministic=True) alone"
    )
    if resumed is not None:
        raise CheckpointError(f"{what}, from the first round on; start a new fit from the weights")
    log.warning(f"parablock: this fit cannot be resumed from its checkpoints: {what}")


def _saved(resumed: Resumed | None, here: str) -> dict[str, str] | None:
    if resumed is None:
        return None
    with reading("what the checkpoint says of this site's secure sums", CheckpointError):
        found = saved_of(resumed) or {}
        saved = {name: str(found[name]) for name in ("nonce", "salt", "here", "data")}
        before: dict[str, str] = {str(name): str(value) for name, value in json.loads(saved["here"]).items()}
        for name in ("nonce", "salt"):
            bytes.fromhex(saved[name])
    if saved["here"] != here:
        now: dict[str, str] = json.loads(here)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        raise CheckpointError(
            f"the checkpoint was saved with {_listed(before, changed)} at this site, which now has "
            f"{_listed(now, changed)}: repeated rounds would have other bits, and with {_WITH} their difference could "
            "be read; make these the same again, or start a new fit from the weights"
        )
    return saved


def _listed(conditions: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {conditions.get(name, 'not noted')}" for name in names)
