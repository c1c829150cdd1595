"""``lightning-parablock init``: the configuration that all sites share, and the command that each of them runs."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_parablock.checks import check_site_name, closest
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS, PROGRAM
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings.ports import read_ports
from lightning_parablock.system.places import reason, refuse_unwritable

if TYPE_CHECKING:
    from lightning_parablock.meeting.rendezvous import Address  # late at run time, like all that needs torch

NAME = "run.yaml"
PORT = 29500
_COMMAND = COMMANDS["init"]
_METHODS = ("parablock", "fedbcd", "fedavg", "diloco")


@dataclass(frozen=True)
class Membership:
    """What differs between a fixed membership and one that changes.

    Attributes:
        address: Where the sites meet.
        place: What is there, in words.
        explained: Where ports, data and what leaves a site are explained.
        trainer: Lines of the trainer's options.
        options: Lines of the strategy's options.
        start: What to start before the sites, for the user.
    """

    address: Address
    place: str
    explained: str
    trainer: tuple[str, ...]
    options: tuple[str, ...]
    start: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The values that go into the file.

    Attributes:
        sites: Names of the sites, sorted: the order of the clients' numbers.
        membership: Where the sites meet, and whether they may come and go.
        ports: Range of TCP ports on which each site accepts connections.
        method: Name of a preset.
        model: As CausalLM takes it.
        source: The rows of each site, at a path that is the same everywhere.
    """

    sites: tuple[str, ...]
    membership: Membership
    ports: str
    method: str
    model: str
    source: str


def init_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Writes FOLDER/{NAME} and prints the commands; overwrites nothing.",
    )
    parser.add_argument("folder", type=str, nargs="?", default=".", help=f"FOLDER, where {NAME} is written.")
    parser.add_argument(
        "--sites",
        type=str,
        default="a,b,c",
        help="Names of the sites, separated by commas; each has its own rows. With --lighthouse all that may ever take "
        "part, also those that join later: min_clients is more than half of them.",
    )
    parser.add_argument(
        "--rendezvous",
        type=str | None,
        default=None,
        help="HOST:PORT where the sites meet: a machine of one of them, by the name or address that all others reach, "
        f"and a port of it. Default: this machine, port {PORT}.",
    )
    parser.add_argument(
        "--lighthouse",
        type=str | None,
        default=None,
        help="HOST:PORT of the lighthouse, instead of --rendezvous: sites may then be lost, come back and join while "
        "the run continues, see docs/elastic.md.",
    )
    parser.add_argument(
        "--ports",
        type=str,
        default="40000-40099",
        help="TCP ports on which each site accepts connections of the others: what a firewall has to let through.",
    )
    parser.add_argument("--method", type=str, default="parablock", help=f"{', '.join(_METHODS)}.")
    parser.add_argument("--model", type=str, default="./model", help="Hub id, or a folder that every site has.")
    parser.add_argument(
        "--source", type=str, default="mine.jsonl", help="Each site's own rows, at the same path on every site."
    )
    return parser


def run_init(args: Sequence[str]) -> None:
    """Run ``init`` on the words that follow it and print the next steps.

    Raises:
        ConfigurationError: an option is wrong, or the file is there already or cannot be written.
    """
    options = init_parser().parse_args(list(args))
    if options.rendezvous is not None and options.lighthouse is not None:
        raise ConfigurationError("rendezvous is for a fixed membership and lighthouse for one that changes; keep one")
    sites = _sites(options.sites)
    plan = Plan(
        sites=sites,
        membership=_membership(options, len(sites)),
        ports=str(read_ports(options.ports)),
        method=_method(options.method),
        model=options.model,
        source=options.source,
    )
    path = Path(options.folder).expanduser() / NAME
    _write(path, configuration(plan))
    print(next_steps(plan, path))


def configuration(plan: Plan) -> str:
    """The text of the file, the same on all sites."""
    return f"""\
# The sites {", ".join(plan.sites)} train one model together. This file is the same on all of them. Each of them runs
#
#   {PROGRAM} fit --config {NAME} --site NAME
#
# and its rows stay on its machine. {plan.membership.explained}
seed_everything: 0 # random seed of the order of blocks and rows

trainer:
{_indented([*plan.membership.trainer, "devices: 1 # processes per site"], 2)}
  accelerator: cpu # cpu, gpu, ...; a site may choose its own: --trainer.accelerator gpu
  max_epochs: 1 # passes over each site's rows; or max_steps, the optimizer steps of each site
  log_every_n_steps: 1 # optimizer steps between rows of the log

  strategy:
    class_path: lightning_parablock.ParaBlockStrategy
    init_args:
{_indented([*_method_options(plan.method), *plan.membership.options], 6)}
      ports: {plan.ports} # TCP ports on which each site accepts connections of the other sites

model:
  class_path: lightning_parablock.models.CausalLM # or any LightningModule with one optimizer
  init_args:
    model: {_scalar(plan.model)} # the same on all sites: hub id, or a folder with a transformers model
    learning_rate: 1.0e-4 # AdamW's step size, dimensionless

data:
  class_path: lightning_parablock.data.FederatedTextDataModule
  init_args:
    source: {_scalar(plan.source)} # each site's own rows, one JSON object per line
    partition: auto # sources that differ are used whole, each by its own site
    prompt_field: prompt # column of the prompt
    answer_field: answer # column of the answer, which is what the model learns; for plain text use text_field alone
    sequence_length: 128 # tokens per example
    batch_size: 8 # examples per optimizer step
    drop_last: false # keep the last batch of an epoch, which may be smaller
"""


