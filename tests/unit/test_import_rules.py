"""torch.distributed is used only where ranks meet, are watched and exchange: the list below is the contract.

import-linter knows torch as a whole, so its submodule is looked for in the syntax of the files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_parablock

ROOT = Path(lightning_parablock.__file__).parent
ROOMS = ("meeting", "membership", "transport")
"""How ranks find each other, how they notice a loss, how blocks travel."""
FILES = (
    "elastic/generation.py",
    "elastic/stores.py",
    "launching/joining.py",
    "strategy/collectives.py",
    "strategy/groups.py",
)
"""Connects a generation of members, and where its members meet; joins the default group that Lightning opens;
Lightning's collectives under the watch."""


def uses(source: str) -> Iterator[int]:
    """The lines of a file that name torch.distributed."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = any((name.name + ".").startswith("torch.distributed.") for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                found = any(f"{module}.{name.name}.".startswith("torch.distributed.") for name in names)
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                found = True
            case _:
                found = False
        if found:
            yield node.lineno


def test_only_these_files_use_torch_distributed() -> None:
    used_in = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if any(uses(path.read_text()))}
    assert sorted(path for path in used_in if path.split("/")[0] not in ROOMS and path not in FILES) == []
    assert {path.split("/")[0] for path in used_in} >= set(ROOMS) and used_in >= set(FILES), "the list is out of date"


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed",
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import Store",
        "from torch.distributed.constants import default_pg_timeout",
        "import torch\ntorch.distributed.barrier()",
        "def late():\n    import torch.distributed.distributed_c10d as c10d",
    ],
)
def test_every_way_to_use_it_is_seen(source: str) -> None:
    assert any(uses(source))


@pytest.mark.parametrize("source", ["import torch", "from torch import Tensor", "import torch.distributions"])
def test_nothing_else_is(source: str) -> None:
    assert not any(uses(source))
