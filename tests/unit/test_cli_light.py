"""What the command line does without Lightning, and that the strategies are known to Lightning all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import lightning_parablock
from lightning_parablock.cli import main
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.models.loading import network_of_architecture
from lightning_parablock.system import lazy
from tests.unit.tiny_text import llama_config

WITHOUT_LIGHTNING = [
    ["--help"],
    ["--version"],
    *([command.name, "--help"] for command in COMMANDS.values() if command.parser or command.commands),
    *([*own.name.split(), "--help"] for command in COMMANDS.values() for own in command.commands),
    ["site", "init"],
    ["federation", "create", "wards", "--cards", "nowhere"],
    ["fitt"],
    [],
    ["report", "nowhere"],
    ["report", "run"],
    ["export", "--outputt", "x"],
    ["plan", "--client", "3"],
]
PROGRAM = """
import json, sys
from lightning_parablock.cli import main

def code(words):
    try:
        return main(words)
    except SystemExit as end:
        return end.code

def loaded():
    return sorted({"torch", "lightning", "lightning_parablock.transport.link_probe"} & set(sys.modules))

print(json.dumps([[code(words), loaded()] for words in json.loads(sys.argv[1])]))
"""


def python(program: str, *args: str, cwd: Path | None = None) -> str:
    """What a program prints in its last line, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True, cwd=cwd)
    return done.stdout.splitlines()[-1]


def test_help_versions_mistakes_and_reports_do_not_import_lightning(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"state": "finished", "versions": {}}))
    results = json.loads(python(PROGRAM, json.dumps(WITHOUT_LIGHTNING), cwd=tmp_path))
    seen = {" ".join(words): result for words, result in zip(WITHOUT_LIGHTNING, results, strict=True)}
    assert {words: imported for words, (_, imported) in seen.items() if imported} == {}
    assert {words for words, (code, _) in seen.items() if code} == {
        *("fitt", "", "report nowhere", "export --outputt x", "plan --client 3"),
        *("site init", "federation create wards --cards nowhere"),
    }
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_model_is_exported_without_lightning(tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    architecture = json.dumps({"model_type": "llama", "num_attention_heads": 1, "num_key_value_heads": 1, **sizes})
    state = {
        f"network.{name}": value for name, value in network_of_architecture(architecture, None).state_dict().items()
    }
    hyperparameters = {"architecture": architecture, "model": "x"}
    torch.save({"state_dict": state, "hyper_parameters": hyperparameters}, tmp_path / "last.ckpt")
    words = ["export", "--ckpt_path", "last.ckpt", "--output", "model", "--no-tokenizer"]
    assert json.loads(python(PROGRAM, json.dumps([words]), cwd=tmp_path)) == [[0, ["torch"]]]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_plan_is_made_without_lightning(tmp_path: Path) -> None:
    llama_config(num_hidden_layers=3).save_pretrained(tmp_path)
    program = f"import lightning_parablock.cli.commands.plan as plan; plan.SHAPES = []\n{PROGRAM}"
    words = ["plan", "--model", str(tmp_path), "--rate", "1gbit", "--step_s", "1"]
    assert json.loads(python(program, json.dumps([words]))) == [[0, ["torch"]]]


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    versions = dict(line.split(" ") for line in capsys.readouterr().out.splitlines())
    assert versions["lightning-parablock"] == lightning_parablock.__version__
    assert versions["python"] == sys.version.split()[0]
    assert {name: versions[name] for name in ("torch", "lightning")} == {
        name: metadata.version(name) for name in ("torch", "lightning")
    }


def test_every_command_is_in_the_help_and_can_be_carried_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS.values():
        assert any(line.split()[:1] == [command.name] and line.endswith(command.help) for line in lines)
        for part in (command, *command.commands):
            for place in filter(None, (part.run, part.parser)):
                assert callable(part.function(place))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_file_named_like_a_command_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("raise SystemExit('the script ran')")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: lightning-parablock {name}")


# --- registration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports",
    [
        "import lightning_parablock; import lightning",
        "import lightning; import lightning_parablock",
        "import lightning_parablock; import lightning.pytorch",
        "from lightning_parablock import ParaBlockStrategy",
        "import lightning_parablock; from lightning.pytorch.strategies import DDPStrategy",
    ],
)
def test_the_strategies_are_registered_in_whichever_order_the_packages_are_imported(imports: str) -> None:
    program = f"""
{imports}
from lightning.pytorch.strategies import StrategyRegistry
import lightning_parablock
found = StrategyRegistry["parablock"]["strategy"]
print(found is lightning_parablock.ParaBlockStrategy, StrategyRegistry.available_strategies().count("fedbcd"))
"""
    assert python(program) == "True 1"


def test_an_action_waits_for_a_module_that_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "comes_later.py").write_text("raise ImportError('not yet')")
    done: list[str] = []
    finders = list(sys.meta_path)
    lazy.after_import("comes_later", lambda: done.append("done"))
    with pytest.raises(ImportError, match="not yet"):
        __import__("comes_later")
    assert done == []  # a failed import may be tried again
    (tmp_path / "comes_later.py").write_text("VALUE = 3  # and longer than before")
    sys.path_importer_cache.clear()
    module = __import__("comes_later")
    assert (module.VALUE, done, sys.meta_path) == (3, ["done"], finders)
    assert module.__loader__.get_source("comes_later").startswith("VALUE")
    lazy.after_import("comes_later", lambda: done.append("again"))
    assert done == ["done", "again"]


def test_a_name_that_a_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="'lightning_parablock' has no attribute 'Nothing'"):
        _ = lightning_parablock.Nothing  # type: ignore[attr-defined]