def next_steps(plan: Plan, path: Path) -> str:
    """What to print: what each site needs, the commands, and the ports to open."""
    meets, width = plan.membership, max(map(len, plan.sites))
    commands = [f"  {site + ':':<{width + 1}} {PROGRAM} fit --config {NAME} --site {site}" for site in plan.sites]
    return "\n".join(
        (
            f"wrote {path}",
            "",
            f"1. Copy it to every site, beside the model ({plan.model}) and the site's own rows ({plan.source}), one "
            'JSON object per line: {"prompt": "...", "answer": "..."}',
            "2. Open these incoming TCP ports to the other sites:",
            f"  {meets.address.port} on {meets.address.host}, {meets.place}",
            f"  {plan.ports} on every site",
            *meets.start,
            *commands,
            "",
            f"{PROGRAM} fit --config {NAME} --dry-run shows blocks, bytes and memory before anything is started.",
        )
    )


def _fixed(address: Address, n_sites: int) -> Membership:
    at = _scalar(_host_and_port(address))
    return Membership(
        address=address,
        place="where the sites meet",
        explained="docs/sites.md explains ports, data and what leaves a site.",
        trainer=(f"num_nodes: {n_sites} # number of sites",),
        options=(f"rendezvous: {at} # where the sites meet: a machine that all others reach",),
        start=("3. Start every site, in any order:",),
    )


def _elastic(address: Address, n_sites: int) -> Membership:
    at, least = _scalar(_host_and_port(address)), n_sites // 2 + 1
    return Membership(
        address=address,
        place="the lighthouse",
        explained="docs/elastic.md explains the ports, docs/sites.md the data and what leaves a site.",
        trainer=(),
        options=(
            f"lighthouse: {at} # where the lighthouse runs: a machine that all sites reach",
            f"min_clients: {least} # so many found the run, and it waits with fewer: more than half of all sites that "
            "may ever take part",
        ),
        start=(
            f"3. Start the lighthouse on {address.host}, and leave it running:",
            f"  {PROGRAM} lighthouse --port {address.port}",
            f"4. Start the sites, in any order: the first {least} of them found the run, and the others join it, also "
            "later. The same command brings a lost one back:",
        ),
    )


def _method_options(method: str) -> list[str]:
    """The options of a preset, and the number of blocks and steps to begin with."""
    return {
        "parablock": [
            "blocks: 4 # parts of the model, of equal bytes, that are trained and exchanged in turn",
            "local_steps: 4 # optimizer steps per round; the exchange of a round runs behind those of the next",
        ],
        "fedbcd": [
            "blocks: 4 # parts of the model, of equal bytes, that are trained and exchanged in turn",
            "local_steps: 4 # optimizer steps per round",
            "delay_steps: 0 # wait for the exchange at the end of each round",
        ],
        "fedavg": [
            "blocks: 1 # the whole model in every round",
            "local_steps: 4 # optimizer steps per round",
            "delay_steps: 0 # wait for the exchange at the end of each round",
        ],
        "diloco": [
            "blocks: 1 # the whole model in every round",
            "local_steps: 50 # optimizer steps per round",
            "delay_steps: 0 # wait for the exchange at the end of each round",
            "server_optimizer: nesterov # applied to the mean of the sites' changes",
            "block_optimizer_state: keep # each site's AdamW keeps its moments from round to round",
        ],
    }[method]


def _host_and_port(address: Address) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else str(address)


def _scalar(text: str) -> str:
    """As YAML reads it: with quotes where it needs them."""
    return yaml.safe_dump(text, width=len(text) + 10).splitlines()[0]


def _indented(lines: Sequence[str], spaces: int) -> str:
    return "\n".join(f"{' ' * spaces}{line}" for line in lines)


def _sites(listed: str) -> tuple[str, ...]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    for name in names:
        check_site_name(name)
    if len(names) < 2:
        raise ConfigurationError(f"sites must be two names or more with commas between, such as a,b,c, got {listed!r}")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"a name is given twice in sites {listed!r}; every site needs a name of its own")
    return tuple(sorted(names))


def _membership(options: Any, n_sites: int) -> Membership:
    from lightning_parablock.meeting.rendezvous import Address

    if options.lighthouse is not None:
        return _elastic(Address.parse("lighthouse", options.lighthouse), n_sites)
    return _fixed(Address.parse("rendezvous", options.rendezvous or f"{socket.gethostname()}:{PORT}"), n_sites)


def _method(name: str) -> str:
    if name not in _METHODS:
        close = closest(name, _METHODS)
        hint = f"did you mean {close!r}?" if close else f"choose {', '.join(_METHODS)}"
        raise ConfigurationError(f"method {name!r} is not known; {hint}")
    return name


def _write(path: Path, text: str) -> None:
    refuse_unwritable(path.parent, "folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already and is not overwritten; name another folder") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {reason(error)}") from error
