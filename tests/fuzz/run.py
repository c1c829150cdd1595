"""A long run of the targets, with atheris (``pip install '.[fuzz]'``), which looks for messages that reach new code.

    python -m tests.fuzz.run [NAME ...] --seconds 60

Each target runs in a process of its own, one after the other. A message that is neither read nor refused, takes longer
than ten seconds or more than four gigabytes is a finding: it is kept in a file, which ``--again FILE`` reads once more.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / ".fuzz"
_LIMITS = ("-timeout=10", "-rss_limit_mb=4096", "-max_len=8192", "-print_final_stats=1", "-verbosity=1")
_SPARE_S = 60.0
_LOOK_S = 0.1


def main() -> int:
    """Exit status 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; all of them where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--again", type=Path, metavar="FILE", help="give the named targets this message alone")
    options = parser.parse_args()
    targets = _imported(is_watched=options.again is None)
    unknown = [name for name in options.names if name not in targets]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(targets)}")
    if options.again is not None:
        for name in options.names:
            print(f"{name}: {'read' if targets[name].accepts(options.again.read_bytes()) else 'refused'}")
        return 0
    findings = [name for name in options.names or targets if not _run(targets[name], options.seconds)]
    print(f"findings: {', '.join(findings)}; the messages are in {FOLDER}" if findings else "no findings")
    return int(bool(findings))


def _imported(*, is_watched: bool) -> dict[str, Any]:
    """The targets; atheris sees which code of the package runs where it is instrumented on import."""
    if not is_watched:
        from tests.fuzz.targets import TARGETS

        return TARGETS
    import atheris

    with atheris.instrument_imports(include=["lightning_parablock"]):
        from tests.fuzz.targets import TARGETS

        return TARGETS


def _run(target: Any, seconds: int) -> bool:
    """Run one target in a process of its own; whether it ended without a finding."""
    FOLDER.mkdir(exist_ok=True)
    log, before = FOLDER / f"{target.name}.log", _reproducers(target.name)
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            _write_to(log)
            _fuzz(target, seconds)
        finally:
            os._exit(1)  # the fuzzer ends the process itself
    how = _ended(process, seconds + _SPARE_S)
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", log.read_text(errors="replace"))
    executions = f"{int(found[1]):,}" if found else "?"
    outcome = f"FINDING ({how}): {log}" if how else "no finding"
    print(f"{target.name:18} {executions:>12} executions  {outcome}", flush=True)
    for reproducer in sorted(_reproducers(target.name) - before):
        print(f"    python -m tests.fuzz.run {target.name} --again {reproducer}", flush=True)
    return not how


def _reproducers(name: str) -> set[Path]:
    kinds = ("crash", "timeout", "oom", "leak", "slow-unit")
    return {path for kind in kinds for path in FOLDER.glob(f"{name}-{kind}-*")}


def _ended(process: int, limit_s: float) -> str:
    """Wait for the end of a process; why it was no good one, or nothing."""
    ends_s = time.monotonic() + limit_s
    while time.monotonic() < ends_s:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return f"exit status {os.waitstatus_to_exitcode(status)}" if status else ""
        time.sleep(_LOOK_S)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return f"it did not end within {limit_s:g} s"


def _write_to(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _fuzz(target: Any, seconds: int) -> None:
    """Run one target in this process, which ends with it."""
    import atheris

    from tests.fuzz.target import damaged

    seeds = FOLDER / "seeds" / target.name
    seeds.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (seeds / f"seed{number}").write_bytes(seed)

    def mutate(data: Any, max_size: int, choice: int) -> bytes:
        dice = random.Random(choice)
        if dice.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return damaged(bytes(data), dice, dice.choice(target.seeds))[:max_size]

    def give(data: bytes) -> None:
        target.accepts(data)

    arguments = (*_LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={FOLDER / target.name}-", str(seeds))
    atheris.Setup([sys.argv[0], *arguments], give, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
