"""Which site is struck, in which phase, and how: ``python -m tests.elastic.processes.soak [-k WORDS] [--all]``.

Every case is a run of its own: sites found it, one is struck in the middle of a phase, the others continue, the struck
one comes back, and at the end all hold the bits of the plain loop that replays their membership log. One line per case
says how it went; the exit status is 1 if a case failed, and the logs of those that did are kept.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hosts import HostCluster
from tests.elastic.processes.apart import Apart
from tests.elastic.processes.run import ElasticRun

FAULTS = ("kill", "freeze", "cut", "term")
MEMBER_PHASES = ("computing", "uploading", "merging", "regrouping", "saving", "validating", "draining")
ROLES = {
    "first": MEMBER_PHASES,  # the lowest client id: coordinator, and hub of collectives
    "server": MEMBER_PHASES,  # of a star, and not the lowest id
    "donor": ("giving",),
    "joiner": ("fetching", "regrouping", "computing", "merging", "uploading"),
    "lighthouse": ("computing", "regrouping", "merging", "draining"),
}
QUICK = [
    ("first", "computing", "cut"), ("first", "uploading", "kill"), ("first", "merging", "freeze"),
    ("first", "regrouping", "kill"), ("first", "regrouping", "freeze"), ("first", "saving", "term"),
    ("first", "validating", "kill"), ("first", "draining", "kill"), ("server", "computing", "term"),
    ("server", "uploading", "freeze"), ("server", "uploading", "cut"), ("server", "merging", "kill"),
    ("server", "regrouping", "term"), ("server", "saving", "freeze"), ("server", "validating", "freeze"),
    ("server", "draining", "freeze"), ("donor", "giving", "kill"), ("donor", "giving", "cut"),
    ("donor", "giving", "freeze"), ("donor", "giving", "term"), ("joiner", "fetching", "freeze"),
    ("joiner", "regrouping", "kill"), ("joiner", "regrouping", "freeze"), ("joiner", "computing", "kill"),
    ("joiner", "uploading", "term"), ("lighthouse", "computing", "kill"), ("lighthouse", "regrouping", "kill"),
    ("lighthouse", "merging", "cut"), ("lighthouse", "draining", "kill"), ("lighthouse", "regrouping", "freeze"),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One of them."""

    role: str
    phase: str
    fault: str

    def __str__(self) -> str:
        return f"{self.role:10} {self.phase:10} {self.fault:6}"


