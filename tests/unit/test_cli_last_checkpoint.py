"""``--ckpt_path last`` on the command line: refused where it could find nothing, with the file that was meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from lightning_parablock.cli.newest_checkpoint import refuse_last
from lightning_parablock.errors import ConfigurationError
from tests.unit.test_cli_errors import TOYS, complaint

SAVING = Namespace(class_path="ModelCheckpoint", init_args=Namespace(dirpath="kept"))


def trainer(root: Path, **options: Any) -> Namespace:
    return Namespace(default_root_dir=str(root), **options)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three checkpoints, of which the second is the newest, and a sidecar that is newer still."""
    files = ("1/a/checkpoints/x.ckpt", "2/b/final.ckpt", "3/a/last.ckpt", "2/b/final.ckpt.parablock")
    for name, time_s in zip(files, (10, 30, 20, 40), strict=True):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (time_s, time_s))
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"logger": None}, {"logger": False}, {"callbacks": []}, {"callbacks": None}])
@pytest.mark.parametrize(("site", "newest"), [(None, "2/b/final.ckpt"), ("a", "3/a/last.ckpt")])
def test_the_newest_file_is_named(runs: Path, options: dict[str, Any], site: str | None, newest: str) -> None:
    with pytest.raises(ConfigurationError, match="the run would begin anew; name the file") as refused:
        refuse_last("last", trainer(runs, **options), None, site)
    assert str(refused.value).endswith(f"--ckpt_path {runs / newest}")


def test_a_run_whose_sites_come_and_go_does_not_continue_from_its_final_model(runs: Path) -> None:
    """The search of such a site, too, looks into the new run folder alone; see ``searching_own``."""
    with pytest.raises(ConfigurationError, match="the run would begin anew; name the file") as refused:
        refuse_last("last", trainer(runs), None, None, is_elastic_fit=True)
    assert str(refused.value).endswith(f"--ckpt_path {runs / '3/a/last.ckpt'}")
    with pytest.raises(ConfigurationError, match="no checkpoint of this site yet: leave --ckpt_path out"):
        refuse_last("last", trainer(runs), None, "b", is_elastic_fit=True)
    refuse_last("last", trainer(runs, callbacks=[SAVING]), None, "a", is_elastic_fit=True)


def test_where_there_is_none_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="it has no checkpoint yet"):
        refuse_last("last", trainer(tmp_path), None, None)


@pytest.mark.parametrize("ckpt_path", [None, "best", "hpc", "a/last.ckpt"])
def test_other_names_are_fine(runs: Path, ckpt_path: str | None) -> None:
    refuse_last(ckpt_path, trainer(runs), None, None)


@pytest.mark.parametrize("options", [{"logger": Namespace()}, {"callbacks": [SAVING]}, {"callbacks": SAVING}])
def test_a_place_of_the_users_own_may_have_one(runs: Path, options: dict[str, Any]) -> None:
    refuse_last("last", trainer(runs, **options), None, None)


ELASTIC = "--strategy.lighthouse hub:29510 --strategy.min_clients 1 --strategy.site a"


@pytest.mark.parametrize(
    ("command", "newest"),
    [("fit", "2/b/final.ckpt"), ("validate", "2/b/final.ckpt"), (f"fit {ELASTIC}", "3/a/last.ckpt")],
)
def test_the_command_ends_before_anything_is_built(
    command: str, newest: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subcommand, *options = command.split()
    words = [subcommand, *TOYS, *options, "--ckpt_path", "last", "--trainer.default_root_dir", str(runs)]
    assert f"its newest checkpoint is {runs / newest}" in complaint(capsys, words)
    assert sorted(path.name for path in runs.iterdir()) == ["1", "2", "3"]
