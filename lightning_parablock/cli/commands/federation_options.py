"""What the commands of ``site`` and ``federation`` share: folders of keys, and the next step for a file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import Namespace

from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import PROGRAM
from lightning_parablock.site_kit.roster import Roster


def add_site_keys_option(parser: CommandParser) -> None:
    """The option that names the folder of a site's keys."""
    parser.add_argument(
        "--keys",
        type=str | None,
        default=None,
        help="Folder with the site's keys. Default: the one in ~/.lightning-parablock that the file has a card of.",
    )


def add_hub_keys_option(parser: CommandParser) -> None:
    """The option that names the folder of the hub's key."""
    parser.add_argument(
        "--keys",
        type=str | None,
        default=None,
        help="Folder with the hub's key. Default: ~/.lightning-parablock/FEDERATION-hub.",
    )


def keys_folder(options: Namespace) -> Path | None:
    """The folder of ``--keys``; None where it was not given."""
    given = options["keys"]  # options.keys is a method of namespaces
    return Path(given).expanduser() if given else None


def wrote(roster: Roster, path: Path) -> str:
    """That a version was written."""
    return f"wrote {path}: {roster.federation}, version {roster.version}, sites {', '.join(roster.names)}"


def signing_steps(roster: Roster, path: Path) -> Iterator[str]:
    """What to do with a version that no site has signed."""
    copies = " ".join(f"{name}.yaml" for name in roster.names)
    yield f"Send {path.name} to all sites. At each of them:"
    yield f"  {PROGRAM} site approve {path.name}"
    yield "They send their signed copies back, each under a name of its own. Then here:"
    yield f"  {PROGRAM} federation collect {shlex.quote(str(path))} {copies}"


def next_step(roster: Roster, path: Path) -> str:
    """What to do with a file that has some signatures, or all."""
    missing = roster.unsigned_by()
    if missing:
        return (
            f"Not signed yet by {', '.join(missing)}. Send the file to one of them, or back to the person who collects "
            f"the signatures with {PROGRAM} federation collect."
        )
    return f"All sites have signed it. Send it to every site; each runs {PROGRAM} site join {path.name}"
