"""docs/architecture.md has the rooms that exist, in the order of their imports, and names what is in the code."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lightning_parablock"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = re.findall(r"`([\w.]+)`,?\s\(?`([\w/]+\.py)`", PAGE)
HEADER = "| room | what it holds |\n| --- | --- |\n"


def layers() -> list[str]:
    """The package's rooms and files, top floor first, as import-linter checks them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    order = next(contract for contract in contracts if contract["id"] == "layers")["layers"]
    return [name.strip(" ()") for layer in order for name in re.split(r"[:|]", layer)]


def is_room(name: str) -> bool:
    return (PACKAGE / name).is_dir()


def purpose(name: str) -> str:
    """The first paragraph of a room's or a file's docstring."""
    path = PACKAGE / name / "__init__.py" if is_room(name) else PACKAGE / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None, f"{path} has no docstring"
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "`").rstrip(".")


def defined(path: Path) -> set[str]:
    """The functions, classes and methods of a file."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_page_has_every_room_in_the_order_of_imports() -> None:
    rows = [f"| `{name}{'/' if is_room(name) else '.py'}` | {purpose(name)} |\n" for name in layers()]
    expected = HEADER + "".join(rows)
    assert expected in PAGE, f"the table of rooms should read:\n{expected}"


def test_every_room_is_a_layer_and_few_files_stand_beside_the_rooms() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(layers()) == sorted(rooms | files)
    assert len(files) <= 10


@pytest.mark.parametrize(("name", "path"), NAMES)
def test_the_page_names_what_is_in_the_code(name: str, path: str) -> None:
    assert name in defined(PACKAGE / path)


def test_the_page_follows_a_delta_and_a_batch() -> None:
    assert len(NAMES) > 20
