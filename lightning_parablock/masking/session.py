"""What the members of one generation share, pair by pair, and the least number of sites in a sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_parablock.errors import TooFewSitesError
from lightning_parablock.masking.agreement import Lane, pair_key
from lightning_parablock.masking.streams import MaskStream

MIN_SITES = 3
"""Least number of sites in a sum: with two, each learns the other's contribution from the sum."""


@dataclass(frozen=True)
class Session:
    """What a site shares with every other member until the next process start or generation.

    Attributes:
        secrets: X25519 secret by name of the other member.
        salt: Hash of the members' signed statements.
    """

    secrets: Mapping[str, bytes] = field(repr=False)
    salt: bytes

    def streams(
        self, site: str, members: Sequence[str], among: Collection[str], round_index: int, block: int, lane: Lane
    ) -> list[tuple[bool, MaskStream]]:
        """The streams that a site shares with each other site of a sum, and whether it adds them or subtracts them.

        Args:
            site: This site.
            members: All members of the session, sorted.
            among: Those with a contribution, this site included.
            round_index: Round of the exchange.
            block: Index of its block.
            lane: What is masked.
        """
        here = members.index(site)
        found: list[tuple[bool, MaskStream]] = []
        for there, name in enumerate(members):
            if name in among and name != site:
                pair = (min(here, there), max(here, there))
                key = pair_key(self.secrets[name], self.salt, *pair, round_index, block, lane)
                found.append((here < there, MaskStream(key)))
        return found


def refuse_too_few(sites: Sequence[str], min_sites: int, what: str) -> None:
    """Raise a TooFewSitesError unless a sum has enough sites.

    Args:
        sites: Those with a part in it.
        min_sites: How many there must be.
        what: Which sum or generation, for the message.
    """
    if len(set(sites)) < min_sites:
        raise TooFewSitesError(
            f"{what} has {len(set(sites))} sites ({', '.join(sites)}), and a secure sum needs {min_sites} or more "
            "(min_sites); with fewer, the sum shows too much of each contribution"
        )
