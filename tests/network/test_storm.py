"""A storm of four faults in a minute: real processes on shaped links, killed, stopped and cut off."""

from __future__ import annotations

from benchmarks.storm.figures import figures, newest_log
from benchmarks.storm.launch import Weather, storm
from benchmarks.storm.schedule import draw
from benchmarks.storm.task import Job

SITES, MINUTES, FAULTS, SEED = 3, 1.0, 4, 1


def test_after_a_storm_everybody_holds_every_round_with_the_same_bits() -> None:
    faults = draw(SITES, 60 * MINUTES, FAULTS, SEED)
    assert sorted(fault.kind for fault in faults) == ["cut", "kill", "kill", "stop"]
    job = Job(0, SITES, 2, lighthouse="", folder="", local_steps=4, step_s=0.1, n_blocks=3, block_scalars=100_000)
    raw = storm("parablock", job, Weather(MINUTES, faults, rate_mbit=100.0))
    assert raw["finished"], (raw["exits"], raw["last_words"])
    found = figures(raw)
    assert (found["divergences"], found["lost_rounds"], found["disagreements"]) == (0, 0, 0)
    log = newest_log(raw)
    assert log is not None
    assert log.newest.members == tuple(range(SITES))
