"""Bad input and a failing client: one clear error on every rank, and an exit code that is not 0."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.launch import run_ranks
from tests.support.ranks import Ranks, alone, ranks_of

REFUSALS = {
    "settings": r"local_steps differs between clients: client 0 .* has 4; client 1 .* has 5",
    "versions": r"torch differs between clients: client 0 .* has 2\.0; client 1 .* has 2\.1",
    "length": r"Trainer\(max_steps\) differs between clients: client 0 .* has 4; client 1 .* has 5",
    "no match": r"the pattern 'nowhere' of blocks matches no parameter",
    "overlap": r"the patterns 'model' and 'layers' of blocks both match 'model\.layers\.0",
    "unmatched": r"match no pattern of blocks, the first is 'model\.embed\.weight'",
    "too many blocks": r"blocks=1000, but the model has only \d+ trainable parameters",
    "float16": r"'model\.embed\.weight' is torch\.float16",
    "manual": r"manual optimization",
    "two optimizers": r"one optimizer, it returned several",
    "LBFGS": r"LBFGS",
    "Adagrad": r"Adagrad allocates its state",
    "left out": r"the optimizer does not have the trainable parameter 'model\.head\.weight'",
    "finetuning": r"BackboneFinetuning",
    "no checkpoint": r"no[01]\.ckpt cannot be read as a checkpoint",
    "own sampler": r"clients 0, 1 have identical data sets.*WeightedRandomSampler",
    "other buffers": r"buffer memory differs between clients: client 0 .* has torch\.float32 \(1,\); client 1 .*\(2,\)",
    "one validates": r"validation during training differs between clients: client 0 .* has yes; client 1 .* has no",
    "other validations": r"Trainer\(val_check_interval\) differs between clients: client 0 .* has 2; client 1 .* has 3",
    "timed validation": r"Trainer\(val_check_interval=\.\.\.\) with a time goes by each client's own clock",
    "too few samples": r"data set has 1 samples for 2 clients",
}


SUITE = "tests.strategy.scenarios.errors"
ENDINGS = "tests.strategy.scenarios.endings"
ranks = ranks_of(SUITE)


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_on_every_rank_before_training(ranks: Ranks, name: str) -> None:
    for output in ranks.run(name):
        (line,) = [line for line in output.splitlines() if line.startswith(f"REFUSED {name}: ")]
        assert re.search(REFUSALS[name], line), line


def test_a_client_that_fails_ends_the_other_with_its_name_and_its_error() -> None:
    survivor, failed = run_ranks(2, alone(ENDINGS, "failing"), expect_code=None)
    assert "ZeroDivisionError: the data of this client are broken" in failed
    assert re.search(r"PeerLostError: round \d+, block .*: client 1 \(rank 1 on .*\) ended on an error", survivor)
    assert "the data of this client are broken" in survivor


def test_a_client_whose_weights_differ_at_the_end_is_noticed_on_every_rank() -> None:
    for output in run_ranks(2, alone(ENDINGS, "diverging"), expect_code=None):
        assert re.search(r"DivergenceError: after the last exchange .*client 0 .*: '\w{12}', 'client 1 ", output)
        assert "fitted" not in output


def test_one_that_fails_behind_its_training_fails_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    outputs = run_ranks(2, alone(ENDINGS, "every case"), expect_code=3)
    survivor, failed = (dict(re.findall(r"^(?:RAISED|FINISHED) (\S+?)(?:: (.*))?$", o, re.M)) for o in outputs)
    for hook in ("on_train_end", "on_fit_end", "teardown"):
        assert failed[hook] == "ZeroDivisionError: client 1 is broken"
        assert re.match(
            r"PeerLostError: .*client 1 \(rank 1 on .*\) ended on an error of its own: Zero", survivor[hook]
        )
    assert failed["sys.exit"] == "SystemExit: 0 with code 1"
    assert re.match(r"PeerLostError: round \d+, block .*: client 1 .* own: SystemExit: 0", survivor["sys.exit"])
    assert survivor["well"] == failed["well"] == ""
