"""A process that asks a lighthouse all the time and prints the sites of each list that differs from the one before."""

from __future__ import annotations

import sys

from lightning_parablock.elastic.arbiter import Candidate, new_incarnation
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.errors import ArbiterError, ReplacedError


def main(address: str, site: str, run: str) -> None:
    arbiter = Lighthouse(address, silence_s=3.0)
    me, before = Candidate(site, new_incarnation(), "127.0.0.1:1", run=run), ""
    while True:
        try:
            now = " ".join(each.site for each in arbiter.ask(me, 30.0))
        except ArbiterError:
            now = "away"
        except ReplacedError:
            print("replaced", flush=True)
            return
        if now != before:
            print(now, flush=True)
        before = now


if __name__ == "__main__":
    main(*sys.argv[1:])
