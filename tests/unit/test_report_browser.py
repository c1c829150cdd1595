"""The report page in headless Chromium, without a network: its figures are drawn, and they show what they should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

from lightning_parablock.cli import main
from tests.unit.test_report_page import run_folder, with_sight

BLUE, ORANGE, RED = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0xD6, 0x27, 0x28)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_folder(tmp_path_factory.mktemp("run") / "20260131-120000")
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


def browse(page: Path, *options: str) -> str:
    """Standard output of Chromium after the page has had ten seconds of its own time."""
    found = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    assert found is not None, "this test needs chromium: apt-get install chromium"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=10000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'profile'}",
    ]
    done = subprocess.run(
        [found, *flags, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_every_figure_is_drawn(page: Path) -> None:
    drawn = browse(page, "--dump-dom")
    assert drawn.count('class="plot-container') == 3
    for text in ("val_loss", "train_loss", "MB sent by a client", "client 1 exchange", "hidden behind local steps"):
        assert text in drawn, text
    assert drawn.count('class="rangeslider-container"') == 1


def test_the_screenshot_shows_blocks_and_waits(page: Path) -> None:
    picture = page.with_name("page.png")
    browse(page, f"--screenshot={picture}", "--window-size=1300,1900")
    pixels = (imread(picture)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    counts = {colour: int((pixels == colour).all(axis=1).sum()) for colour in (BLUE, ORANGE, RED)}
    assert all(count > 500 for count in counts.values()), counts


def test_figures_of_each_client_are_drawn(tmp_path: Path) -> None:
    folder = with_sight(tmp_path)
    assert main(["report", str(folder)]) == 0
    drawn = browse(folder / "report.html", "--dump-dom")
    assert drawn.count('class="plot-container') == 4
    for text in ("own validation loss", "spread across clients", "validation loss by label", "drift of each round"):
        assert f">{text}</text>" in drawn, text
    assert "&lt;odd&gt;" in drawn and "<odd>" not in drawn
