"""``lightning-parablock``: LightningCLI's fit, validate, test and predict, and commands of its own.

lightning-parablock fit --config quickstart --strategy parablock --strategy.local_steps 8
lightning-parablock train.py fit --strategy parablock    (a script that knows nothing of this package)
lightning-parablock export --ckpt_path last.ckpt --output model
lightning-parablock evaluate --ckpt_path last.ckpt --data.source gsm8k_test.jsonl --data.format gsm8k
lightning-parablock compare --config quickstart --trainer.devices 2 --strategies parablock,fedavg,fedit
lightning-parablock report runs/20260131-120000
lightning-parablock lighthouse --port 29510
lightning-parablock site init hospital-a
lightning-parablock federation create wards --hub-endpoint hub.example.org:51820 --cards a.card b.card c.card
lightning-parablock plan --model llama3-8b --clients 10 --rate 1gbit --step_s 2.5 --dtype bfloat16

Only the commands that need Lightning import it, which takes seconds; help, versions and errors appear at once.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import lightning_parablock
from lightning_parablock.checks import closest
from lightning_parablock.cli.table import COMMANDS, COMMANDS_OF, PROGRAM, Command
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.launching.launched import adopt_mpi
from lightning_parablock.system.exit_codes import FAILED, USAGE, end
from lightning_parablock.system.importing import quick_imports

_HELP, _VERSION = ("-h", "--help"), "--version"
_VERSIONS = (PROGRAM, "python", "torch", "lightning", "transformers")

_UNWANTED = (
    r".*treespec, LeafSpec.*",  # of torch, to Lightning
    r"The dirpath has changed from",  # at each resume: every run has a folder of its own
    r"Checkpoint directory .* exists and is not empty",  # a resumed or validated run writes there again
)
"""How warnings of Lightning begin."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C.

    A script has the exit code of its own.
    """
    return end(_main(list(sys.argv[1:] if args is None else args)))


def is_script(word: str) -> bool:
    """Whether a first argument means a script: it ends in .py, or is a file and no command of ours."""
    return word.endswith(".py") or (word not in COMMANDS and Path(word).is_file())


def _main(args: list[str]) -> int:
    # Before torch is imported: otherwise it warns of every machine whose address has no name in the DNS.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        adopt_mpi()
        return _dispatch(args)
    except ParaBlockError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE if isinstance(error, ConfigurationError) else FAILED


def _dispatch(args: list[str]) -> int:
    first = args[0] if args else ""
    if first in (*_HELP, _VERSION):
        print(_help() if first in _HELP else _versions())
        sys.exit(0)
    if is_script(first):
        with quick_imports():
            from lightning_parablock.cli.scripts import run_script

        return run_script(Path(first), args[1:])
    _hush()
    # LightningCLI takes options before the command, too.
    if first.startswith("-") or (command := _command(first)).of_lightning:
        with quick_imports():
            from lightning_parablock.cli.trainer import run_trainer

        return run_trainer(args)
    words = args[1:]
    if command.commands:
        command, words = _command_of(command, words), words[1:]
    if command.parser and any(word in _HELP for word in words):
        command.function(command.parser)().parse_args(["--help"])
    else:
        command.function(command.run)(words)
    return 0


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    if not name:
        raise ConfigurationError(f"no command was given; choose {', '.join(COMMANDS)}")
    close = closest(name, list(COMMANDS))
    hint = f"did you mean {close!r}?" if close else f"choose {', '.join(COMMANDS)}, or name a script"
    raise ConfigurationError(f"command {name!r} is not known; {hint}")


def _command_of(command: Command, words: Sequence[str]) -> Command:
    """The command that the first word names among those of a command."""
    known = COMMANDS_OF[command.name]
    name = words[0] if words else ""
    if name in known:
        return known[name]
    if name in _HELP:
        print(_help_of(command))
        sys.exit(0)
    choices = f"choose {', '.join(known)}"
    if not name:
        raise ConfigurationError(f"no command of {command.name} was given; {choices}")
    close = closest(name, list(known))
    hint = f"did you mean {close!r}?" if close else choices
    raise ConfigurationError(f"{command.name} has no command {name!r}; {hint}")


def _help_of(command: Command) -> str:
    return "\n".join(
        (
            f"usage: {command.prog} COMMAND [options]",
            "",
            command.help,
            "",
            "commands:",
            *_lines(COMMANDS_OF[command.name]),
            "",
            f"{command.prog} COMMAND --help explains the options of a command.",
        )
    )


def _lines(commands: Mapping[str, Command]) -> list[str]:
    width = max(map(len, commands))
    return [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]


def _help() -> str:
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [options]",
            f"       {PROGRAM} SCRIPT.py [its own arguments]",
            "",
            "Federated block coordinate fine-tuning in PyTorch Lightning.",
            "",
            "commands:",
            *_lines(COMMANDS),
            "",
            f"{PROGRAM} COMMAND --help explains the options of a command, {PROGRAM} --version prints versions.",
        )
    )


def _versions() -> str:
    """Read from the packages' metadata: importing them would take seconds."""
    versions = {name: _version_of(name) for name in _VERSIONS}
    return "\n".join(f"{name} {version}" for name, version in versions.items())


def _version_of(name: str) -> str:
    if name == PROGRAM:
        return lightning_parablock.__version__
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _hush() -> None:
    """Leave out advertisements, and warnings about what this command line does or about code of other packages."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in str(record.msg))
    for message in _UNWANTED:
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    sys.exit(main())
