"""Names, parameters, options and words that users write."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
from typing import Any, cast
from unittest import mock

from lightning.pytorch.strategies import StrategyRegistry

from lightning_parablock import Int4, ParaBlockStrategy, ServerAdam
from lightning_parablock.cli import main
from lightning_parablock.settings import Settings

PACKAGES = (
    "lightning_parablock",
    "lightning_parablock.callbacks",
    "lightning_parablock.data",
    "lightning_parablock.models",
)
NAMES = ("parablock", "fedbcd", "fedavg", "fedcybgd", "diloco")
COMMANDS = (
    "fit",
    "validate",
    "test",
    "predict",
    "compare",
    "evaluate",
    "export",
    "federation",
    "init",
    "lighthouse",
    "plan",
    "report",
    "site",
)
SUBCOMMANDS = (
    "federation create",
    "federation collect",
    "federation add",
    "federation revoke",
    "site init",
    "site approve",
    "site join",
)
AVAILABILITY = "0 1 2 3 4 5\n0 2 4\n"
"""A trace of two rounds, as a file has it."""
OF_LIGHTNING = ("--trainer.", "--optimizer", "--lr_scheduler", "--seed_everything", "--print_config", "--verbose")
"""Options that are Lightning's to add and remove."""


def rich_settings(availability: str) -> Settings:
    """Settings in which no field that ranks share has its default, but for two.

    ``aggregation`` has one choice, and clients in turn exclude ``buffers="average"``.

    Args:
        availability: The file that has :data:`AVAILABILITY`.
    """
    strategy = ParaBlockStrategy(
        local_steps=5,
        delay_steps=7,
        delay_warmup_rounds=3,
        blocks=["^embed", r"layers\.\d+"],
        unmatched="freeze",
        block_order="importance",
        visit_more={"embed|head": 4.0, "layers": 0.5},
        clients=6,
        cohort=3,
        cohort_sampling="size",
        availability=availability,
        max_rounds=40,
        in_flight_value="anchor",
        server_optimizer=ServerAdam(
            lr=0.02, betas=(0.5, 0.75), tau=0.01, warmup_rounds=2, decay="cosine", decay_rounds=9
        ),
        weighting="samples",
        topology="star",
        compression=Int4(group=32),
        block_optimizer_state="offload",
        local_warmup_steps=2,
        proximal_mu=0.25,
        own_local_steps=3,
        own_local_s=2.5,
        nonfinite_delta="skip",
        exchange_timeout_s=20.0,
        straggler_timeout_s=60.0,
        heartbeat_s=0.5,
        chunk_bytes=8192,
        upload_bps=1e6,
        ports="40000-40099",
        uneven_clients="shorten",
        missing_client_state="fresh",
        seed=11,
    )
    return strategy.settings


def fingerprints(availability: str) -> dict[str, list[list[str]]]:
    """Pairs in their order: of the defaults, of a record far from them, and of what two options turn into."""
    made = {
        "default": Settings(),
        "strategy's default": ParaBlockStrategy().settings,
        "rich": rich_settings(availability),
        "auto": ParaBlockStrategy(local_steps="auto").settings,
        "average": ParaBlockStrategy(buffers="average", blocks=3).settings,
    }
    return {name: [list(pair) for pair in settings.fingerprint().items()] for name, settings in made.items()}


def public_names() -> dict[str, list[str]]:
    """``__all__`` of every public package."""
    return {name: list(importlib.import_module(name).__all__) for name in PACKAGES}


def parameters() -> dict[str, list[list[str]]]:
    """Name, kind and default of every parameter of every public class."""
    found: dict[str, list[list[str]]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            signature = inspect.signature(getattr(module, name))
            found[f"{package}.{name}"] = [
                [p.name, p.kind.name, "" if p.default is p.empty else _printable(p.default)]
                for p in signature.parameters.values()
            ]
    return found


def _printable(default: Any) -> str:
    """The representation of a default; one that names a place in memory tells nothing."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(default))


def registry() -> dict[str, Any]:
    """The settings behind each registered name."""
    entries = {name: cast(dict[str, Any], StrategyRegistry[name]) for name in NAMES}
    return {
        name: {"strategy": entry["strategy"].__name__, "init_params": entry["init_params"]}
        for name, entry in entries.items()
    }


def help_of(*words: str) -> str:
    """What a command prints before it ends with 0, in lines too long to be broken."""
    output = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "4000"})
    with wide, mock.patch("sys.argv", ["lightning-parablock", *words]), contextlib.redirect_stdout(output):
        try:
            code: Any = main(words)
        except SystemExit as ended:
            code = ended.code
    assert code in (0, None), f"{words} ended with {code}"
    return output.getvalue()


def commands() -> list[str]:
    """The names of the commands as the first help lists them."""
    listed = help_of("--help").partition("\ncommands:\n")[2].partition("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


def option_names(command: str) -> list[str]:
    """The options of a command which its help names, but for Lightning's own."""
    found = set(re.findall(r"^ +(?:-\w,? )?(--[\w.-]+)", help_of(*command.split(), "--help"), re.MULTILINE))
    return sorted(option for option in found if not option.startswith(OF_LIGHTNING))


def plan_defaults() -> dict[str, str]:
    """The default of every option of ``plan``."""
    _, *options = re.split(r"^ +(?:-h, )?--", help_of("plan", "--help"), flags=re.MULTILINE)
    found = {option.split()[0].strip(","): " ".join(option.split()) for option in options}
    return {name: _default_in(said) for name, said in found.items() if name != "help"}


def _default_in(said: str) -> str:
    """What the help of an option says at its end."""
    told = re.search(r"\((required|.*?default: (?P<value>[^()]*))[^()]*\)( |$)", said)
    assert told is not None, said
    return told["value"] or "required"
