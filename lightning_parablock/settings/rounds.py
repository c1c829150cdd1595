"""The options that say how long a round is and when its exchange is merged."""

from __future__ import annotations

from typing import Any, Literal, cast

from lightning_parablock.checks import whole
from lightning_parablock.options import OptionGroup, option, record
from lightning_parablock.settings.blocks import AUTO

MAX_AUTO_STEPS = 256
"""Largest number of local steps that ``local_steps="auto"`` chooses."""


def resolve_steps(local_steps: int | Literal["auto"], delay_steps: int | None) -> dict[str, Any]:
    """The two step counts as fields of Settings: None is local_steps, and "auto" is agreed on later."""
    steps = MAX_AUTO_STEPS if local_steps == AUTO else local_steps
    pending = ("local_steps", "delay_steps") if delay_steps is None else ("local_steps",)
    return {
        "local_steps": steps,
        "delay_steps": steps if delay_steps is None else delay_steps,
        "pending": pending if local_steps == AUTO else (),
    }


# Both options concern each other: the record that has both resolves them.
def _number_or_auto(given: Literal["auto"] | int) -> int:
    return cast(int, given)


def _number_or_none(given: int | None) -> int:
    return cast(int, given)


@record
class RoundOptions(OptionGroup):
    """Length and delay of a round."""

    local_steps: int = option(
        default=16,
        converter=_number_or_auto,
        check=whole(1, "optimizer steps per round, or 'auto'"),
        help='Local steps per round (K), in optimizer steps, or "auto". With "auto" the clients agree, after four '
        "steps, on the smallest number from 4 to 256 that hides every exchange behind the computation of the slowest "
        "client; a resumed run keeps it.",
    )
    delay_steps: int = option(
        default=None,
        converter=_number_or_none,
        check=whole(0, "optimizer steps; 0 is blocking"),
        help="Optimizer steps between the end of a round and the merge of its exchange; None means local_steps, 0 "
        "waits for every exchange. The default is ParaBlock with one round of staleness, 0 is plain federated block "
        "coordinate descent, and twice local_steps keeps two exchanges in flight.",
    )
    delay_warmup_rounds: int = option(
        default=0,
        check=whole(0, "rounds without delay at the start of the run"),
        help="Number of rounds, from round 0 on, whose exchange is waited for before the next round begins; later "
        "rounds have delay_steps. While the loss falls fast a stale block costs the most.",
    )
