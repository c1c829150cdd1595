"""Run folder, manifest, plan and table, without a run."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from lightning_parablock.callbacks.metrics import metrics_of
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.records import RoundRecord
from lightning_parablock.report.dry_run import print_plan
from lightning_parablock.report.summary import Here, held_out_metrics, summarise, summary_table
from lightning_parablock.runs.folder import claim_run_folder, new_run_folder, remove_if_empty
from lightning_parablock.runs.manifest import Manifest, git_sha, write_atomically
from lightning_parablock.runs.run import Run
from lightning_parablock.settings import Int8, ServerAdam, Settings
from lightning_parablock.strategy.parablock import ParaBlockStrategy
from lightning_parablock.system.exit_codes import FAILED, INTERRUPTED, USAGE
from lightning_parablock.system.units import readable_bytes


def record(round_index: int, client: int, *, exposed_s: float = 0.0, exchange_s: float = 2.0) -> RoundRecord:
    start_s = 1000.0 + 5 * round_index
    return RoundRecord(
        round=round_index,
        block=f"layers.{round_index}",
        client=client,
        steps=4,
        start_s=start_s,
        end_s=start_s + 4,
        compute_s=4.0,
        exchange_s=exchange_s,
        exposed_s=exposed_s,
        wait_peer_s=0.25,
        upload_bytes=1000,
        download_bytes=2000,
        exchange_start_s=start_s + 4,
        exchange_ready_s=start_s + 4.5,
        exchange_end_s=start_s + 4.5 + exchange_s,
    )


def test_run_folders_of_one_second_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "now")
    folders = [new_run_folder(str(tmp_path)) for _ in range(3)]
    assert [folder.name for folder in folders] == ["now", "now-2", "now-3"]


def test_a_remote_root_leaves_the_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_run_folder("s3://bucket/runs").parent == Path("runs")


def test_claiming_a_folder(tmp_path: Path) -> None:
    folder = claim_run_folder(tmp_path / "a" / "b")
    assert claim_run_folder(folder) == folder
    Manifest(folder, {})
    with pytest.raises(ConfigurationError, match="holds a run already"):
        claim_run_folder(folder)


def test_only_empty_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "absent"):
        remove_if_empty(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_the_manifest_is_on_disk_after_every_change(tmp_path: Path) -> None:
    def there() -> dict[str, object]:
        return json.loads((tmp_path / "manifest.json").read_text())

    manifest = Manifest(tmp_path, {"seed": 3})
    assert (there()["state"], there()["ended"], there()["seed"]) == ("running", None, 3)
    assert {"command", "versions", "host", "git_sha", "started"} <= set(there())
    manifest.add(clients=2)
    assert there()["clients"] == 2
    manifest.close("finished")
    assert there()["state"] == "finished"
    assert there()["ended"] is not None
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_rank_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Manifest(None, {}).close("finished")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_commit_of_another_checkout_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse --show-toplevel": "/somebody/elses", "rev-parse HEAD": "abc"}
    monkeypatch.setattr("lightning_parablock.runs.manifest._git", lambda _, *words: answers[" ".join(words)])
    assert git_sha() is None


@pytest.mark.parametrize(
    ("begun", "error", "code"),
    [
        (False, ConfigurationError("no"), USAGE),
        (True, ConfigurationError("no"), FAILED),
        (True, ParaBlockError("no"), FAILED),
    ],
)
def test_how_a_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: bool, error: Exception, code: int
) -> None:
    run = Run()
    run.folder = tmp_path
    if begun:
        run.begin({})
    assert run.failed(error) == code
    line = capsys.readouterr().err
    assert line.startswith("error: no")
    assert line.count("\n") == 1
    assert (tmp_path / "error-rank0.txt").exists() == begun
    if begun:
        assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "failed: no"


def test_an_interrupted_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run()
    run.folder = tmp_path
    run.begin({})
    assert run.interrupted("Ctrl-C", INTERRUPTED) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: Ctrl-C\n"
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "interrupted: Ctrl-C"


def printed_plan(settings: Settings, width: int, data: dict[str, Any] | None = None, **options: Any) -> str:
    """The plan of four square layers on two ranks, without the blanks at the ends of lines."""
    console = Console(width=140, file=io.StringIO(), record=True)
    print_plan(console, nn.Sequential(*(nn.Linear(width, width) for _ in range(4))), settings, 2, data, **options)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def test_the_plan_names_everything() -> None:
    settings = Settings(local_steps=4, delay_steps=4, delay_warmup_rounds=6, blocks=2, block_order="sequential")
    text = printed_plan(settings, 8, {"source": "toy", "rows_per_client": [3, 4]}, rounds=3)
    for expected in (
        "clients +2",
        r"0\.\.1 +144",
        "4 optimizer steps \\(1 round behind\\), none in the first 6 rounds\n",
        "rows per client +\\[3, 4\\]",
    ):
        assert re.search(expected, text), expected
    assert "first 3 rounds train: 0..1, 2..3, 0..1" in text


def test_a_plan_of_compressed_exchanges_whose_length_is_not_known_yet() -> None:
    auto = ParaBlockStrategy(local_steps="auto", delay_warmup_rounds=1, blocks=2, compression=Int8())
    text = printed_plan(auto.settings, 256)
    for expected in (
        "local steps +agreed by the clients in round 0",
        "delay +as many as local steps, none in the first round\n",
        "compression +int8\n",
    ):
        assert re.search(expected, text), expected
    block = 2 * (256 * 256 + 256)
    assert f"{block:,}" in text
    open_codec = printed_plan(ParaBlockStrategy(compression="auto", blocks=2).settings, 256)
    assert re.search("local steps +16 optimizer steps per round\n", open_codec)
    assert re.search("compression +agreed by the clients in round 0; bytes below are without any, memory", open_codec)
    assert "error feedback of the deltas" in open_codec
    # A delta of one half and a commit of the other, and their headers: 132 bytes a group of 256, a header a message.
    assert f" {(block * (1 + 2 / 256) + 4 * 64 + 2) / 1e6:.2f} / 0.13\n" in text


def test_a_plan_of_many_clients_speaks_of_a_rank_and_of_options_as_they_are_given() -> None:
    text = printed_plan(Settings(blocks=2, clients=1000, cohort=20, server_optimizer=ServerAdam(lr=0.1)), 256)
    for expected in (
        "clients +1000 on 2 ranks\n",
        "cohort +20 clients per round, uniform\n",
        "compression +none\n",
        r"server optimizer +adam \(lr 0.1\)\n",
        "memory of a rank with its clients in its largest round",
        f"deltas in flight +device +{20 * 4 * 2 * (256 * 256 + 256) / 1e6:.2f}\n",
    ):
        assert re.search(expected, text), expected


def test_the_summary_adds_up_all_clients() -> None:
    records = [record(t, c, exposed_s=0.5 * c) for t in range(3) for c in range(2)]
    summary = summarise(records, {"val_loss": 2.0}, {"val_loss": 1.5}, fit_s=15.0, clients=2)
    assert (summary.rounds, summary.clients) == (3, 2)
    assert (summary.upload_bytes, summary.download_bytes) == (6000, 12000)
    assert (summary.steps, summary.clients_told) == (12, 2)
    assert summary.hidden_share == pytest.approx(1 - 1.5 / 12)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(summary_table(summary))
    text = console.export_text()
    for expected in ("2.0000 before, 1.5000 after", "3 rounds, 2 clients", "6.0 kB", "12.0 kB", "87.5 %"):
        assert expected in text


@pytest.mark.parametrize(
    ("clients", "told", "steps", "whose"),
    [(8, 8, 3, "all clients"), (8, 4, 6, "the 4 clients here"), (8, 1, 24, "this client")],
)
def test_clients_without_a_round_are_clients_too(clients: int, told: int, steps: int, whose: str) -> None:
    records = [record(t, c) for t in range(3) for c in range(2)]
    summary = summarise(records, {}, {}, 1.0, clients=clients, clients_told=told)
    assert (summary.clients, summary.clients_told, summary.steps) == (clients, told, steps)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(summary_table(summary))
    text = console.export_text()
    assert f"3 rounds, {clients} clients" in text and f"6.0 kB by {whose} " in text


@pytest.mark.parametrize(
    ("sites", "hosted", "whose"),
    [((), (1,), "client 1"), (("lyon", "oslo"), (1,), "site oslo"), ((), (0, 1), "the 2 clients here")],
)
def test_the_table_tells_sums_from_what_is_this_ranks(
    sites: tuple[str, ...], hosted: tuple[int, ...], whose: str
) -> None:
    """Client 1 stood still for 0.5 s in each of three rounds, client 0 never, client 2 for 1 s."""
    records = [record(t, c, exposed_s=0.5 * c) for t in range(3) for c in range(3)]
    strategy = SimpleNamespace(site_names=sites, hosted_clients=hosted, global_rank=1, n_clients=len(sites) or 3)
    here = Here.of(strategy, records)
    console = Console(width=120, file=io.StringIO(), record=True)
    summary = summarise(records, {}, {}, 1.0, clients=3, here=here)
    console.print(summary_table(summary))
    text = " ".join(console.export_text().split())
    assert f"stood still for the exchange 4.5 s summed over all clients ({whose}: 1.5 s)" in text
    assert f"slower clients 2.25 s summed over all clients ({whose}: {0.75 * len(hosted):.3g} s)" in text
    assert f"sent 9.0 kB by all clients ({whose}: {3 * len(hosted)}.0 kB)" in text
    assert summary.as_dict()["here"]["exposed_s"] == 1.5


def test_nothing_exchanged_has_no_hidden_share() -> None:
    summary = summarise([record(0, 0, exchange_s=0.0)], {}, {}, fit_s=1.0, clients=1)
    assert summary.hidden_share is None
    assert summarise([record(0, 0, exchange_s=1.0, exposed_s=2.0)], {}, {}, fit_s=1.0, clients=1).hidden_share == 0.0


def test_rounds_that_were_left_out_are_counted() -> None:
    records = [replace(record(t, 0), nonfinite=t > 0) for t in range(3)]
    for some, words in (
        (records, "2 rounds of all clients"),
        (records[:2], "1 round of all clients"),
        (records[:1], ""),
    ):
        summary = summarise(some, {}, {}, 1.0, clients=1)
        console = Console(width=120, file=io.StringIO(), record=True)
        console.print(summary_table(summary))
        text = console.export_text()
        assert ("left out of the mean" in text) == bool(words) and words in text
        assert summary.as_dict()["nonfinite"] == len(some) - 1
    assert metrics_of(records[1], {})["parablock/nonfinite"] == 1.0
    assert "parablock/nonfinite" not in metrics_of(records[0], {})


def test_only_losses_and_perplexities_are_held_out_metrics() -> None:
    assert held_out_metrics({"val_loss": 1, "val_perplexity": 2.7, "epoch": 3}) == {
        "val_loss": 1.0,
        "val_perplexity": 2.7,
    }


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e12, "3.0 TB")]
)
def test_readable_bytes(size_bytes: float, text: str) -> None:
    assert readable_bytes(size_bytes) == text
