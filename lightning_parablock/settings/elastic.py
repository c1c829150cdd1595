"""The options of elastic membership: the run continues when sites are lost, and sites may join it at any time."""

from __future__ import annotations

from typing import Any

from lightning_parablock.checks import above_zero, require, whole
from lightning_parablock.options import OptionGroup, option, options_of, record


def _check_lighthouse(name: str, value: Any) -> None:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    require(
        value is None or bool(host and port.isdecimal() and 0 < int(port) < 65536),
        f"{name} must be host:port, such as hub.example.org:29510, got {value!r}",
    )


@record
class ElasticOptions(OptionGroup):
    """Elastic membership."""

    lighthouse: str | None = option(
        default=None,
        kind="own",
        check=_check_lighthouse,
        help='Address "host:port" of the run\'s lighthouse (`lightning-parablock lighthouse`), which turns on elastic '
        "membership; None means a fixed membership. Every site starts its own process with its own `site`, `devices` "
        "and `num_nodes` are 1, and no launcher is needed. A run continues when sites are lost, and takes in sites "
        "that come back or are new.",
    )
    min_clients: int | None = option(
        default=None,
        kind="path",
        check=whole(1, "sites", or_none=True),
        help="Number of sites that found an elastic run, and without which it does not continue. The safe choice is "
        "more than half of all sites that may ever take part: two halves of a broken network then cannot both "
        "continue. Required with `lighthouse`.",
    )
    rejoin_timeout_s: float = option(
        default=600.0,
        kind="path",
        check=above_zero("seconds"),
        help="Seconds for which an elastic run waits for enough sites before it saves the committed model and ends "
        "with an error.",
    )
    admit_every_rounds: int = option(
        default=1,
        kind="path",
        check=whole(1, "rounds"),
        help="Smallest number of rounds of an elastic run between two admissions of new or returning sites. Each "
        "admission reconnects all members, which takes about a second.",
    )
    backup_share: float = option(
        default=0.5,
        kind="own",
        check=above_zero("times the bytes of the exchange"),
        help="Cap on this site's backups of server state, as a share of the bytes that it uploads in exchanges of an "
        "elastic run. Servers with momentum or lossy compression send their state to another site, which takes their "
        "place if they are lost; with a low cap it gets older versions, which costs momentum and never the model. "
        "Sites may have different values.",
    )
    silence_s: float = option(
        default=5.0,
        kind="path",
        check=above_zero("seconds"),
        help="Seconds without a sign of life at the lighthouse after which a site of an elastic run is lost.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lighthouse is None:
            for each in options_of(ElasticOptions):
                require(
                    getattr(self, each.name) == each.default,
                    f"{each.name} belongs to elastic membership, which lighthouse='host:port' turns on; give "
                    f"lighthouse, or leave out {each.name}",
                )
            return
        require(
            self.min_clients is not None,
            f"lighthouse={self.lighthouse!r} needs min_clients, the number of sites that found the run: more than half "
            "of all sites is the safe choice",
        )
        require(
            self.rejoin_timeout_s > self.silence_s,
            f"rejoin_timeout_s ({self.rejoin_timeout_s:g}) must be longer than silence_s ({self.silence_s:g}), else "
            "the run ends before it knows which sites are lost",
        )

    @property
    def is_elastic(self) -> bool:
        """Whether sites may be lost and join."""
        return self.lighthouse is not None
