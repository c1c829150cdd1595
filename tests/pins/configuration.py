"""A run of the command line whose config.yaml is stored, with a word in place of the folder that it ran in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import yaml

from lightning_parablock.cli import main
from tests.pins.stored import FOLDER
from tests.unit.tiny_text import save_tiny_llama, write_jsonl

STORED = FOLDER / "config.yaml"
PLACE = "/folder-of-the-run"


def class_and(path: str, **init_args: Any) -> str:
    """A class with its settings, as an option's value."""
    return json.dumps({"class_path": path, "init_args": init_args})


def prepare(folder: Path) -> None:
    """The model and the data of the run."""
    save_tiny_llama(folder / "model")
    write_jsonl(folder / "data.jsonl", [{"text": f"row {number} of a few " * 8} for number in range(24)])


def run(words: list[str]) -> int:
    """The exit code of a command line in this process."""
    with mock.patch("sys.argv", ["lightning-parablock", *words]):
        return main(words)


def words(folder: Path) -> list[str]:
    """A command line in users' spellings: a preset, objects by class path, callbacks, short names."""
    sight = json.loads(class_and("lightning_parablock.callbacks.ClientSight", shared="clients"))
    export = json.loads(class_and("lightning_parablock.callbacks.HuggingFaceExport", folder=str(folder / "exported")))
    return [
        *("fit", "--strategy", "fedbcd", "--strategy.blocks", "2", "--strategy.local_steps", "2"),
        *("--strategy.server_optimizer", class_and("lightning_parablock.ServerAdam", lr=0.02, betas=[0.8, 0.9])),
        *("--strategy.compression", class_and("lightning_parablock.Int8", group=64)),
        *("--model.model", str(folder / "model"), "--model.learning_rate", "1e-3"),
        *("--data.source", str(folder / "data.jsonl"), "--data.sequence_length", "16"),
        *("--trainer.callbacks", json.dumps([sight, export])),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "4"),
        *("--run_dir", str(folder / "run")),
    ]


def written_by_a_run(folder: Path) -> str:
    """The config.yaml that a run leaves in its folder."""
    prepare(folder)
    assert run(words(folder)) == 0
    return (folder / "run" / "config.yaml").read_text().replace(str(folder), PLACE)


def class_paths(configuration: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every class path of a configuration with the key that it stands at."""
    if isinstance(configuration, dict):
        for key, value in cast(dict[str, Any], configuration).items():
            if key == "class_path":
                yield at, value
            else:
                yield from class_paths(value, f"{at}.{key}")
    elif isinstance(configuration, list):
        for index, value in enumerate(cast(list[Any], configuration)):
            yield from class_paths(value, f"{at}[{index}]")


def keys_of(configuration: Any, at: str = "") -> Iterator[str]:
    """Every key of a configuration but those of Lightning's trainer itself."""
    if isinstance(configuration, dict):
        for key, value in cast(dict[str, Any], configuration).items():
            if at != ".trainer" or key in ("strategy", "callbacks"):
                yield f"{at}.{key}"
                yield from keys_of(value, f"{at}.{key}")
    elif isinstance(configuration, list):
        for index, value in enumerate(cast(list[Any], configuration)):
            yield from keys_of(value, f"{at}[{index}]")


def parsed(text: str) -> Any:
    """The configuration in a text."""
    return yaml.safe_load(text)
