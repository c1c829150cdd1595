"""Secure sums in a fit whose sites come and go: each generation agrees on masks of its own, and a fit begins without.

Every process of a site but its first one draws other batches than all before it. A site that comes back, or continues
from a checkpoint, may repeat rounds with other members, and what it contributed to them before may be part of a sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_parablock.checks import require
from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.server.aggregations import SecureAggregation
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.membership import Member
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.refused_together import refused_together
from lightning_parablock.strategy.secure import KNOWN_ORDERS

_WITH = "with aggregation='secure' and lighthouse"
_NONCE_BYTES = 16


@dataclass(frozen=True)
class ElasticSums:
    """What one fit of a site has for secure sums.

    Attributes:
        maker: Agrees on the masks of each generation.
    """

    maker: MaskMaker

    @property
    def salt(self) -> bytes:
        """Mixed into the seeds of all that the site draws; empty for nothing."""
        return self.maker.salt

    def refuse_fixed_orders(self, is_fixed: Sequence[bool | None]) -> None:
        """Refuse data whose batches are the same whenever they are drawn.

        A block that was trained in a dropped round is trained again from the same W, with other members.

        Args:
            is_fixed: Of each hosted client; None where it is not known.

        Raises:
            ConfigurationError: this site's are, or it cannot be known whether they are.
        """
        if any(is_fixed):
            raise ConfigurationError(
                f"the training loader yields its batches in a fixed order, and {_WITH} that is not supported: a site "
                "that comes back, or trains a block again after a dropped exchange, could contribute the same delta to "
                "a sum of other sites; use shuffle=True"
            )
        require(
            None not in is_fixed,
            f"it cannot be seen of the training loader whether its batches are others when it is begun again, and "
            f"{_WITH} they must be: a site that comes back could contribute the same delta to a sum of other sites; "
            f"{KNOWN_ORDERS}",
        )


def open_elastic_sums(ranks: RankStrategy, settings: Settings, member: Member, module: nn.Module) -> ElasticSums:
    """Make sure that this site can take part, and find the salt; collective.

    Args:
        ranks: The sites of the run.
        settings: The run's settings.
        member: Roster and identity.
        module: The model.

    Raises:
        ConfigurationError: another site has another roster, or the module has buffers that a joiner would get.
        SubmissionError: this site's record of contributions cannot be used.

    What one founder refuses is a ConfigurationError at all others.
    """
    choice = settings.aggregation
    assert isinstance(choice, SecureAggregation)

    def own() -> MaskMaker:
        refuse_handed_buffers(module)
        submissions = Submissions(member.identity.folder)
        return MaskMaker(
            member=member,
            submissions=submissions,
            salt=submissions.fresh_salt(),
            nonce=secrets.token_bytes(_NONCE_BYTES),
            fingerprint=settings.fingerprint(),
            min_sites=choice.min_sites,
            bytes_per_value=choice.bytes_per_value,
        )

    return ElasticSums(refused_together(ranks, own))


def refuse_handed_buffers(module: nn.Module) -> None:
    """Refuse buffers that a site that joins would get from one member: they may come from that member's rows.

    Raises:
        ConfigurationError: names them.
    """
    kept = module.state_dict().keys()
    handed = [name for name, _ in module.named_buffers() if name in kept]
    require(
        not handed,
        f"buffers {', '.join(handed[:3])}{' and others' if len(handed) > 3 else ''} {_WITH} are not supported: a site "
        "that joins would get those of one member; use layers without running statistics, such as GroupNorm, and "
        "register constants with persistent=False",
    )
