"""What the option ``shared`` of the command line says holds for all callbacks, also those that a module brings."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Callback

from lightning_parablock.callbacks import ClientSight, Timeline
from lightning_parablock.callbacks.sight import Shared
from lightning_parablock.cli import main
from lightning_parablock.cli.sharing import refuse_more_shared
from lightning_parablock.errors import ConfigurationError
from tests.support.cli_toys import Toy


class Telling(Toy):
    """Brings a callback along which takes the place of the command line's."""

    def configure_callbacks(self) -> list[Callback]:
        return [ClientSight("aggregates")]


@pytest.mark.parametrize(
    ("shared", "callback", "named"),
    [
        ("nothing", ClientSight("aggregates"), "ClientSight among the callbacks has shared='aggregates'"),
        ("aggregates", ClientSight("clients"), "ClientSight among the callbacks has shared='clients'"),
        ("aggregates", Timeline(), "Timeline among the callbacks gathers the rounds of every client"),
    ],
)
def test_more_is_refused_by_name(shared: Shared, callback: Callback, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^--shared {shared}, but the {named}"):
        refuse_more_shared(shared, [callback])


def test_the_same_or_less_is_not() -> None:
    refuse_more_shared("nothing", [ClientSight("nothing"), Timeline(own_only=True)])
    refuse_more_shared("aggregates", [ClientSight("nothing"), Timeline(own_only=True)])
    refuse_more_shared("clients", [ClientSight("clients"), Timeline()])


@pytest.mark.parametrize(("shared", "code"), [("aggregates", 0), ("nothing", 1)])
def test_a_modules_own_callback_tells_no_more(
    shared: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--model", "tests.unit.test_cli_sharing.Telling", "--data", "tests.support.cli_toys.ToyData"]
    words += ["--strategy", "parablock", "--trainer.devices", "1", "--trainer.max_steps", "2"]
    assert main([*words, "--shared", shared, "--run_dir", str(tmp_path / "run")]) == code
    said = "error: --shared nothing, but the ClientSight among the callbacks has shared='aggregates'"
    assert (said in capsys.readouterr().err) == (code == 1)
