"""A run folder's config.yaml goes on to be read, and to name classes as it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pins import configuration


def test_a_stored_configuration_is_read_and_a_run_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = configuration.STORED.read_text()
    written = configuration.written_by_a_run(tmp_path)
    old, new = configuration.parsed(stored), configuration.parsed(written)
    assert dict(configuration.class_paths(new)) == dict(configuration.class_paths(old))
    assert list(configuration.keys_of(new)) == list(configuration.keys_of(old))
    for section in ("model", "data"):
        assert new[section] == old[section]
    for part in ("strategy", "callbacks"):
        assert new["trainer"][part] == old["trainer"][part]

    file = tmp_path / "stored.yaml"
    file.write_text(stored.replace(configuration.PLACE, str(tmp_path)))
    capsys.readouterr()
    assert configuration.run(["fit", "--config", str(file), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "adam (lr 0.02, betas (0.8, 0.9))" in plan
    assert "int8 (group 64)" in plan


def test_the_stored_configuration_names_what_it_is_about() -> None:
    old = configuration.parsed(configuration.STORED.read_text())
    assert set(dict(configuration.class_paths(old)).values()) == {
        "lightning_parablock.ParaBlockStrategy",
        "lightning_parablock.ServerAdam",
        "lightning_parablock.Int8",
        "lightning_parablock.models.CausalLM",
        "lightning_parablock.data.FederatedTextDataModule",
        "lightning_parablock.callbacks.ClientSight",
        "lightning_parablock.callbacks.HuggingFaceExport",
    }
