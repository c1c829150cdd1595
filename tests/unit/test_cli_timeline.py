"""Records as metrics, as a Chrome trace and as a picture."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_parablock.callbacks.gather import NewRecords, gather_objects
from lightning_parablock.callbacks.metrics import metrics_of
from lightning_parablock.callbacks.palette import (
    EXPOSED_COLOUR,
    SLOWER_COLOUR,
    SUBMITTED_COLOUR,
    block_colours,
    legend_blocks,
)
from lightning_parablock.callbacks.picture import draw_timeline, left_out
from lightning_parablock.callbacks.trace import SUBMITTED, chrome_trace
from lightning_parablock.federation.names import ClientNames
from tests.unit.test_cli_report import record


def test_the_trace_has_a_process_a_client_and_two_threads() -> None:
    trace = chrome_trace([record(t, c) for t in range(2) for c in range(2)])
    names = [(e["pid"], e["args"]["name"]) for e in trace["traceEvents"] if e["ph"] == "M"]
    assert names == [(c, name) for c in range(2) for name in (f"client {c}", "compute", "exchange")]


def test_the_trace_is_in_microseconds_from_the_first_round() -> None:
    events = [e for e in chrome_trace([record(1, 0, exposed_s=0.5), record(0, 0)])["traceEvents"] if e["ph"] == "X"]
    spans = {(e["name"], e["cat"]): (e["ts"], e["dur"]) for e in events}
    assert spans["layers.0", "compute"] == (0.0, 4e6)
    assert spans["layers.1", "compute"] == (5e6, 4e6)
    assert spans[SUBMITTED, "exchange"] == (9e6, 0.5e6)  # submitted at 9 s, every client had at 9.5 s
    assert spans["layers.1", "exchange"] == (9.5e6, 2e6)
    assert spans["exposed", "exchange"] == (11e6, 0.5e6)  # the end of the exchange, at 11.5 s


def test_a_wait_that_did_not_happen_is_no_event() -> None:
    names = [e["name"] for e in chrome_trace([record(0, 0, exposed_s=0.0)])["traceEvents"]]
    assert "exposed" not in names


def test_no_records_make_an_empty_trace() -> None:
    assert chrome_trace([])["traceEvents"] == []


def coloured(path: Path) -> set[tuple[int, ...]]:
    pixels = (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    return {tuple(pixel) for pixel in pixels.tolist()}


def above_the_legend(path: Path, colour: tuple[int, int, int]) -> int:
    """Number of pixels of that colour."""
    drawn = (imread(path)[..., :3] * 255).round().astype(int)
    return int((drawn[: drawn.shape[0] * 3 // 4] == colour).all(axis=2).sum())


def test_the_picture_marks_exposed_waits_in_red(tmp_path: Path) -> None:
    red = (0xD6, 0x27, 0x28)
    draw_timeline([record(t, c, exposed_s=1.0) for t in range(3) for c in range(2)], tmp_path / "waits.png")
    assert red in coloured(tmp_path / "waits.png")
    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)  # the first two blocks, as on the report page
    assert {blue, orange} <= coloured(tmp_path / "waits.png")


def test_waiting_for_other_clients_to_submit_is_drawn_apart_from_the_exchange(tmp_path: Path) -> None:
    """The delta is ready at 4 s, every client's at 4.5 s: grey in between, and no grey where nothing waited."""
    grey = (0xD9, 0xD9, 0xD9)
    together = [replace(record(t, 0), exchange_ready_s=1004.0 + 5 * t) for t in range(3)]
    pixels = list[int]()
    for records in ([record(t, 0) for t in range(3)], together):
        draw_timeline(records, tmp_path / "x.png")
        pixels.append(above_the_legend(tmp_path / "x.png", grey))
    assert pixels[0] > 1000 > 100 > pixels[1]  # a letter's edge may have it, too


def test_an_exchange_of_microseconds_is_a_line_of_its_colour(tmp_path: Path) -> None:
    """Two rounds of one client; the second block's computation takes no time, so that only its exchange has colour."""
    orange = (0xFF, 0x7F, 0x0E)
    first, second = record(0, 0), record(1, 0, exchange_s=25e-6)
    draw_timeline([first, replace(second, start_s=second.end_s)], tmp_path / "x.png")
    assert above_the_legend(tmp_path / "x.png", orange) > 50


