"""``lightning-parablock init``: a file that fit takes as it is, and never one that was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_parablock.cli import main
from lightning_parablock.cli.configuration import read_configuration
from lightning_parablock.strategy.presets import PRESETS


def init(folder: Path, *words: str) -> Path:
    assert main(["init", str(folder), *words]) == 0
    return folder / "run.yaml"


def strategy_of(configuration: dict[str, Any]) -> dict[str, Any]:
    return configuration["trainer"]["strategy"]["init_args"]


def test_the_file_is_what_fit_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--sites", "north, south,east", "--rendezvous", "hub.example.org:29501", "--ports", "40100-40199")
    path = init(tmp_path / "new" / "folder", *words, "--model", "/models/small: one", "--source", "data/rows.jsonl")
    printed = capsys.readouterr().out
    for site in ("north", "south", "east"):
        assert f"lightning-parablock fit --config run.yaml --site {site}\n" in printed
    assert "29501 on hub.example.org" in printed and "40100-40199 on every site" in printed

    found = read_configuration(["fit", "--config", str(path), "--site", "south"])
    wanted = {"site": "south", "rendezvous": "hub.example.org:29501", "ports": "40100-40199", "delay_steps": None}
    assert {name: strategy_of(found)[name] for name in wanted} == wanted
    assert (found["trainer"]["num_nodes"], found["trainer"]["devices"]) == (3, 1)
    assert found["model"]["init_args"]["model"] == "/models/small: one"
    assert {name: found["data"]["init_args"][name] for name in ("source", "partition")} == {
        "source": "data/rows.jsonl",
        "partition": "auto",
    }


def test_with_a_lighthouse_sites_may_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = init(tmp_path, "--sites", "a,b,c,d", "--lighthouse", "hub.example.org:29510")
    printed = capsys.readouterr().out
    assert "29510 on hub.example.org, the lighthouse\n" in printed
    assert "3. Start the lighthouse on hub.example.org, and leave it running:\n" in printed
    assert (
        "  lightning-parablock lighthouse --port 29510\n4. Start the sites, in any order: the first 3 of them found"
        in printed
    )
    found = read_configuration(["fit", "--config", str(path), "--site", "b"])
    wanted = {"site": "b", "lighthouse": "hub.example.org:29510", "min_clients": 3, "rendezvous": None}
    assert {name: strategy_of(found)[name] for name in wanted} == wanted
    assert "num_nodes" not in yaml.safe_load(path.read_text())["trainer"]
    assert "docs/elastic.md explains the ports, docs/sites.md the data and what leaves a site.\n" in path.read_text()


@pytest.mark.parametrize("method", ["parablock", "fedbcd", "fedavg", "diloco"])
def test_every_method_is_its_preset_with_fewer_steps(tmp_path: Path, method: str) -> None:
    found = strategy_of(read_configuration(["fit", "--config", str(init(tmp_path, "--method", method)), "--site", "a"]))
    preset = {name: value for name, value in PRESETS[method][1].items() if name != "local_steps"}
    assert {name: found[name] for name in preset} == preset
    assert found["local_steps"] in (4, 50)


def test_every_key_is_explained(tmp_path: Path) -> None:
    lines = init(tmp_path).read_text().splitlines()
    assert [line for line in lines if ":" in line and "#" not in line and not line.endswith(":")] == [
        "    class_path: lightning_parablock.ParaBlockStrategy",
        "  class_path: lightning_parablock.data.FederatedTextDataModule",
    ]


@pytest.mark.parametrize("address", ["10.0.0.1:29500", "[fe80::1]:29500"])
def test_an_address_is_read_back(tmp_path: Path, address: str) -> None:
    text = init(tmp_path, "--rendezvous", address).read_text()
    assert yaml.safe_load(text)["trainer"]["strategy"]["init_args"]["rendezvous"] == address


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "is there already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "run.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sites a", "sites must be two names or more"),
        ("--sites a,b,a", "a name is given twice in sites 'a,b,a'"),
        ("--sites a,b/c", "site must be a name of 1 to 64 letters"),
        ("--rendezvous hub", "rendezvous must be host:port, such as"),
        ("--rendezvous hub:0", "rendezvous must be host:port, such as"),
        ("--lighthouse hub", "lighthouse must be host:port, such as"),
        ("--lighthouse h:1 --rendezvous h:2", "keep one"),
        ("--ports 5-3", "ports must be a range of TCP ports"),
        ("--method parablok", "did you mean 'parablock'?"),
        ("--site a,b", "did you mean --sites?"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    try:
        code = main(["init", str(tmp_path / "new"), *words.split()])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
