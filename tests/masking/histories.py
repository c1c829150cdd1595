"""Random histories of federations whose servers keep all that they ever received.

Sites join, are lost, return, stop and resume from an older checkpoint with the same members or with others, start new
runs, lose their record of contributions, change their data. Masks, keys and the rule of contributions are the
package's; training is replaced by its worst case: what a site contributes is a function of its data, its salt, the
round and the block alone, so that every repetition without a new salt gives equal integers.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_parablock.masking import stretches
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.opening import check_opened
from lightning_parablock.masking.ring import Ring
from tests.masking.sessions import session

PIECE_BYTES = 32
"""Messages are compared in pieces of this length."""
_CUTS = ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3))
"""Shards and chunks of a block of three pieces."""
LARGEST = 3
"""Contributions are small, as most are: differences that show them are easy to see."""

Contribution = tuple[str, int, bytes, int, int]
"""Site, state of its data, salt, round, block."""


@dataclass
class Site:
    """One site: what is on its disk.

    Attributes:
        name: Of the site.
        secret: Made with its record.
        data: State of its data.
        record: Its stretches.
        first_salt: Made with its record, too.
    """

    name: str
    secret: bytes
    data: int = 0
    record: stretches.Stretches = ()
    first_salt: bytes = stretches.NO_SALT

    def identifier(self) -> bytes:
        """As the record of contributions makes it."""
        return hashlib.sha256(self.secret + bytes([self.data])).digest()


@dataclass(frozen=True)
class Message:
    """What a server received: a chunk of one site's masked contribution.

    Attributes:
        contribution: What is in it.
        session: Number of the process start or generation.
        lane: What is in it of the contribution.
        values: Shape (n,).
    """

    contribution: Contribution
    session: int
    lane: Lane
    values: NDArray[np.signedinteger]


@dataclass
class Spoiler:
    """What a federation does wrong.

    Attributes:
        redoes: After a loss the survivors send the same contributions once more.
        never_salts: A repeated round has the same batches, whoever takes part.
        ignores_identifiers: A lost record or other data change nothing for the other sites.
        one_session_key: Sites keep their session keys.
    """

    redoes: bool = False
    never_salts: bool = False
    ignores_identifiers: bool = False
    one_session_key: bool = False


@dataclass
class History:
    """One federation from its first start, with all that servers have seen.

    Args:
        seed: Decides everything.
        spoiler: What it does wrong.
        is_masked: Whether there are messages; the sums alone take a tenth of the time.
    """

    seed: int
    spoiler: Spoiler = field(default_factory=Spoiler)
    is_masked: bool = True

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.ring = Ring(self.dice.choice((1, 2)))
        self.sites = [Site(f"site-{n}", self.dice.randbytes(8)) for n in range(self.dice.randint(3, 6))]
        self.messages: list[Message] = []
        self.sums: dict[Contribution, set[frozenset[Contribution]]] = defaultdict(set)
        self.events: list[str] = []
        self.round = self.checkpoint = self.session = 0
        self._open(self._some_sites(), "start")
        for _ in range(self.dice.randint(3, 9)):
            self._step()

    def _step(self) -> None:
        match self.dice.choices(range(8), (40, 18, 8, 18, 6, 4, 3, 3))[0]:
            case 0:
                self._train(1.0)
            case 1:
                self._lose()
            case 2:
                self._open(self._some_sites(), "other members")
            case 3:
                self.round = self.checkpoint
                same = self.dice.random() < 0.4
                self._open(self.members if same else self._some_sites(), "resume")
            case 4:
                self.checkpoint = self.round
            case 5:
                self.round = self.checkpoint = 0
                self._open(self._some_sites(), "new run")
            case 6:
                lost = self.dice.choice(self.sites)
                lost.secret, lost.first_salt, lost.record = self.dice.randbytes(8), self.dice.randbytes(4), ()
                self._open(self.members, f"{lost.name} has lost its record")
            case _:
                changed = self.dice.choice(self.sites)
                changed.data += 1
                self._open(self.members, f"the data of {changed.name} have changed")

    def _some_sites(self) -> list[Site]:
        return sorted(self.dice.sample(self.sites, self.dice.randint(3, len(self.sites))), key=lambda site: site.name)

    def _open(self, members: Sequence[Site], why: str) -> None:
        """A process start or a generation: new session keys."""
        self.members, self.session = list(members), self.session + 1
        names = [site.name for site in members]
        label = f"{self.seed}" if self.spoiler.one_session_key else f"{self.seed}/{self.session}"
        self.masks = {name: Masks(name, names, session(name, names, label)) for name in names}
        ignored = self.spoiler.ignores_identifiers
        identifiers = {site.name: b"" if ignored else site.identifier() for site in members}
        self.context = stretches.context_of("settings", identifiers)
        self.events.append(f"{why}: {', '.join(names)} from round {self.round}")

    def _cohort(self) -> list[Site]:
        """Who trains in a round, drawn from what all members know."""
        dice = random.Random(f"{self.context}/{self.round}")
        return sorted(dice.sample(self.members, dice.randint(3, len(self.members))), key=lambda site: site.name)

    def _train(self, arrives: float) -> list[Contribution]:
        """One round of one block; each chunk arrives with this probability."""
        salts = {site.name: self._salt(site) for site in self.members}
        cohort, block = self._cohort(), self.round % 2
        made: list[Contribution] = [(s.name, s.data, salts[s.name], self.round, block) for s in cohort]
        for site, contribution in zip(cohort, made, strict=True):
            if not self.spoiler.never_salts:
                stretches.refuse_unless_begun(site.record, self.round, self.context, contribution[2])
        self._send(made, arrives)
        self.round += 1
        return made

    def _salt(self, site: Site) -> bytes:
        if self.spoiler.never_salts:
            return b""
        site.record, salt = stretches.begin(
            site.record, self.round, self.context, site.first_salt, lambda: self.dice.randbytes(4)
        )
        return salt

    def _lose(self) -> None:
        """A site is lost in the middle of a round; without it the others form a generation, if enough are left."""
        made = self._train(0.8)
        left = [site for site in self.members if site.name != made[0][0]]
        if len(left) < 3:
            self._open(self.members, "all stop and resume")
            return
        self._open(left, f"{made[0][0]} is lost")
        again = [contribution for contribution in made if contribution[0] != made[0][0]]
        if self.spoiler.redoes and len(again) >= 3:
            self._send(again, 1.0)

    def _send(self, made: Sequence[Contribution], arrives: float) -> None:
        """Every site sends the scales of its contribution, one piece, and then its values, chunk by chunk."""
        self._send_lane(made, "scales", Ring(4), (0, 1), arrives)
        self._send_lane(made, "values", self.ring, self.dice.choice(_CUTS), arrives)

    def _send_lane(
        self, made: Sequence[Contribution], lane: Lane, ring: Ring, cuts: Sequence[int], arrives: float
    ) -> None:
        """Every site masks a lane; a server that has all parts of a chunk opens its sum."""
        sites = [contribution[0] for contribution in made]
        for low, high in pairwise(cuts):
            if not self.is_masked:
                arrived = [self.dice.random() <= arrives for _ in made]
                if all(arrived):
                    self._opened(made)
                continue
            first, stop = (cut * PIECE_BYTES // ring.bytes_per_value for cut in (low, high))
            plain = [integers(contribution, ring, high)[first:stop] for contribution in made]
            total, n_arrived = torch.zeros(stop - first, dtype=ring.dtype), 0
            for contribution, values in zip(made, plain, strict=True):
                message, (site, *_, round_index, block) = values.clone(), contribution
                self.masks[site].apply(message, round_index, block, lane, first, sites)
                if self.dice.random() <= arrives:
                    self.messages.append(Message(contribution, self.session, lane, message.numpy()))
                    ring.add(total, message)
                    n_arrived += 1
            if n_arrived == len(made):
                check_opened(total, len(made), LARGEST, f"history {self.seed}, round {self.round}")
                assert torch.equal(total, torch.stack(plain).sum(0, dtype=ring.dtype))
                self._opened(made)

    def _opened(self, made: Sequence[Contribution]) -> None:
        for contribution in made:
            self.sums[contribution].add(frozenset(made))


def integers(contribution: Contribution, ring: Ring, n_pieces: int) -> torch.Tensor:
    """The first integers of a contribution."""
    n_values = n_pieces * PIECE_BYTES // ring.bytes_per_value
    drawn = hashlib.shake_128(repr(contribution).encode()).digest(n_values)
    numbers = np.frombuffer(drawn, np.uint8).astype(np.int64) % (2 * LARGEST + 1) - LARGEST
    return torch.from_numpy(numbers).to(ring.dtype)
