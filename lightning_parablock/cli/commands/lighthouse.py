"""``lightning-parablock lighthouse``: says which sites of an elastic run are alive, until it is told to end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from lightning_parablock.checks import require
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS

PORT, SILENCE_S = 29510, 5.0
_COMMAND = COMMANDS["lighthouse"]
_ENDING = (signal.SIGINT, signal.SIGTERM)
_EVERYWHERE = ("0.0.0.0", "::")
_LAST_PORT = 65535
_LOOK_S = 0.5


def lighthouse_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} One for each run. It holds nothing of the run and may be restarted at any time; "
        "while it is away, the sites that are in the run continue.",
    )
    parser.add_argument("--port", type=int, default=PORT, help="TCP port to listen at; 0 for any.")
    parser.add_argument(
        "--host",
        type=str,
        default="0.0.0.0",
        help="Address of this machine to listen at. Anyone who reaches it can disturb the run: where there is a "
        "private network, name the address in it. Default: all of this machine.",
    )
    parser.add_argument(
        "--silence_s",
        type=float,
        default=SILENCE_S,
        help="Seconds without a sign of life after which a site counts as lost: the same number as the sites' "
        "--strategy.silence_s.",
    )
    return parser


def run_lighthouse(args: Sequence[str]) -> None:
    """Run ``lighthouse`` on the words that follow it, until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the port is taken, torchft is not installed, or an option is out of its range.
    """
    options = lighthouse_parser().parse_args(list(args))
    require(0 <= options.port <= _LAST_PORT, f"port must be 0 to {_LAST_PORT}, got {options.port}")
    require(options.silence_s > 0, f"silence_s must be above 0 seconds, got {options.silence_s:g}")
    from lightning_parablock.elastic.lighthouse_server import LighthouseServer  # late: an optional dependency
    from lightning_parablock.membership.descriptors import raise_limit

    raise_limit()
    with _told_to_end() as ended:
        server = LighthouseServer(options.host, options.port, options.silence_s)
        _say_where(options.host, server.port)
        while not ended.wait(_LOOK_S):  # in turns: a signal is handled between two of them
            pass
        server.close()
    print("lighthouse: ended; the sites wait for the next one at this address", flush=True)


@contextmanager
def _told_to_end() -> Generator[threading.Event]:
    """Set by SIGINT or SIGTERM; afterwards these do what they did before."""
    ended = threading.Event()
    before = {sign: signal.signal(sign, lambda _number, _frame: ended.set()) for sign in _ENDING}
    try:
        yield ended
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _say_where(address: str, port: int) -> None:
    everywhere = address in _EVERYWHERE
    host = socket.gethostname() if everywhere else address
    shown = f"[{host}]" if ":" in host else host
    print(
        f"lighthouse: listens at {shown}:{port}. Every site names it: the option lighthouse, which init has written to "
        "run.yaml",
        flush=True,
    )
    if everywhere:
        print(f"Instead of {host}, any name or address of this machine will do that all sites reach.", flush=True)
