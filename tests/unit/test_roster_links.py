"""From a signed roster and a site's keys to the addresses that its run may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli import main
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting.roster_links import links_of
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.federation import Layout, create, revoke
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import encoded, new_link_keys
from lightning_parablock.site_kit.membership import read_member
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.strategy.private import member_of, private_links, refuse_shared_links
from lightning_parablock.strategy.session_host import SessionHost
from tests.support.lightning_run import trainer_for

SITES = ("a", "b", "c")


@pytest.fixture
def identities(tmp_path: Path) -> dict[str, Identity]:
    return {name: Identity.create(tmp_path / "keys" / name, name) for name in SITES}


def signed(roster: Roster, identities: dict[str, Identity]) -> Roster:
    signatures = {name: encoded(identities[name].sign(roster.signed_bytes)) for name in roster.names}
    return roster.with_signatures(signatures)


@pytest.fixture
def first(identities: dict[str, Identity]) -> Roster:
    """Version 1, signed by all."""
    hub = ("hub.example.org:51820", new_link_keys().public)
    return signed(create("clinic", [one.card for one in identities.values()], Layout(), hub), identities)


@pytest.fixture
def path(tmp_path: Path, first: Roster) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(first.text)
    return path


def test_the_addresses_are_those_of_the_roster(path: Path, identities: dict[str, Identity]) -> None:
    links = links_of(read_member(path, identities["b"].folder, "b"))
    assert links.own == "10.82.0.3" and links.hub == "10.81.0.1"
    assert links.inner == {"a": "10.82.0.2", "b": "10.82.0.3", "c": "10.82.0.4"}
    assert links.outer == {"a": "10.81.0.2", "b": "10.81.0.3", "c": "10.81.0.4"}
    folder = identities["b"].folder
    assert links.files == (f"{folder}/clinic-outer.conf", f"{folder}/clinic-inner.conf")
    assert links.alias == f"version 1 of federation clinic, SHA-256 {Roster.read(path).digest.hex()}"


def test_the_keys_must_be_those_of_the_site(path: Path, identities: dict[str, Identity], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"site='a', and the keys in .*/b are those of site 'b'"):
        links_of(read_member(path, identities["b"].folder, "a"))
    Identity.create(tmp_path / "newer", "a")
    with pytest.raises(ConfigurationError, match="has another card for site a than that of the keys in"):
        links_of(read_member(path, tmp_path / "newer", "a"))


def test_a_missing_or_foreign_signature_and_an_old_version_are_refused(
    path: Path, first: Roster, identities: dict[str, Identity]
) -> None:
    folder = identities["a"].folder
    path.write_text(replace(first, signatures={n: first.signatures[n] for n in "ac"}).text)
    with pytest.raises(ConfigurationError, match="is not signed by b"):
        links_of(read_member(path, folder, "a"))
    path.write_text(first.text.replace("10.82.0.4", "10.82.0.9"))
    with pytest.raises(ConfigurationError, match="the signature of site a is wrong"):
        links_of(read_member(path, folder, "a"))
    path.write_text(signed(revoke(first, ["c"]), identities).text)
    assert links_of(read_member(path, folder, "a")).inner == {"a": "10.82.0.2", "b": "10.82.0.3"}
    with pytest.raises(ConfigurationError, match="site 'c' is not in version 2 of federation clinic"):
        links_of(read_member(path, identities["c"].folder, "c"))
    path.write_text(first.text)
    with pytest.raises(ConfigurationError, match="version 1 of federation clinic is older than version 2"):
        links_of(read_member(path, folder, "a"))


def test_without_a_federation_there_is_nothing_to_check() -> None:
    assert private_links(Settings(), member_of(Settings(), None), rendezvous="anywhere:1") is None
    with pytest.raises(ConfigurationError, match="keys='k' belongs to private links, which federation turns on"):
        Settings(keys="k")


def test_a_federation_needs_the_name_of_the_site(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"federation='.*' needs site"):
        member_of(Settings(federation=str(path)), None)


def test_addresses_outside_are_refused_when_the_strategy_is_made(path: Path, identities: dict[str, Identity]) -> None:
    own = {"federation": str(path), "keys": str(identities["a"].folder)}
    member = member_of(Settings(**own), "a")
    with pytest.raises(ConfigurationError, match=r"lighthouse='10\.82\.0\.3:29510' is outside the private network"):
        private_links(Settings(**own, lighthouse="10.82.0.3:29510", min_clients=2), member, rendezvous=None)
    with pytest.raises(ConfigurationError, match=r"^rendezvous: the ranks are to meet at '10\.81\.0\.1', which is"):
        private_links(Settings(**own), member, rendezvous="10.81.0.1:29500")
    assert private_links(Settings(**own), member, rendezvous="10.82.0.3:29500") is not None


def test_one_process_per_site_and_gloo(path: Path, identities: dict[str, Identity]) -> None:
    links = links_of(read_member(path, identities["a"].folder, "a"))
    refuse_shared_links(links, n_processes=1, backend="gloo")
    with pytest.raises(ConfigurationError, match="devices=2: with federation"):
        refuse_shared_links(links, n_processes=2, backend="gloo")
    with pytest.raises(ConfigurationError, match="process_group_backend='nccl' with federation"):
        refuse_shared_links(links, n_processes=1, backend="nccl")


def test_the_command_refuses_before_the_model_is_built(
    path: Path, identities: dict[str, Identity], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--strategy.federation", str(path), "--strategy.keys", str(identities["a"].folder), "--site", "a"]
    words += ["--strategy.lighthouse", "hub.example.org:29510", "--strategy.min_clients", "2"]
    assert (
        main(["fit", "--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData", *words]) == 2
    )
    assert "lighthouse='hub.example.org:29510' is outside the private network" in capsys.readouterr().err


def test_a_secure_run_reads_its_roster_once(
    path: Path, identities: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links and its masks are those of one version, whatever becomes of the file meanwhile."""
    options: Any = {"federation": str(path), "keys": str(identities["a"].folder), "process_group_backend": "gloo"}
    strategy = ParaBlockStrategy(aggregation="secure", site="a", **options)
    path.unlink()
    strategy._trainer = trainer_for("auto")
    strategy._trainer.state.fn = TrainerFn.FITTING
    strategy._lightning_module = pl.LightningModule()
    monkeypatch.setattr(SessionHost, "setup_environment", mock.Mock(side_effect=StopIteration))
    with pytest.raises(StopIteration):
        strategy.setup_environment()
