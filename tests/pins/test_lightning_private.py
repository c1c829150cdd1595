"""What the package uses of Lightning beyond its public names: listed, there on the installed version, and used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data import BatchSampler, SequentialSampler

import lightning_parablock
from tests.pins.stored import stored

ENTRIES: list[dict[str, str]] = stored("lightning_private")
PRIVATE = {entry["name"] for entry in ENTRIES if entry["name"].startswith("_")}
PACKAGE = Path(lightning_parablock.__file__).parent
ROOM = PACKAGE / "lightning_private"


def owner_of(entry: dict[str, str]) -> Any:
    """The module or class that the entry names."""
    module, _, name = entry["owner"].partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def instance_of(entry: dict[str, str]) -> Any:
    """A new object on which the attribute is found once the object is made."""
    roots: dict[str, Any] = {
        "trainer": lambda: Trainer(accelerator="cpu", logger=False, enable_checkpointing=False),
        "checkpoint": ModelCheckpoint,
        "early_stopping": lambda: EarlyStopping("val_loss"),
        "fetcher": _PrefetchDataFetcher,
        "timer": lambda: Timer(interval="step"),
        "launcher": lambda: _MultiProcessingLauncher(SingleDeviceStrategy(), start_method="fork"),
        "sampler": lambda: _IndexBatchSamplerWrapper(BatchSampler(SequentialSampler([0]), 1, False)),
    }
    root, *path = entry["found_on"].split(".")
    found = roots[root]()
    for name in path:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['owner'].rpartition('.')[2]}.{entry['name']}")
def test_the_installed_lightning_has_it(entry: dict[str, str]) -> None:
    owner = owner_of(entry)
    if entry["found_on"] in ("module", "class"):
        assert hasattr(owner, entry["name"])
        return
    instance = instance_of(entry)
    assert isinstance(instance, owner)
    assert hasattr(instance, entry["name"])


def test_the_package_uses_all_that_is_listed() -> None:
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert [entry["name"] for entry in ENTRIES if not re.search(rf"\b{entry['name']}\b", text)] == []


def private_names_in(path: Path) -> Iterator[str]:
    """Private names of Lightning that a file imports, reads, sets, overrides or names in a string."""
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is not None]
    of_lightning = [node for node in imports if (node.module or "").partition(".")[0] == "lightning"]
    for node in of_lightning:
        parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        yield from (part for part in parts if part.startswith("_") and part != "__version__")
    for node in ast.walk(tree):
        is_own = not of_lightning and isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE and not is_own:
            yield node.attr
        elif isinstance(node, ast.FunctionDef) and node.name in PRIVATE and of_lightning:
            yield node.name
        elif isinstance(node, ast.Constant) and node.value in PRIVATE:
            yield str(node.value)


def test_only_one_room_uses_private_names_of_lightning() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if ROOM not in path.parents]
    found = {str(path.relative_to(PACKAGE)): list(private_names_in(path)) for path in files}
    assert {path: names for path, names in found.items() if names} == {}
    assert any(private_names_in(path) for path in ROOM.iterdir() if path.suffix == ".py")


def test_what_is_marked_as_private_use_of_lightning_is_listed() -> None:
    """Lines that tell the type checker so, but for those about this package's and Python's own private names."""
    marked = [
        line
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if "reportPrivateUsage" in line and not re.search(r"\bsys\._|\bloader\._", line)
    ]
    names = {name for line in marked for name in re.findall(r"(?<![\w])(_[A-Za-z]\w+)", line.partition("#")[0])}
    own = {"_trainer", "_warned"}
    assert names - own - {entry["name"] for entry in ENTRIES} == set()
    assert names
