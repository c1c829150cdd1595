"""``lightning-parablock federation create``: the first version of a federation, and the hub's side of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.cli.commands.federation_options import add_hub_keys_option, keys_folder, signing_steps, wrote
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS_OF
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.endpoints import checked_endpoint
from lightning_parablock.site_kit.federation import INNER_PORT, INNER_RANGE, OUTER_RANGE, Layout, create
from lightning_parablock.site_kit.files import PUBLIC, write_whole
from lightning_parablock.site_kit.hub_keys import HubKeys, default_hub_folder
from lightning_parablock.site_kit.memory import Memory
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.wireguard import hub_file, hub_interface
from lightning_parablock.system.places import refuse_existing_file

NAME = "federation.yaml"
_COMMAND = COMMANDS_OF["federation"]["create"]


def create_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Run it on the hub: a host with a public UDP port, which forwards between the "
        "sites and cannot read what they send. Its key is made here. Where every card has an endpoint, leave the hub "
        "out: the sites then connect directly. The file counts once every site has signed it: site approve.",
    )
    parser.add_argument(
        "name", metavar="NAME", type=str, help="Name of the federation: 1 to 9 lower-case letters, digits and hyphens."
    )
    parser.add_argument(
        "--cards", type=str, nargs="+", required=True, help="Files with the cards of all sites, from site init."
    )
    parser.add_argument(
        "--hub-endpoint",
        type=str | None,
        default=None,
        help="HOST:PORT of this host as all sites reach it; the UDP port must be open.",
    )
    parser.add_argument(
        "--outer-range",
        type=str,
        default=OUTER_RANGE,
        help="IPv4 addresses for the links to the hub. No site may use them in its own network.",
    )
    parser.add_argument(
        "--inner-range",
        type=str,
        default=INNER_RANGE,
        help="IPv4 addresses for the links between sites. No site may use them in its own network.",
    )
    parser.add_argument(
        "--inner-port",
        type=int,
        default=INNER_PORT,
        help="UDP port of the links between sites. It is used inside the links to the hub and need not be opened.",
    )
    parser.add_argument("--output", type=str, default=NAME, help="The federation file to write.")
    add_hub_keys_option(parser)
    return parser


def run_create(args: Sequence[str]) -> None:
    """Run ``federation create`` on the words that follow it and print the next steps.

    Raises:
        ConfigurationError: a card or an option cannot be used, or a file is there already or cannot be written.
    """
    options = create_parser().parse_args(list(args))
    output = Path(options.output).expanduser()
    folder = keys_folder(options) or default_hub_folder(options.name)
    begun = None if options.hub_endpoint is None else HubKeys.unfinished(folder)
    if begun is None or not output.exists():
        _refuse_existing(output)
    cards = [Card.read(Path(card).expanduser()) for card in options.cards]
    layout = Layout(options.outer_range, options.inner_range, options.inner_port)
    if options.hub_endpoint is None:
        keys, hub = None, None
    else:
        checked_endpoint("hub-endpoint", options.hub_endpoint)
        keys = begun or HubKeys.new(folder)
        hub = (options.hub_endpoint, keys.link.public)
    roster = create(options.name, cards, layout, hub)
    if keys is not None and begun is None:
        keys.store()
    if output.exists() and Roster.read(output).digest != roster.digest:
        _refuse_existing(output)
    if not output.exists():
        write_whole(output, roster.text, mode=PUBLIC, is_new=True)
    started = [] if keys is None else keep_at_hub(roster, keys)
    print("\n".join((wrote(roster, output), *started, *signing_steps(roster, output))))


def _refuse_existing(output: Path) -> None:
    advice = "federation add and federation revoke change it, or name another file with --output"
    refuse_existing_file(output, "output", advice)


def keep_at_hub(roster: Roster, keys: HubKeys) -> list[str]:
    """Write the hub's side of a version, and remember it.

    It is remembered last, and the federation file is written before: a command that was cut short finds by that what is
    left to do when it is given again.

    Returns:
        What to do at the hub.
    """
    assert roster.hub is not None, "the caller has keys of a hub"
    path = keys.folder / f"{hub_interface(roster)}.conf"
    known = path.exists()
    write_whole(path, hub_file(roster, roster.hub, keys))
    Memory(keys.folder, roster.federation).keep(roster)
    port = roster.hub.endpoint.rpartition(":")[2]
    name = shlex.quote(str(path.absolute()))
    again = f"wg-quick down {name}; " if known else ""
    return [f"On this hub, with UDP port {port} open, as root:", f"  {again}wg-quick up {name}"]
