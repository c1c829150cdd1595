"""Writes what is made from the options' fields: ``docs/options*.md`` and two sections of ``configs/base.yaml``.

``make options`` runs it; tests compare the files with what it would write.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from lightning_parablock.cli.commands.plan_options import PlanOptions
from lightning_parablock.data.options import TextDataOptions
from lightning_parablock.options import REQUIRED, Kind, Option, options_of
from lightning_parablock.settings.elastic import ElasticOptions
from lightning_parablock.strategy.options import StrategyOptions, TrainerOptions

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "configs" / "base.yaml"
_WIDTH = 120
"""Characters per line."""

_WRITTEN = "<!-- Written by `make options` from the fields of the records that define the options. -->\n"
_STRATEGY = """\
# Options of the strategy

Give an option as an argument of `ParaBlockStrategy`, as `--strategy.NAME` on the command line, or under
`trainer.strategy.init_args` in a YAML file (`null` is `None`). All ranks must have the same value unless an option says
otherwise; the run does not start if they disagree on the method. [ParaBlockStrategy](reference/strategy.md) describes
the objects for `server_optimizer`, `compression` and `aggregation`.
"""
_DATA = """\
# Options of the data module

Give an option as an argument of `FederatedTextDataModule`, as `--data.NAME` on the command line, or under
`data.init_args` in a YAML file (`null` is `None`). Clients that share a source must have the same value unless an
option says otherwise. [Bring your own data](data.md) explains how they work together.
"""
_PLAN = """\
# Options of the planner

Options of `lightning-parablock plan`, as `--NAME` (`null` is `None`). [Plan a run](planner.md) explains the result.
"""


@dataclass(frozen=True)
class Page:
    """A page of the documentation that describes a record of options.

    Attributes:
        name: File in docs/.
        introduction: Title and first paragraph.
        options: The record.
        has_groups: Whether the options have headings by the classes that define them.
    """

    name: str
    introduction: str
    options: type
    has_groups: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        return ROOT / "docs" / self.name

    def text(self) -> str:
        """What the file must contain."""
        parts = [_WRITTEN, self.introduction]
        for group, options in itertools.groupby(options_of(self.options), key=lambda option: option.group):
            if self.has_groups:
                parts.append(f"## {_title(group)}\n")
            parts += [_entry(option, 3 if self.has_groups else 2) for option in options]
        return "\n".join(parts)


PAGES = (
    Page("options.md", _STRATEGY, StrategyOptions, has_groups=True),
    Page("options-data.md", _DATA, TextDataOptions),
    Page("options-plan.md", _PLAN, PlanOptions),
)
_KINDS: dict[Kind, str] = {
    "method": "",
    "path": " It does not affect the result of a run.",
    "own": " Ranks may have different values.",
}
_PATH_OF_MEMBERS = " For a given membership log, it does not affect the result of a run."
"""These options have a say in who is a member when, which the log records."""
_OF_TRAINER = "# Set by the Trainer or by other keys of it; leave them alone."


def configuration(current: str) -> str:
    """The text of ``configs/base.yaml``, in which only the options of strategy and data module are replaced."""
    lines = current.splitlines()
    for name, record, indent in (
        ("ParaBlockStrategy", StrategyOptions, 4),
        ("FederatedTextDataModule", TextDataOptions, 2),
    ):
        section = next(number for number, line in enumerate(lines) if f".{name} #" in line)
        start = lines.index(f"{' ' * indent}init_args:", section) + 1
        end = lines.index("", start) if "" in lines[start:] else len(lines)
        lines[start:end] = _settings(options_of(record), " " * (indent + 2))
    return "\n".join([*lines, ""])


def _title(group: type) -> str:
    return str(group.__doc__).partition("\n")[0].removesuffix(".")


def _entry(option: Option, level: int) -> str:
    default = "" if option.default is REQUIRED else f", default `{_value(option.default)}`"
    decides_members = option.group is ElasticOptions and option.kind == "path"
    kind = _PATH_OF_MEMBERS if decides_members else _KINDS[option.kind]
    facts = f"`{_type(option.type)}`{default}.{kind}"
    text = textwrap.fill(option.help, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"{'#' * level} {option.name}\n\n{facts}\n\n{text}\n"


def _value(default: Any) -> str:
    return json.dumps(default) if isinstance(default, str) else str(default)


def _type(hint: Any) -> str:
    """A type as its annotation would be written, choices without ``Literal``."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(_value, arguments))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type, arguments))
    if arguments:
        return f"{hint.__name__}[{', '.join(map(_type, arguments))}]"
    return "None" if hint is NoneType else str(hint.__name__)


def _settings(options: Sequence[Option], indent: str) -> list[str]:
    lines: list[str] = []
    for option in options:
        line = f"{indent}{option.name}: {_scalar(option.default)}"
        if option.group is not TrainerOptions:
            line += f" # {option.brief.replace('None', 'null')}"
        elif f"{indent}{_OF_TRAINER}" not in lines:
            lines.append(f"{indent}{_OF_TRAINER}")
        lines.append(line)
    return lines


def _scalar(default: Any) -> str:
    value = str(default) if isinstance(default, timedelta) else default
    return value if isinstance(value, str) else yaml.safe_dump(value).partition("\n")[0]


if __name__ == "__main__":
    for page in PAGES:
        page.path.write_text(page.text(), encoding="utf-8")
    CONFIGURATION.write_text(configuration(CONFIGURATION.read_text(encoding="utf-8")), encoding="utf-8")
