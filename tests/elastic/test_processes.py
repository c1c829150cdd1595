"""Sites as processes: each is struck in the middle of its work, and the others continue with the plain loop's bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lightning_parablock.masking.submissions import FILE_NAME, Contents, Submissions
from tests.elastic.processes.run import ElasticRun
from tests.site_kit.sites import identities, signed, unsigned


def test_the_server_of_a_star_is_killed_while_it_uploads(tmp_path: Path) -> None:
    with ElasticRun(tmp_path, topology="star") as run:
        run.found("a", "b", "c")
        run.kill("a", "uploading")
        run.go_on("b", "c")
        log = run.end("b", "c")
    assert [record.members for record in log.records] == [(0, 1, 2), (1, 2)]
    assert log.newest.order == (1, 2)
    assert list(log.newest.gone) == [0] and log.newest.gone[0].startswith("lost: ")


def test_the_first_site_is_killed_while_it_saves_and_comes_back(tmp_path: Path) -> None:
    with ElasticRun(tmp_path) as run:
        run.found("a", "b", "c")
        run.kill("a", "saving")
        run.go_on("b", "c")
        run.come_back("a")
        log = run.end("a", "b", "c")
    assert [record.members for record in log.records] == [(0, 1, 2), (1, 2), (0, 1, 2)]
    assert log.newest.joiners == (0,)


def test_a_server_with_momentum_and_a_residual_is_killed_while_it_merges_and_its_state_is_another_sites(
    tmp_path: Path,
) -> None:
    with ElasticRun(tmp_path, server_optimizer="nesterov", compression="int8") as run:
        run.found("a", "b", "c", rounds=8)
        run.kill("b", "merging")
        run.go_on("a", "c")
        run.come_back("b")
        log = run.end("a", "b", "c")
    lost = log.records[1].restored
    assert {piece.server for piece in lost} == {1} and any(piece.as_of is not None for piece in lost)


def test_a_site_that_is_frozen_for_too_long_runs_its_command_again_and_joins(tmp_path: Path) -> None:
    with ElasticRun(tmp_path, topology="star") as run:
        run.found("a", "b", "c")
        frozen = run.sites["b"]
        run.strike("b", "computing", lambda: frozen.signal(signal.SIGSTOP))
        run.go_on("a", "c")
        starts = frozen.starts
        frozen.signal(signal.SIGCONT)
        run.until(lambda: frozen.starts > starts and frozen.round >= 0, "b joins")
        assert frozen.code is None
        assert frozen.output.count("running the same command again") == 1
        log = run.end("a", "b", "c")
    assert [record.members for record in log.records] == [(0, 1, 2), (0, 2), (0, 1, 2)]
    assert not list(tmp_path.joinpath("b").rglob("*.ckpt"))


def test_a_joiner_is_killed_while_it_takes_the_model(tmp_path: Path) -> None:
    with ElasticRun(tmp_path) as run:
        run.found("a", "b")
        joiner = run.site("c")
        joiner.arm("fetching", 2)
        run.start("c")
        run.until(lambda: joiner.has_arrived, "c has a part of the model")
        joiner.end()
        joiner.disarm()
        run.go_on("a", "b")
        run.come_back("c")
        log = run.end("a", "b", "c")
    assert [record.members for record in log.records] == [(0, 1), (0, 1, 2)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_site_that_is_told_to_end_leaves_and_the_others_go_on_at_once(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with ElasticRun(tmp_path, topology="star") as run:
        run.found("a", "b", "c")
        leaver = run.sites["a"]
        run.strike("a", "computing", lambda: leaver.signal(number))
        run.until(lambda: leaver.code is not None, "a leaves", may_end=["a"])
        assert leaver.code == code, leaver.output
        assert "site a has left; run the same command again to come back" in leaver.output
        assert ("Ctrl-C again ends it at once" in leaver.output) == (number == signal.SIGINT)
        log = run.end("b", "c", rounds=6)
    assert log.newest.members == (1, 2) and log.newest.gone == {0: "left"}
    assert list(tmp_path.joinpath("a").rglob("*.ckpt"))


def test_a_site_that_is_told_to_end_in_a_long_validation_leaves_before_its_end(tmp_path: Path) -> None:
    with ElasticRun(tmp_path, topology="star") as run:
        run.found("a", "b", "c")
        leaver = run.sites["a"]
        leaver.arm("validating")
        run.until(lambda: leaver.has_arrived, "a validates")
        leaver.signal(signal.SIGTERM)
        run.until(lambda: leaver.code is not None, "a leaves", may_end=["a"])
        assert leaver.code == 143, leaver.output
        assert "SIGTERM: site a leaves the run within 15 s: " in leaver.output
        assert "site a has left, in the middle of a step or a validation; run the same command" in leaver.output
        log = run.end("b", "c", rounds=6)
    assert log.newest.members == (1, 2) and log.newest.gone == {0: "left"}
    assert tmp_path.joinpath("a", "rescued-a.ckpt").exists()


def test_four_faults_in_a_storm(tmp_path: Path) -> None:
    with ElasticRun(tmp_path, topology="star") as run:
        run.found("a", "b", "c", "d")
        run.kill("a", "uploading")
        run.kill("d", "regrouping")
        run.start("a")
        frozen = run.sites["c"]
        run.until(lambda: run.sites["a"].round >= 0, "a joins")
        run.strike("c", "merging", lambda: frozen.signal(signal.SIGSTOP))
        run.kill_lighthouse()
        run.start_lighthouse()
        run.start("d")
        run.go_on("a", "b")
        starts = frozen.starts
        frozen.signal(signal.SIGCONT)
        run.until(lambda: frozen.starts > starts and frozen.round >= 0 and run.sites["d"].round >= 0, "c and d join")
        log = run.end("a", "b", "c", "d")
    assert log.newest.members == (0, 1, 2, 3)


def test_a_site_of_secure_sums_is_killed_while_it_uploads_and_comes_back_with_other_batches(tmp_path: Path) -> None:
    sites = identities(tmp_path / "keys", "abcd")
    for site in sites.values():
        Submissions.create(site.folder)
    (tmp_path / "federation.yaml").write_text(signed(unsigned(sites), sites).text)
    options = {"aggregation": 2, "federation": str(tmp_path / "federation.yaml"), "min_clients": 3}
    with ElasticRun(tmp_path, topology="star", **options) as run:
        run.found("a", "b", "c")
        run.kill("a", "uploading")
        run.start("a")
        run.until(lambda: run.sites["a"].round >= 0, "a joins")
        run.come_back("d")
        log = run.end("a", "b", "c", "d")
    assert log.records[0].members == (0, 1, 2) and log.newest.members == (0, 1, 2, 3)
    lost = next(record for record in log.records if 0 in record.joiners and record is not log.records[0])
    assert lost.drops and lost.first_round > lost.kept[0] + 1, "what was under way is dropped"
    contexts = [
        stretch.context for stretch in Contents.parse((sites["a"].folder / FILE_NAME).read_text(), "a").stretches
    ]
    assert len(set(contexts)) >= 3, "each generation is a context of its own"