class Carried:
    """A case that is carried out.

    Args:
        case: Which.
        run: Its run, without sites yet.
        cluster: The hosts, where links are to be cut.
    """

    def __init__(self, case: Case, run: ElasticRun, cluster: HostCluster | None) -> None:
        self.case, self.run, self.cluster = case, run, cluster
        self.victim = {"first": "a", "server": "b", "donor": "a", "joiner": "d", "lighthouse": "a"}[case.role]

    def carry_out(self) -> str:
        """Returns the generations in words; raises an AssertionError if something is wrong."""
        run, case = self.run, self.case
        run.found("a", "b", "c")
        if case.role == "server":  # the site that serves is not the first one any more
            run.sites["a"].signal(signal.SIGTERM)
            run.until(lambda: run.sites["a"].code is not None, "a leaves", may_end=["a"])
            run.come_back("a")
        if case.phase == "regrouping" and case.role != "joiner":
            run.come_back("d")
        others = [name for name in ("a", "b", "c") if name != self.victim]
        if case.role == "lighthouse":
            back = self._lighthouse()
        elif case.phase == "draining":
            back = self._draining(others)
        else:
            self._arrive()
            back = self._strike(others)
        log = run.end(*back) if case.phase != "draining" else run.ended(*back)
        return "; ".join(f"{r.generation}: {''.join(r.sites[c] for c in r.members)}" for r in log.records)

    # --- the way into the phase ---------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        run, case = self.run, self.case
        site = run.site(self.victim)
        if case.role == "joiner" and case.phase in ("computing", "merging", "uploading"):
            run.start("d")
            run.until(lambda: site.round >= 0, "d joins")
        site.arm(case.phase, 2 if case.phase in ("uploading", "giving", "fetching") else 1)
        if case.role == "donor" or (case.role == "joiner" and case.phase in ("fetching", "regrouping")):
            run.start("d")
        elif case.phase == "regrouping":
            run.sites["d"].end()
        run.until(lambda: site.has_arrived, f"{self.victim} comes to {case.phase}")

    # --- the strike, and what follows ---------------------------------------------------------------------------------

    def _strike(self, others: list[str]) -> list[str]:
        """Returns who is there in the end."""
        run, fault, site = self.run, self.case.fault, self.run.site(self.victim)
        starts = site.starts
        is_member = self.case.phase not in ("fetching",) and not (
            self.case.role == "joiner" and self.case.phase == "regrouping"
        )
        if fault == "kill":
            site.end()
            site.disarm()
            run.go_on(*others)
            run.come_back(self.victim)
        elif fault == "term":
            site.signal(signal.SIGTERM)
            site.disarm()
            run.until(lambda: site.code is not None, f"{self.victim} leaves", may_end=[self.victim])
            assert site.code == 128 + signal.SIGTERM, f"exit status {site.code}\n{run.outputs()}"
            run.go_on(*others)
            run.come_back(self.victim)
        else:
            self._pause(True)
            site.disarm()
            run.go_on(*others)
            time.sleep(run.silence_s)  # no member misses a guest: past the limit, all the same
            self._pause(False)
            if is_member:
                run.until(lambda: site.starts > starts, f"{self.victim} runs its command again")
            run.until(lambda: site.round >= 0, f"{self.victim} joins")
        if self.case.role == "donor":
            run.until(lambda: run.sites["d"].round >= 0, "d joins")
            return ["a", *others, "d"]
        return [*others, self.victim]

    def _pause(self, begins: bool) -> None:
        if self.case.fault == "freeze":
            self.run.sites[self.victim].signal(signal.SIGSTOP if begins else signal.SIGCONT)
            return
        assert self.cluster is not None and isinstance(self.run.places, Apart)
        (self.cluster.cut_link if begins else self.cluster.restore_link)(self.run.places.host_of(self.victim))

    def _draining(self, others: list[str]) -> list[str]:
        """The others end without it."""
        run, site = self.run, self.run.sites[self.victim]
        site.arm("draining")
        run.announce_end()
        run.until(lambda: site.has_arrived, f"{self.victim} comes to draining")
        fault = self.case.fault
        if fault == "kill":
            site.end()
        elif fault == "term":
            site.signal(signal.SIGTERM)
        else:
            self._pause(True)
        site.disarm()
        if fault in ("freeze", "cut"):
            run.until(lambda: all(run.sites[name].code is not None for name in others), "the others end")
            self._pause(False)
        run.until(lambda: site.code is not None, f"{self.victim} ends, too", may_end=[self.victim])
        return others

    def _lighthouse(self) -> list[str]:
        run, phase = self.run, self.case.phase
        site = run.sites["a"]
        site.arm(phase)
        if phase == "draining":
            run.announce_end()
        if phase == "regrouping":
            run.sites["d"].end()
        run.until(lambda: site.has_arrived, f"a comes to {phase}")
        self._lighthouse_pauses(True)
        site.disarm()
        if phase == "draining":
            return ["a", "b", "c"]
        if phase != "regrouping":
            run.go_on("a", "b", "c", rounds=20)  # longer than the silence limit, without it
        self._lighthouse_pauses(False)
        run.come_back("d")
        return ["a", "b", "c", "d"]

    def _lighthouse_pauses(self, begins: bool) -> None:
        run, fault = self.run, self.case.fault
        assert run.lighthouse is not None
        if fault == "kill":
            (run.kill_lighthouse if begins else run.start_lighthouse)()
        elif fault == "freeze":
            run.lighthouse.signal(signal.SIGSTOP if begins else signal.SIGCONT)
        else:
            assert self.cluster is not None
            (self.cluster.cut_link if begins else self.cluster.restore_link)(0)


@contextmanager
def _places(case: Case) -> Iterator[HostCluster | None]:
    if case.fault != "cut":
        yield None
        return
    with HostCluster(5) as cluster:
        yield cluster


def run_case(case: Case, folder: Path) -> str:
    """Returns the generations in words; raises an AssertionError if something is wrong."""
    topology = "star" if case.role == "server" else "sharded"
    with (
        _places(case) as cluster,
        ElasticRun(folder, topology=topology, places=Apart(cluster) if cluster else None) as run,
    ):
        return Carried(case, run, cluster).carry_out()


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only cases with all of these words")
    parser.add_argument("--all", action="store_true", help="all roles, phases and faults, about an hour")
    arguments = parser.parse_args()
    every = [Case(role, phase, fault) for role, phases in ROLES.items() for phase, fault in itertools.product(
        phases, FAULTS) if not (role == "lighthouse" and fault == "term")]  # fmt: skip
    cases = [one for one in (every if arguments.all else [Case(*one) for one in QUICK])
             if set(arguments.k.split()) <= set(str(one).split())]  # fmt: skip
    failed = 0
    for case in cases:
        folder, began_s = Path(tempfile.mkdtemp(prefix="soak-")), time.monotonic()
        try:
            generations = run_case(case, folder)
            shutil.rmtree(folder)
            outcome = f"ok      {time.monotonic() - began_s:4.0f} s  {generations}"
        except Exception as error:
            failed += 1
            (folder / "failure.txt").write_text(f"{type(error).__name__}: {error}")
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            outcome = f"FAILED  {time.monotonic() - began_s:4.0f} s  {reason} ({folder})"
        print(f"{case}  {outcome}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} cases passed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