@pytest.mark.parametrize("length", [4, 40, 110])
def test_the_legend_is_no_wider_than_the_picture(tmp_path: Path, length: int) -> None:
    widths: list[tuple[float, float]] = []

    def measured(figure: Figure, *_: Any, **__: Any) -> None:
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        widths.append((box.x0, box.x1 / figure.bbox.width))

    names = [f"{t}{'m.weight' * 20}"[:length] for t in range(6)]
    with mock.patch.object(Figure, "savefig", measured):
        draw_timeline([replace(record(t, 0), block=name) for t, name in enumerate(names)], tmp_path / "x.png")
    (left, right) = widths[0]
    assert left >= 0 and right <= 1


def test_waits_of_microseconds_are_left_out_and_said(tmp_path: Path) -> None:
    red = (0xD6, 0x27, 0x28)
    pixels = list[int]()
    for exposed_s in (25e-6, 1.0):
        draw_timeline([record(t, 0, exposed_s=exposed_s) for t in range(3)], tmp_path / "x.png")
        pixels.append(above_the_legend(tmp_path / "x.png", red))
    assert pixels[0] == 0 < pixels[1]
    assert left_out([25e-6, 25e-6, 0.5, 0.0], 1e-3) == "2 waits shorter than 1 ms not drawn (0.05 ms in all)"
    assert left_out([0.5, 0.0], 1e-3) == ""


@pytest.mark.parametrize("n_blocks", [2, 16, 17, 80])
def test_every_block_has_a_colour_of_its_own_that_is_no_waits(n_blocks: int) -> None:
    colours = block_colours(f"layers.{i}" for i in range(n_blocks))
    assert list(colours) == [f"layers.{i}" for i in range(n_blocks)]
    assert len({EXPOSED_COLOUR, SLOWER_COLOUR, SUBMITTED_COLOUR, *colours.values()}) == n_blocks + 3
    assert legend_blocks(colours) == (list(colours) if n_blocks <= 16 else ["layers.0", f"layers.{n_blocks - 1}"])


def test_sites_have_their_names_in_the_trace() -> None:
    trace = chrome_trace([record(0, c) for c in range(2)], ClientNames(("lyon", "oslo")))
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["site lyon", "site oslo"]


@pytest.mark.parametrize("n_rounds", [1, 40, 200])
def test_any_number_of_rounds_can_be_drawn(tmp_path: Path, n_rounds: int) -> None:
    draw_timeline([record(t, 0) for t in range(n_rounds)], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_nothing_is_drawn_without_records(tmp_path: Path) -> None:
    draw_timeline([], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_new_records_are_handed_out_once_and_of_the_first_client_only() -> None:
    records = deque([record(0, 2), record(0, 3)])
    strategy = SimpleNamespace(round_records=records)
    new = NewRecords()
    assert [(r.round, r.client) for r in new.take(strategy)] == [(0, 2)]
    assert new.take(strategy) == []
    records.extend([record(1, 2), record(1, 3), record(2, 2), record(2, 3)])
    assert [(r.round, r.client) for r in new.take(strategy)] == [(1, 2), (2, 2)]
    # Rounds that are over at once, in which other clients of the rank trained.
    records.extend([record(3, 3), record(4, 2), record(5, 2), record(5, 3)])
    assert [(r.round, r.client) for r in new.take(strategy)] == [(3, 3), (4, 2), (5, 2)]
    assert NewRecords().take(SimpleNamespace()) == []


def test_the_logged_names() -> None:
    metrics = metrics_of(record(3, 0, exposed_s=0.5), {"layers.3": 7})
    assert metrics["parablock/round"] == 3
    assert metrics["parablock/block"] == 7
    assert metrics["parablock/exposed_s"] == 0.5
    assert metrics["parablock/wait_peer_s"] == 0.25
    assert metrics["parablock/upload_bytes"] == 1000
    assert metrics["parablock/download_bytes"] == 2000


def test_gathering_without_a_group_and_with_the_strategys_own() -> None:
    assert gather_objects(object(), 3) == [3]
    assert gather_objects(SimpleNamespace(gather_objects=lambda value: [value, value + 1]), 3) == [3, 4]
