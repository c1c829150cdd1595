"""``lightning-parablock federation`` ``add``, ``revoke`` and ``collect``: the next version, and its signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_parablock.cli.commands.federation_create import keep_at_hub
from lightning_parablock.cli.commands.federation_options import (
    add_hub_keys_option,
    keys_folder,
    next_step,
    signing_steps,
    wrote,
)
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS_OF
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.federation import add, collect, revoke
from lightning_parablock.site_kit.files import PUBLIC, write_whole
from lightning_parablock.site_kit.hub_keys import HubKeys, default_hub_folder
from lightning_parablock.site_kit.memory import Memory
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.system.places import refuse_unwritable_file

_COMMANDS = COMMANDS_OF["federation"]
_AFTER = (
    "The old signatures do not count for it: every site that is in it signs again, and from then on refuses all "
    "older versions. Run it on the hub, whose links are written anew."
)


def add_parser() -> CommandParser:
    """The options of ``federation add``."""
    parser = CommandParser(prog=_COMMANDS["add"].prog, description=f"{_COMMANDS['add'].help} {_AFTER}")
    _add_roster(parser)
    parser.add_argument("--cards", type=str, nargs="+", required=True, help="Files with the cards of the new sites.")
    add_hub_keys_option(parser)
    return parser


def revoke_parser() -> CommandParser:
    """The options of ``federation revoke``."""
    parser = CommandParser(prog=_COMMANDS["revoke"].prog, description=f"{_COMMANDS['revoke'].help} {_AFTER}")
    _add_roster(parser)
    parser.add_argument("names", metavar="NAME", type=str, nargs="+", help="Names of the sites to remove.")
    add_hub_keys_option(parser)
    return parser


def collect_parser() -> CommandParser:
    """The options of ``federation collect``."""
    parser = CommandParser(
        prog=_COMMANDS["collect"].prog,
        description=f"{_COMMANDS['collect'].help} All must be copies of one version; every signature is checked. It "
        "needs no keys.",
    )
    _add_roster(parser)
    parser.add_argument("copies", metavar="COPY", type=str, nargs="+", help="Signed copies of it.")
    return parser


def run_add(args: Sequence[str]) -> None:
    """Run ``federation add`` on the words that follow it.

    Raises:
        ConfigurationError: the file or a card cannot be used, or a file cannot be written.
    """
    options = add_parser().parse_args(list(args))
    cards = [Card.read(Path(card).expanduser()) for card in options.cards]
    _change(Path(options.roster).expanduser(), keys_folder(options), lambda roster: add(roster, cards))


def run_revoke(args: Sequence[str]) -> None:
    """Run ``federation revoke`` on the words that follow it.

    Raises:
        ConfigurationError: the file cannot be used, a site is not in it, or a file cannot be written.
    """
    options = revoke_parser().parse_args(list(args))
    _change(Path(options.roster).expanduser(), keys_folder(options), lambda roster: revoke(roster, options.names))


def run_collect(args: Sequence[str]) -> None:
    """Run ``federation collect`` on the words that follow it.

    Raises:
        ConfigurationError: a file is not to be trusted, or they are not copies of one version.
    """
    options = collect_parser().parse_args(list(args))
    path = Path(options.roster).expanduser()
    roster = collect([Roster.read(path), *(Roster.read(Path(copy).expanduser()) for copy in options.copies)])
    write_whole(path.resolve(), roster.text, mode=PUBLIC)
    signed = ", ".join(roster.signatures) or "no site"
    print(f"{path}: {roster.federation}, version {roster.version}, signed by {signed}")
    print(next_step(roster, path))


def _add_roster(parser: CommandParser) -> None:
    parser.add_argument("roster", metavar="FILE", type=str, help="The federation file; it is replaced.")


def _change(path: Path, folder: Path | None, change: Callable[[Roster], Roster]) -> None:
    """Replace a file by its next version, and the hub's links by those of it."""
    old = Roster.read(path)
    refuse_unwritable_file(path, "the federation file")
    if old.hub is None:
        keys, roster = None, change(old)
    else:
        keys = HubKeys.read(folder or default_hub_folder(old.federation))
        newest = Memory(keys.folder, old.federation).refuse_older(old)
        roster = old if newest is not None and _is_made(old, newest, change) else change(old)
    write_whole(path.resolve(), roster.text, mode=PUBLIC)
    started = [] if keys is None else keep_at_hub(roster, keys)
    print("\n".join((wrote(roster, path), *started, *signing_steps(roster, path))))


def _is_made(roster: Roster, newest: Roster, change: Callable[[Roster], Roster]) -> bool:
    """Whether a file has this change of the newest known version: the command was cut short after it had written it."""
    if roster.previous != newest.digest.hex():
        return False
    try:
        return change(newest).digest == roster.digest
    except ConfigurationError:  # another change was cut short; this one follows it
        return False
