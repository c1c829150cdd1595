"""``lightning-parablock site join``: writes the links of a site to the others, once all have signed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_parablock.cli.commands.federation_options import add_site_keys_option, keys_folder
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS_OF, PROGRAM
from lightning_parablock.site_kit.files import write_whole
from lightning_parablock.site_kit.identity import default_folder
from lightning_parablock.site_kit.membership import find_identity, require_joinable
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.wireguard import outer_interface, site_files

_COMMAND = COMMANDS_OF["site"]["join"]


def join_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} The links are files for wg-quick (package wireguard-tools), beside the site's "
        "keys: an outer layer to the hub, and an inner one to the other sites, which the hub cannot read. Starting "
        "them needs root; this command does not. An older version than the newest that this site knows is refused. Run "
        "it again after every change of the federation.",
    )
    parser.add_argument("roster", metavar="FILE", type=str, help="The federation file.")
    add_site_keys_option(parser)
    return parser


def run_join(args: Sequence[str]) -> None:
    """Run ``site join`` on the words that follow it and print how to start links and run.

    Raises:
        ConfigurationError: the file is not to be trusted, or the keys cannot be used.
    """
    options = join_parser().parse_args(list(args))
    path = Path(options.roster).expanduser()
    roster = Roster.read(path)
    identity = find_identity(roster, keys_folder(options))
    site = require_joinable(roster, identity)
    files = {identity.folder / f"{name}.conf": text for name, text in site_files(roster, site, identity).items()}
    known = any(file.exists() for file in files)
    for file, text in files.items():
        write_whole(file, text)
    print(f"site {site.name} is in version {roster.version} of federation {roster.federation}, signed by all sites\n")
    steps = (
        _start(roster, site.card.endpoint, list(files), known=known),
        _check(roster, site.name),
        _run(path, site.name, identity.folder),
    )
    print("\n".join(line for step in steps for line in step))


def _start(roster: Roster, endpoint: str | None, files: Sequence[Path], *, known: bool) -> Iterator[str]:
    yield "1. As root, start the links again; they were here before:" if known else "1. As root, start the links:"
    if known:
        yield from (f"  wg-quick down {_quoted(file.absolute())}" for file in reversed(files))
    yield from (f"  wg-quick up {_quoted(file.absolute())}" for file in files)
    if shutil.which("wg-quick") is None:
        yield "  (wg-quick is not installed here: it is in the package wireguard-tools)"
    if roster.hub is not None:
        outer = outer_interface(roster)
        yield (
            f"  Through {outer} the hub and the other sites reach UDP port {roster.inner_port} of this host, and ping, "
            "but nothing else that listens here. If a lighthouse is to run here, then, also as root:"
        )
        yield f"  iptables -t raw -I {outer} -p tcp --dport 29510 -j RETURN"
    else:
        yield f"  The other sites reach this one at {endpoint}: its UDP port must be open."


def _check(roster: Roster, here: str) -> Iterator[str]:
    yield "2. Try them, once the other sites have started theirs:"
    yield from (f"  ping -c 3 {site.inner_address}   # site {site.name}" for site in roster.sites if site.name != here)


def _run(path: Path, site: str, folder: Path) -> Iterator[str]:
    yield "3. Start the run:"
    keys = "" if folder == default_folder(site) else f" --strategy.keys {_quoted(folder)}"
    yield f"  {PROGRAM} fit --config run.yaml --strategy.federation {_quoted(path)}{keys} --site {site}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
