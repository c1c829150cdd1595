from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.data.jsonl import find_files, read_file
from lightning_parablock.data.rows import Row, label_of, require_columns, text_of
from lightning_parablock.data.sources import Source, files_of, load_rows
from lightning_parablock.data.stdlib import read_stdlib
from lightning_parablock.errors import DataError
from tests.unit.tiny_text import write_jsonl


def test_reads_rows_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "é"}\r\n\n{"text": "two"}'.encode())
    rows = read_file(path)
    assert [row.values["text"] for row in rows] == ["é", "two"]
    assert [row.place for row in rows] == [1, 3]
    assert rows[1].where == f"{path}, line 3"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
        (b'["a"]', "one JSON object a line is needed, found list"),
        (b'{"text": "\xff"}', "not UTF-8 text (byte 11 of the line)"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        load_rows(Source(str(path)))
    assert f"{path}, line 2: " in str(caught.value)
    assert said in str(caught.value)


def test_every_broken_line_counts_and_the_first_ones_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n" + "no\n" * 7)
    with pytest.raises(DataError, match=r"line 2: .*line 6: .*and 2 more broken lines"):
        read_file(path)


def test_a_missing_file_names_the_nearest_existing_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"trian\.jsonl does not exist; did you mean .*train\.jsonl"):
        load_rows(Source(str(tmp_path / "trian.jsonl")))


def test_a_missing_folder_names_the_nearest_existing_one(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(DataError, match=r"corpsu/a\.jsonl does not exist; did you mean .*corpus"):
        load_rows(Source(str(tmp_path / "corpsu" / "a.jsonl")))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"train\.jsonl is empty"):
        load_rows(Source(str(path)))


def test_a_folder_stands_for_its_files_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "notes.md").write_text("no data")
    rows = load_rows(Source(str(tmp_path)))
    assert [row.values["text"] for row in rows] == ["a", "b", "c"]
    assert files_of(rows) == [str(tmp_path / f"{name}.jsonl") for name in "abc"]


def test_a_folder_without_data_and_a_file_named_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        find_files([str(tmp_path)])
    path = write_jsonl(tmp_path / "a.jsonl", [{}])
    with pytest.raises(DataError, match="named twice"):
        find_files([str(path), str(tmp_path)])


def test_columns_are_checked_and_named() -> None:
    rows = [Row({"text": "a", "task": 3}, "f", 1), Row({"text": None}, "f", 2)]
    with pytest.raises(DataError, match=r"f, line 2 has no column 'task'; columns there are: text"):
        require_columns(rows, ["text", "task"], "f")
    with pytest.raises(DataError, match=r"no label column 'tsak'; columns there are: text, task; did you mean 'task'"):
        label_of(rows[0], "tsak")
    with pytest.raises(DataError, match=r"f, line 2: column 'text' must hold text, found NoneType"):
        text_of(rows[1], "text")
    assert label_of(rows[0], "task") == "3"


def fake_library(root: Path) -> Path:
    files = {
        "http/__init__.py": "a", "http/server.py": "b", "http/test/t.py": "left out", "http/__pycache__/x.py": "no",
        "abc.py": "c", "empty.py": "\n", "test/__init__.py": "left out", "site-packages/x/__init__.py": "left out",
        "_sysconfigdata_x.py": "left out", "lib2to3/__init__.py": "d", "lib2to3/tests/t.py": "left out", "docs.txt": "",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "http" / "latin.py").write_bytes(b"caf\xe9")
    return root


def test_stdlib_takes_sources_in_sorted_order_and_leaves_tests_out(tmp_path: Path) -> None:
    rows = read_stdlib(root=fake_library(tmp_path))
    found = [(row.file, row.values["package"], row.values["text"]) for row in rows]
    assert found == [
        ("abc.py", "abc", "c"),
        ("http/__init__.py", "http", "a"),
        ("http/server.py", "http", "b"),
        ("lib2to3/__init__.py", "lib2to3", "d"),
    ]
    assert read_stdlib(["http"], root=tmp_path) == rows[1:3]


def test_stdlib_names_the_nearest_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no package 'htpt'; .*did you mean 'http'"):
        read_stdlib(["htpt"], root=fake_library(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no Python source files"):
        read_stdlib(root=tmp_path / "none")


def test_the_running_library_is_there() -> None:
    rows = load_rows(Source("python-stdlib"), ["asyncio", "email"])
    assert {row.values["package"] for row in rows} == {"asyncio", "email"}
    assert sum(len(row.values["text"]) for row in rows) > 500_000
    with pytest.raises(DataError, match="did you mean 'python-stdlib'"):
        load_rows(Source("python-sdtlib"))


def test_a_hub_id_goes_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((names, options))
        return [{"question": "a"}, {"question": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = load_rows(Source("owner/sums", config_name="main", split="test"))
    assert asked == [(("owner/sums", "main"), {"split": "test"})]
    assert rows == [Row({"question": "a"}, "owner/sums", 1), Row({"question": "b"}, "owner/sums", 2)]


def test_a_hub_failure_becomes_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: Any, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"'owner/sums'.* cannot be loaded from the hub: ConnectionError: no route"):
        load_rows(Source("owner/sums"))
    with pytest.raises(DataError, match="does not exist"):
        load_rows(Source("no/such/file"))


@pytest.mark.parametrize(
    ("source", "test_source", "expected"),
    [
        ("owner/sums", "owner/sums", "main"),
        ("rows.jsonl", "owner/sums", "main"),
        ("python-stdlib", "owner/sums", "main"),
        ("owner/sums", "owner/others", None),  # whose configurations have other names
    ],
)
def test_a_configuration_is_that_of_the_data_set_of_the_hub(
    source: str, test_source: str, expected: str | None
) -> None:
    data = FederatedTextDataModule(source, config_name="main", test_source=test_source)
    assert data.options.test == Source(test_source, expected, "test")
