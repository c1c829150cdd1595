"""What sites tell each other is JSON or plain tensors: no code here turns bytes of a peer into objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_parablock

ROOT = Path(lightning_parablock.__file__).parent
ROOMS = ("desk", "elastic", "regroup", "meeting", "membership", "transport", "system")
MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg", "multiprocessing")
CALLS = ("eval", "exec", "compile", "__import__")
OF_TORCH = ("load", "save", "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list")
OF_TORCH += ("send_object_list", "recv_object_list", "rpc")


def unpickles(source: str) -> Iterator[int]:
    """The lines of a file that could turn bytes into any object."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = any(name.name.split(".")[0] in MODULES for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                found = module.split(".")[0] in MODULES or (
                    module.split(".")[0] == "torch" and any(name.name in OF_TORCH for name in names)
                )
            case ast.Attribute(value=ast.Name(id="torch" | "dist"), attr=attr):
                found = attr in OF_TORCH
            case ast.Attribute(attr=attr):
                found = attr.endswith("_object_list") or attr.endswith("_object")
            case ast.Name(id=name):
                found = name in CALLS
            case _:
                found = False
        if found:
            yield node.lineno


def test_no_rank_unpickles_what_another_one_sends() -> None:
    """``torch.save`` and ``load`` are for files alone."""
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    unsafe = re.compile(
        r"\b(" + "|".join(name for name in OF_TORCH if "object" in name) + r"|pickle\.loads?|Unpickler)\b"
    )
    assert {file: found for file, text in files.items() if (found := unsafe.findall(text))} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_unpickled_between_sites(room: str) -> None:
    found = {path.name: list(unpickles(path.read_text())) for path in (ROOT / room).rglob("*.py")}
    found.pop("again.py", None)  # asks multiprocessing whether this process is a child of it
    assert found and {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from multiprocessing.reduction import ForkingPickler",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "from torch.distributed import all_gather_object",
        "import torch.distributed as c10d\nc10d.broadcast_object_list([])",
        "def late():\n    return eval('1')",
    ],
)
def test_every_way_is_seen(source: str) -> None:
    assert any(unpickles(source))
