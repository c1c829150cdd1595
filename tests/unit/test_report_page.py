"""The report page: what it reads back from a run's folder, what it shows, and how it fails."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.callbacks.palette import block_colours
from lightning_parablock.callbacks.trace import SUBMITTED, chrome_trace
from lightning_parablock.cli import main
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.report.page import facts
from lightning_parablock.report.page_clients import (
    CLIENT_HEADS,
    client_rows,
    clients_figure,
    label_rows,
    why_no_drift,
    why_no_rounds,
)
from lightning_parablock.report.page_figures import Clock, hidden_figure, loss_figure, timeline_figure, timeline_note
from lightning_parablock.runs.files import Point, RunFiles, read_run
from lightning_parablock.runs.round_steps import round_steps
from tests.unit.test_cli_report import record

MANIFEST: dict[str, Any] = {
    "state": "finished",
    "started": "2026-01-31T12:00:00+00:00",
    "command": ["lightning-parablock", "fit", "<b>"],
    "clients": 2,
    "hosts": ["north", "south"],
    "data": [{"clients_here": [0], "train": [{"examples": 1234}]}, None],
    "strategy": {"settings": {"local_steps": "4", "compression": "NoCompression()"}},
    "versions": {"torch": "2.13.0"},
    "result": {
        "rounds": 3,
        "fit_s": 12.3,
        "hidden_share": 0.875,
        "loss_before": {"val_loss": 3.0},
        "loss_after": {"val_loss": 2.5},
    },
}
METRICS = """epoch,parablock/block,parablock/round,step,train_loss,val_loss
0,,,0,,3.0
0,,,3,2.9,
,1.0,0.0,4,,
1,,,12,,2.5
"""


SIGHT = """parablock/val_loss_client_0,parablock/val_loss_client_1,parablock/val_loss_mean,parablock/val_loss_worst,\
parablock/val_loss_spread,parablock/val_loss_std,parablock/val_loss_label_<odd>,parablock/drift_mean,step,val_loss
3.0,5.0,4.0,5.0,2.0,1.0,4.5,,0,
,,,,,,,,0,3.0
2.0,2.5,2.25,2.5,0.5,0.25,2.125,0.5,12,
"""


def run_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}))
    (folder / "metrics.csv").write_text(METRICS)
    records = [record(t, c, exposed_s=0.5 * c) for t in range(3) for c in range(2)]
    (folder / "timeline.json").write_text(json.dumps(chrome_trace(records)))
    return folder


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path))
    assert run.metrics == {"val_loss": [Point(0, 3.0), Point(12, 2.5)], "train_loss": [Point(3, 2.9)]}
    assert [(one.round, one.client) for one in run.rounds] == [(t, c) for t in range(3) for c in range(2)]
    origin_s = record(0, 0).start_s
    for one in run.rounds:
        was = record(one.round, one.client, exposed_s=0.5 * one.client)
        assert one.block == was.block
        assert one.start_s == pytest.approx(was.start_s - origin_s)
        assert one.start_s + one.compute_s == pytest.approx(was.end_s - origin_s)
        assert one.exchange_start_s == pytest.approx(was.exchange_start_s - origin_s)
        assert one.exchange_end_s == pytest.approx(was.exchange_end_s - origin_s)
        assert one.exposed[1] == pytest.approx(was.exposed_s)
        assert (one.upload_bytes, one.download_bytes) == (was.upload_bytes, was.download_bytes)


def test_steps_become_rounds_seconds_and_bytes(tmp_path: Path) -> None:
    rounds = read_run(run_folder(tmp_path)).rounds
    clock = Clock(rounds, round_steps=4, n_clients=2)
    first, second = (one for one in rounds if one.client == 0 and one.round < 2)
    assert clock.round_of(6) == 1.5
    assert clock.seconds_of(0) == first.start_s == 0.0
    assert clock.seconds_of(6) == pytest.approx(second.start_s + second.compute_s / 2)
    assert clock.seconds_of(12) == max(one.exchange_end_s for one in rounds if one.client == 0)
    assert clock.seconds_of(13) is None and clock.megabytes_of(13) is None
    assert clock.megabytes_of(0) == 0
    assert clock.megabytes_of(12) == sum(one.upload_bytes for one in rounds) / 2 / 1e6
    sent = [clock.megabytes_of(step) for step in range(13)]
    assert sent == sorted(sent)  # type: ignore[type-var]


def test_the_loss_by_megabytes_has_no_jump_where_exchanges_take_place(tmp_path: Path) -> None:
    """Two clients with 1,000 bytes per round each: in the first round, too, every step has its part."""
    clock = Clock(read_run(run_folder(tmp_path)).rounds, round_steps=4, n_clients=2)
    assert [clock.megabytes_of(step) for step in range(6)] == pytest.approx([step * 0.001 / 4 for step in range(6)])


def test_the_part_of_a_run_that_was_resumed_has_its_own_seconds(tmp_path: Path) -> None:
    """Rounds 10 and 11 of 4 steps each: steps count from the first run's start."""
    folder = run_folder(tmp_path)
    (folder / "timeline.json").write_text(json.dumps(chrome_trace([record(t, c) for t in (10, 11) for c in range(2)])))
    clock = Clock(read_run(folder).rounds, round_steps=4, n_clients=2)
    assert clock.seconds_of(40) == 0.0
    assert clock.seconds_of(44) == clock.rounds[2].start_s > 0
    assert clock.seconds_of(48) == max(one.exchange_end_s for one in clock.rounds if one.client == 0)
    assert [clock.seconds_of(step) for step in (0, 39, 49)] == [None] * 3


