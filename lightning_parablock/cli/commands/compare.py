"""``lightning-parablock compare``: several methods from one configuration, one table and one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_parablock.checks import closest
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.comparing.limits import Equal
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.importing import quick_imports
from lightning_parablock.system.places import refuse_unwritable

_COMMAND = COMMANDS["compare"]

_HELP = ("--help", "-h")
_OF_FIT = ("--config", "--model", "--data", "--trainer", "--optimizer", "--lr_scheduler", "--ckpt_path",
           "--weights_only", "--validate_before_and_after", "--shared")  # fmt: skip
_INSTEAD = {
    "--strategy": "name the methods with --strategies a,b",
    "--trainer.strategy": "name the methods with --strategies a,b",
    "--seed_everything": "give --seeds",
    "--run_dir": "give --out",
    "--dry-run": "for one method's plan, run fit --dry-run with its overlay",
    "--print_config": "for one method's configuration, run fit --print_config with its overlay",
}
"""Options of fit that compare sets itself."""


def compare_parser() -> CommandParser:
    """The options of the command itself, without those that it passes to fit."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Every other option is one of fit and goes to every run: --config base.yaml and "
        "--trainer.devices 2 define what is trained, and by how many clients; a method's own settings override them. "
        "Runs are executed one after the other, and their output goes to DIR/runs/METHOD-seedN.log. Run the same "
        "command again to continue where it stopped.",
    )
    parser.add_argument(
        "--strategies",
        type=str,
        default="parablock,fedbcd,fedavg",
        help="Methods, separated by commas: overlays in configs/methods by name (parablock, fedbcd, fedavg, "
        "diloco, fedit, ...), or paths of YAML files laid over the configuration.",
    )
    parser.add_argument(
        "--equal", type=Equal, default="samples", help="The quantity of which every method gets the same amount."
    )
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="How much of it: samples per client, seconds of training (600, 10min, 2h), or bytes sent per client "
        "(500MB). A method stops after the last whole round within its bytes, or at the end of the round in which its "
        "seconds run out. null: the optimizer steps or epochs of the configuration, with samples only.",
    )
    parser.add_argument(
        "--seeds",
        type=str | None,
        default=None,
        help="Seeds, separated by commas; null: the seed of the configuration.",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=8,
        help="How often the held-out loss is measured during training, for the picture; every 100 optimizer steps if "
        "their number is not configured; 0 means never. A configuration that sets up validation itself keeps it. This "
        "time counts as training.",
    )
    parser.add_argument("--out", type=str, default="compare", help="DIR, the folder for the results and the runs.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Run everything again, including what is finished in DIR."
    )
    return parser


def run_compare(args: Sequence[str]) -> None:
    """Run ``compare`` on the words that follow it.

    Raises:
        ConfigurationError: before anything is trained: an option is wrong, or DIR holds runs of other configurations.
        ParaBlockError: a run failed.
        SystemExit: it was interrupted.
    """
    own, passed = split_words(args)
    options = compare_parser().parse_args(own)
    _refuse_launcher()
    out = Path(options.out).expanduser()
    refuse_unwritable(out, "out")
    # Late: Lightning, fit's parser and matplotlib take seconds.
    with quick_imports():
        from lightning_parablock.cli.configuration import read_configuration
        from lightning_parablock.comparing.series import Series, compare

    series = Series(
        methods=options.strategies,
        equal=options.equal,
        budget=options.budget,
        seeds=options.seeds,
        points=options.points,
        out=out,
        overwrite=options.overwrite,
        words=tuple(passed),
    )
    compare(series, read_configuration)


def split_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of compare itself, and those for every fit.

    Raises:
        ConfigurationError: an option is compare's own misspelt, or one of fit that compare sets itself.
    """
    defaults: dict[str, Any] = compare_parser().get_defaults().as_dict()
    options = [f"--{name}" for name in defaults]
    flags = {f"--{name}" for name, default in defaults.items() if isinstance(default, bool)}.union(_HELP)
    own: list[str] = []
    passed: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if name not in options and name not in flags:
            _refuse(name, options)
            passed.append(word)
            continue
        own.append(word)
        if name not in flags and "=" not in word and words:
            own.append(words.pop(0))
    return own, passed


def _refuse(name: str, options: Sequence[str]) -> None:
    if name in _INSTEAD:
        raise ConfigurationError(f"{name} is not an option of compare: {_INSTEAD[name]}")
    if not name.startswith("--") or "." in name or name in _OF_FIT:
        return
    close = closest(name, [*options, *_HELP, *_OF_FIT])
    raise ConfigurationError(f"option {name} is not known; " + (f"did you mean {close}?" if close else "see --help"))


def _refuse_launcher() -> None:
    from lightning_parablock.launching.launched import launched_devices

    if launched_devices() or "RANK" in os.environ:
        raise ConfigurationError(
            "compare starts the clients of each run itself: start it once, without torchrun, srun or mpirun, and say "
            "--trainer.devices 2 for two clients"
        )
