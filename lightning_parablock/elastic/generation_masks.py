"""Masks of one generation: a new key and a signed statement of every member, before anything is masked.

Which exchange belongs to which generation's masks:

1. A record of the log has n, its first round, and the newest kept exchange. Where sums are secure, exchanges that are
   newer than the kept one and of rounds before n are dropped, whether or not any member has submitted them.
2. So the exchanges that are carried out in a generation are those of the rounds from its n to before the next record's.
   All its members take part in each of them, and no other site does. Its masks serve these exchanges and no others.
3. n is greater than every round that a survivor has started, and no round starts between the report and the opening.
   So no survivor has submitted a round of the new generation before, and a site that was lost, which may have, comes
   back with another salt: its batches are others.
4. A contribution is masked in one generation alone. A server that has every part of it opens that sum, whether the
   exchange is kept or dropped afterwards; no other sum ever has it.
5. A dropped exchange lands at the opening, at every member, with W as before it; the residual is the one before it too.
   Later exchanges of the block, which were encoded from the residual after it, are dropped with it.
6. Contexts of the site's record of contributions name the generation: a round that was masked for one generation is
   refused for any other, whatever went wrong (:mod:`lightning_parablock.masking.stretches`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_parablock.elastic.stores import Tell
from lightning_parablock.masking.agreement import SessionKey
from lightning_parablock.masking.recorded import Record, RecordedMasks
from lightning_parablock.masking.statements import SignedStatement, Statement
from lightning_parablock.masking.stretches import context_of
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.masking.verifying import session_of
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import Record as Generation
from lightning_parablock.site_kit.membership import Member


@dataclass(frozen=True)
class MaskMaker:
    """This process' side of all agreements on masks.

    Attributes:
        member: Roster and identity.
        submissions: The site's record of contributions.
        salt: Of all that this process draws: the site has contributed to nothing with it before.
        nonce: Random bytes that name this process: no other one repeats its contributions to the bit.
        fingerprint: Of the settings that all sites share.
        min_sites: Least number of sites in a sum.
        bytes_per_value: Width of the values.
    """

    member: Member
    submissions: Submissions
    salt: bytes = field(repr=False)
    nonce: bytes
    fingerprint: Mapping[str, str]
    min_sites: int
    bytes_per_value: int

    def agree(self, generation: Generation, dropped: Sequence[Key], run: str, tell: Tell) -> RecordedMasks:
        """State with whom this site takes part, verify the statements of all members, and make the masks.

        Args:
            generation: The record of the generation.
            dropped: Exchanges that it drops.
            run: Id of the run.
            tell: See :data:`~lightning_parablock.elastic.stores.Tell`.

        Raises:
            StatementError: a member states something else, or its statement is missing or forged.
            TooFewSitesError: fewer members than ``min_sites``.
            PeerLostError: a statement did not come in time.
        """
        key, identity = SessionKey.new(), self.member.identity
        members = tuple(sorted(generation.sites[client] for client in generation.members))
        own = SignedStatement.by(
            identity,
            Statement(
                site=identity.card.name,
                run=run,
                roster=self.member.roster.digest,
                generation=generation.generation,
                members=members,
                kept=(generation.kept,) if generation.kept[0] >= 0 else (),
                dropped=tuple(sorted(dropped)),
                session_key=key.public,
                identifier=self.submissions.identifier(self.nonce),
            ),
        )
        received = [SignedStatement.parse(text, site) for site, text in tell(own.text).items()]
        session, identifiers = session_of(own, key, received, self.member.roster, self.min_sites)
        where = json.dumps([sorted(self.fingerprint.items()), run, generation.generation])
        record = Record(self.submissions, context_of(where, identifiers), self.salt)
        return RecordedMasks(identity.card.name, members, session, record, self.min_sites)