def test_what_a_client_computed_while_others_were_late_is_no_hidden_exchange(tmp_path: Path) -> None:
    """Submitted at 101, everybody at 103, the commit at 103.5, of which the last 0.4 s exposed."""
    late = replace(
        record(0, 0), exchange_start_s=101.0, exchange_ready_s=103.0, exchange_end_s=103.5, exchange_s=0.5,
        exposed_s=0.4, wait_peer_s=0.0,
    )  # fmt: skip
    folder = run_folder(tmp_path)
    (folder / "timeline.json").write_text(json.dumps(chrome_trace([late])))
    run = read_run(folder)
    assert "20.0 %" in client_rows(run)[0]
    figure: Any = hidden_figure(run.rounds)
    assert [bar.y[0] for bar in figure.data] == pytest.approx([0.1, 0.4, 0.0])


@pytest.mark.parametrize(
    ("manifest", "steps"),
    [
        ({"ranks": 2, "hosts": ["north"]}, 8),  # of which only the first is told
        ({"ranks": 2, "hosts": ["north", "south"]}, 8),
        ({"hosts": ["north", "south"]}, 8),  # of a version that did not say how many
        ({"ranks": 1, "hosts": ["north"]}, 16),
    ],
)
def test_a_round_has_the_local_steps_of_each_turn_of_a_rank(manifest: dict[str, Any], steps: int) -> None:
    settings = {"strategy": {"settings": {"local_steps": "4", "clients": "4"}}}
    assert round_steps(RunFiles(Path(), {**settings, **manifest})) == steps


def test_the_page_carries_everything_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "one")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = (folder / "report.html").read_text()
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_scripts)
    assert not re.search(r"<script[^>]+src=", page)
    for text in ("finished", "3.0000 before, 2.5000 after", "87.5 %", "north", "south", "1,234", "NoCompression()"):
        assert text in without_scripts, text
    for title in ("Loss", "Timeline", "Exchange of each round", "Clients", "Settings"):
        assert f"<h2>{title}</h2>" in without_scripts
    assert "&lt;b&gt;" in without_scripts and "<b>" not in without_scripts  # what users typed is text, not HTML


def test_timeline_and_picture_show_a_block_in_one_colour_and_waits_apart(tmp_path: Path) -> None:
    rounds = read_run(run_folder(tmp_path)).rounds
    figure: Any = timeline_figure(rounds, ClientNames(("lyon", "oslo")))
    bars = {bar.name: bar for bar in figure.data}
    colours = block_colours(one.block for one in rounds)
    assert {name: bars[name].marker.color for name in colours} == colours
    exchanges = bars["layers.1"]
    assert list(exchanges.y) == ["site lyon", "site oslo", "site lyon exchange", "site oslo exchange"]
    assert list(exchanges.base) == pytest.approx([5.0, 5.0, 9.5, 9.5])
    assert list(exchanges.x) == pytest.approx([4.0, 4.0, 2.0, 2.0])
    assert list(bars[SUBMITTED].base) == pytest.approx([4.0, 4.0, 9.0, 9.0, 14.0, 14.0])
    assert list(bars[SUBMITTED].x) == pytest.approx([0.5] * 6)
    assert figure.layout.modebar.orientation == "v"  # beside the legend, not on it
    assert figure.layout.xaxis.rangeslider.thickness * figure.layout.height > 50


