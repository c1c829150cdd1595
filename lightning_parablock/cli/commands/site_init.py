"""``lightning-parablock site init``: the keys of a site, which never leave it, and its public card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from lightning_parablock.cli.commands.federation_options import keys_folder
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS_OF, PROGRAM
from lightning_parablock.errors import IdentityError
from lightning_parablock.masking.submissions import FILE_NAME as RECORD
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.site_kit.files import PUBLIC, write_whole
from lightning_parablock.site_kit.identity import KEYS, Identity, default_folder
from lightning_parablock.system.places import refuse_existing_file

_COMMAND = COMMANDS_OF["site"]["init"]


def site_init_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} The keys are stored for this user alone and are never overwritten: given again, "
        "the command prints the card of those that are there. The card is one line that may be mailed.",
    )
    parser.add_argument("name", metavar="NAME", type=str, help="Name of the site, as fit's --site has it.")
    parser.add_argument(
        "--keys",
        type=str | None,
        default=None,
        help="Folder for the keys; created with mode 0700. Default: ~/.lightning-parablock/NAME.",
    )
    parser.add_argument(
        "--card", type=str | None, default=None, help="File to write the card to, besides NAME.card beside the keys."
    )
    parser.add_argument(
        "--endpoint",
        type=str | None,
        default=None,
        help="HOST:PORT (UDP) at which all other sites reach this one, if it has such a place. Where all sites have "
        "one, no hub is needed.",
    )
    return parser


def run_site_init(args: Sequence[str]) -> None:
    """Run ``site init`` on the words that follow it and print the card.

    Raises:
        ConfigurationError: there are other keys already, a name cannot be used, or a file cannot be written.
    """
    options = site_init_parser().parse_args(list(args))
    folder = keys_folder(options) or default_folder(options.name)
    wanted = Path(options.card).expanduser() if options.card else None
    if wanted is not None:
        refuse_existing_file(wanted, "card", "name another file")
    known = (folder / KEYS).exists()
    identity = _known(folder, options) if known else _created(folder, options)
    card = f"{identity.card.text}\n"
    own = folder / f"{identity.card.name}.card"
    for path in (own, *([wanted] if wanted is not None else [])):
        write_whole(path, card, mode=PUBLIC)
    which = ", which were there before" if known else ""
    print(f"keys of site {identity.card.name}{which}: {folder} (keep them there; they are never sent)")
    print(f"card: {wanted or own}\n\n{card}")
    print(f"Send the card to the person who runs {PROGRAM} federation create. It is not secret.")


def _created(folder: Path, options: Namespace) -> Identity:
    identity = Identity.create(folder, options.name, options.endpoint)
    if not (folder / RECORD).exists():  # new keys have contributed to nothing: the first secure run draws by its seed
        Submissions.create(folder)
    return identity


def _known(folder: Path, options: Namespace) -> Identity:
    """The keys that are there: their card may have been lost, or never written."""
    identity = Identity.read(folder)
    card = identity.card
    if card.name != options.name or options.endpoint not in (None, card.endpoint):
        at = "without an endpoint" if card.endpoint is None else f"with the endpoint {card.endpoint}"
        raise IdentityError(
            f"{folder} holds the keys of site {card.name} already, {at}; they are not overwritten: name another folder "
            "with --keys"
        )
    return identity
