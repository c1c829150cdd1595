"""``lightning-parablock site approve``: shows a federation file, compares its fingerprint and signs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.cli.commands.federation_options import add_site_keys_option, keys_folder, next_step
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS_OF
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.site_kit.description import description
from lightning_parablock.site_kit.files import PUBLIC, write_whole
from lightning_parablock.site_kit.fingerprint import check_fingerprint
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import encoded
from lightning_parablock.site_kit.membership import find_identity
from lightning_parablock.site_kit.memory import Memory
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.system.exit_codes import INTERRUPTED
from lightning_parablock.system.places import refuse_unwritable_file

_COMMAND = COMMANDS_OF["site"]["approve"]
_QUESTION = "The fingerprint, as the other sites read it out (Ctrl-C: sign nothing): "


def approve_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} The people at the sites read the fingerprint to each other by telephone or in "
        "person: anyone who could alter the file on its way, the hub included, cannot alter that. The signature is "
        "added to the file. Either the file goes from site to site and then to all, or each site signs its own copy "
        "and sends it back, and federation collect makes one file of them.",
    )
    parser.add_argument("roster", metavar="FILE", type=str, help="The federation file.")
    parser.add_argument(
        "--fingerprint",
        type=str | None,
        default=None,
        help="What the other sites have read out, for scripts: 30 digits, with or without spaces. Default: ask for it.",
    )
    add_site_keys_option(parser)
    return parser


def run_approve(args: Sequence[str]) -> None:
    """Run ``site approve`` on the words that follow it.

    Raises:
        ConfigurationError: the file is not to be trusted, the fingerprint differs, or the keys cannot be used.
        SystemExit: Ctrl-C at the question.
    """
    options = approve_parser().parse_args(list(args))
    path = Path(options.roster).expanduser()
    roster = Roster.read(path)
    identity = find_identity(roster, keys_folder(options))
    memory, name = Memory(identity.folder, roster.federation), identity.card.name
    print(description(roster, name, memory.refuse_older(roster)), flush=True)
    if name in roster.signatures:
        print(f"\nsite {name} has signed {path} already")
    else:
        refuse_unwritable_file(path, "the federation file")
        _compare(roster, options.fingerprint)
        roster = _signed(roster, identity)
        memory.keep(roster)
        write_whole(path.resolve(), roster.text, mode=PUBLIC)
        print(f"\nsite {name} has signed {path}")
    print(next_step(roster, path))


def _compare(roster: Roster, given: str | None) -> None:
    if given is not None:
        check_fingerprint(roster.fingerprint, given)
        return
    print(f"\nfingerprint: {roster.fingerprint}\n")
    print("Compare it with all other sites by telephone or in person, not by the way this file has come.", flush=True)
    try:
        said = input(_QUESTION)
    except EOFError as error:
        print()
        raise ConfigurationError("nothing was signed: no fingerprint was given; scripts use --fingerprint") from error
    except KeyboardInterrupt:
        sys.stderr.write("\nnothing was signed\n")
        sys.exit(INTERRUPTED)
    check_fingerprint(roster.fingerprint, said)


def _signed(roster: Roster, identity: Identity) -> Roster:
    return roster.with_signatures({identity.card.name: encoded(identity.sign(roster.signed_bytes))})