def test_moments_of_standing_still_are_left_out_of_the_timeline_and_said(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    records = [replace(record(t, 0, exposed_s=25e-6), wait_peer_s=0.0) for t in range(3)]
    (folder / "timeline.json").write_text(json.dumps(chrome_trace(records)))
    rounds = read_run(folder).rounds
    figure: Any = timeline_figure(rounds)
    assert {bar.name for bar in figure.data} == {"layers.0", "layers.1", "layers.2", SUBMITTED}
    assert timeline_note(rounds) == "3 waits shorter than 1 ms not drawn (0.075 ms in all)"


def test_a_trace_of_an_earlier_version_is_read_too(tmp_path: Path) -> None:
    """There one span covers waiting for others and exchange."""
    trace = chrome_trace([record(0, 0)])
    events = [e for e in trace["traceEvents"] if e["name"] != SUBMITTED]
    for event in events:
        if event["ph"] == "X" and event["cat"] == "exchange" and event["name"] == "layers.0":
            event["ts"], event["dur"] = 4e6, 2.5e6
    folder = run_folder(tmp_path)
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": events}))
    (one,) = read_run(folder).rounds
    assert (one.exchange_start_s, one.exchange_ready_s, one.exchange_end_s) == pytest.approx((4.0, 4.5, 6.5))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"compression": "Int8()", "server_optimizer": "ServerSGD()"}, "Int8() is lossy"),
        ({"compression": "NoCompression()", "server_optimizer": "ServerAdam(lr=0.1)"}, "ServerAdam(lr=0.1) also holds"),
        ({"compression": "NoCompression()", "server_optimizer": "ServerSGD()"}, "parameters are not float32"),
    ],
)
def test_an_empty_drift_column_gives_its_reason(tmp_path: Path, settings: dict[str, str], why: str) -> None:
    folder = run_folder(tmp_path, strategy={"settings": {"local_steps": "4", **settings}})
    assert why in why_no_drift(read_run(folder))
    assert main(["report", str(folder)]) == 0
    assert "No drift, which compares" in (folder / "report.html").read_text()
    assert why_no_drift(read_run(with_sight(tmp_path / "known"))) == ""


def test_the_sites_of_a_run_are_named(tmp_path: Path) -> None:
    folder = with_sight(tmp_path)
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "sites": ["lyon", "oslo"]}))
    (folder / "metrics.csv").write_text(SIGHT.replace("client_0", "site_lyon").replace("client_1", "site_oslo"))
    run = read_run(folder)
    rows = client_rows(run)
    assert [row[0] for row in rows] == ["site lyon", "site oslo"]
    assert [row[CLIENT_HEADS.index("own validation loss")] for row in rows] == ["2.0000", "2.5000, the worst"]
    figure: Any = clients_figure(run, round_steps=4)
    assert {line.name for line in figure.data} >= {"site lyon", "site oslo"}
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "site lyon exchange" in page and "<td>site oslo</td>" in page and "client 0" not in page


def test_the_page_of_a_site_is_called_by_run_and_site(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "20260131-120000" / "oslo", site="oslo", sites=["lyon", "oslo"])
    assert main(["report", str(folder)]) == 0
    assert "<h1>20260131-120000, site oslo</h1>" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("path", "title"),
    [("lightning_parablock.models.CausalLM", "loss, nats per token"), ("mine.Module", "loss"), (None, "loss")],
)
def test_the_unit_of_a_loss_is_said_where_it_is_known(tmp_path: Path, path: str | None, title: str) -> None:
    run = read_run(run_folder(tmp_path, configuration={"model": path and {"class_path": path}}))
    figure: Any = loss_figure(run, 4)
    assert figure.layout.yaxis.title.text == title


def test_large_figures_are_readable(tmp_path: Path) -> None:
    result = {
        **MANIFEST["result"],
        "loss_before": {"val_perplexity": 1.08e13},
        "loss_after": {"val_perplexity": 12345.6},
    }
    run = read_run(run_folder(tmp_path, result=result))
    assert ("held-out perplexity", "1.08 x 10^13 before, 12,346 after") in facts(run)


def test_a_run_that_was_interrupted_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"state": "interrupted: Ctrl-C"}))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "pages" / "a.html")]) == 0
    page = (tmp_path / "pages" / "a.html").read_text()
    assert "interrupted: Ctrl-C" in page
    assert "nothing of it: Loss, Timeline, Exchange of each round" in page


