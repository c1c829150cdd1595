"""The options of private links: the roster of the sites' own network, and this site's keys."""

from __future__ import annotations

from typing import Any

from lightning_parablock.checks import require
from lightning_parablock.options import OptionGroup, option, record


def _check_path(name: str, value: Any) -> None:
    require(value is None or (isinstance(value, str) and bool(value)), f"{name} must be a path, got {value!r}")


@record
class PrivateOptions(OptionGroup):
    """Private links between sites."""

    federation: str | None = option(
        default=None,
        kind="own",
        check=_check_path,
        help="Path of the roster `federation.yaml` that all sites have signed; None means that sites connect over "
        "whatever network there is. With it the run uses the private network of the federation and no other: "
        "exchanges, stores, desks and the rendezvous are at inner addresses, the lighthouse at an outer one, and any "
        "other address is refused before training. See docs/sites.md.",
    )
    keys: str | None = option(
        default=None,
        kind="own",
        check=_check_path,
        help="Folder of this site's keys, which `lightning-parablock site init` has made; None means "
        "~/.lightning-parablock/SITE. It belongs to `federation`.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.keys is None or self.federation is not None,
            f"keys={self.keys!r} belongs to private links, which federation turns on; give federation, or leave out "
            "keys",
        )