def test_other_loggers_leave_the_timeline(tmp_path: Path) -> None:
    (run_folder(tmp_path) / "metrics.csv").unlink()
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "nothing of it: Loss." in page and "<h2>Timeline</h2>" in page


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("manifest.json", None, "has no manifest.json: name the folder of a run"),
        ("manifest.json", "{", "cannot be read as a run: JSONDecodeError"),
        ("timeline.json", "{}", "cannot be read as a run: KeyError: 'traceEvents'"),
        ("metrics.csv", "step,val_loss\nx,1\n", "cannot be read as a run: ValueError"),
    ],
)
def test_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, says: str
) -> None:
    run_folder(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def with_sight(folder: Path) -> Path:
    """A run of two clients in which the second took part in two of three rounds."""
    run_folder(folder)
    (folder / "metrics.csv").write_text(SIGHT)
    facts = [(4, 0.5), (4, 0.25), (4, 1.0), (4, 1.5), (0, None), (4, 0.75)]
    records = [
        replace(record(t, c), samples=facts[c + 2 * t][0], drift=facts[c + 2 * t][1])
        for t in range(3)
        for c in range(2)
    ]
    (folder / "timeline.json").write_text(json.dumps(chrome_trace(records)))
    return folder


def test_each_client_has_its_figures(tmp_path: Path) -> None:
    run = read_run(with_sight(tmp_path))
    assert run.metrics == {"val_loss": [Point(0, 3.0)]}
    assert run.sight["parablock/val_loss_worst"] == [Point(0, 5.0), Point(12, 2.5)]
    names = ("client", "rounds", "trained in", "samples", "own validation loss", "drift")
    rows = [[row[CLIENT_HEADS.index(name)] for name in names] for row in client_rows(run)]
    assert rows == [["0", "3", "2", "8", "2.0000", "0.750"], ["1", "3", "3", "12", "2.5000, the worst", "0.833"]]
    assert label_rows(run) == [("<odd>", "4.5000", "2.1250")]
    figure = clients_figure(run, round_steps=4)
    assert figure is not None
    lines: dict[Any, Any] = {(line.name, line.xaxis): (tuple(line.x), tuple(line.y)) for line in figure.data}
    assert lines == {
        ("client 0", "x"): ((0.0, 3.0), (3.0, 2.0)),
        ("client 1", "x"): ((0.0, 3.0), (5.0, 2.5)),
        ("mean", "x"): ((0.0, 3.0), (4.0, 2.25)),
        ("worst", "x"): ((0.0, 3.0), (5.0, 2.5)),
        ("highest less lowest", "x2"): ((0.0, 3.0), (2.0, 0.5)),
        ("standard deviation", "x2"): ((0.0, 3.0), (1.0, 0.25)),
        ("<odd>", "x3"): ((0.0, 3.0), (4.5, 2.125)),
        ("client 0", "x4"): ((1, 2), (0.5, 1.0)),
        ("client 1", "x4"): ((1, 2, 3), (0.25, 1.5, 0.75)),
        ("mean", "x4"): ((3.0,), (0.5,)),
    }
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Validation loss by label</h2>" in page and "&lt;odd&gt;" in page and "2.5000, the worst" in page


def test_clients_that_share_nothing_leave_only_what_is_known(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path))
    assert clients_figure(run, 4) is None and label_rows(run) == []
    assert [row[4:8] for row in client_rows(run)] == [("0", "", "", "")] * 2


def test_a_run_that_has_not_reached_its_end_shows_no_zeros(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, state="interrupted")
    (folder / "timeline.json").unlink()
    run = read_run(folder)
    assert [row[:3] for row in client_rows(run)] == [("0", "north", "1,234"), ("1", "south", "")]
    assert {cell for row in client_rows(run) for cell in row[3:]} == {""}
    assert main(["report", str(folder)]) == 0
    assert why_no_rounds(run) and why_no_rounds(run) in (folder / "report.html").read_text()


def test_a_client_that_was_in_no_cohort_has_zeros(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path, hosts=["north", "south", "west"], clients=3))
    assert client_rows(run)[2][3] == "0" and why_no_rounds(run) == ""


def test_help_and_a_mistyped_option(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in ((["--help"], "report"), (["report", "--help"], "--output")):
        with pytest.raises(SystemExit) as exit_:
            main(args)
        assert exit_.value.code == 0
        assert said in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["report", "x", "--otput", "y"])
    assert exit_.value.code == 2
