"""The program of one site with torchft's streaming DiLoCo, the peer: its manager heals a restarted site by itself.

A healed site takes the fragments' committed values and the outer optimizers' state, and begins with these values: less
than in torchft's own example, which sends the module, too. Time limits are as short as the transfers on these links
allow, since what is lost by a cut link or a stopped process is noticed by them alone. The outer optimizer is the
papers' Nesterov SGD.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torchft.local_sgd import DiLoCo
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

from benchmarks.hosts import address
from benchmarks.storm.task import STEPS_AHEAD, Job, Trace, data_of, digest, last_round, loss_of, parts

OUTER: dict[str, Any] = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
EXCHANGE_LIMIT, LIMIT, QUORUM_LIMIT = timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=120)
MIX = 0.5
"""Share of a site's own value when a fragment comes back late: alpha of Streaming DiLoCo."""


def _manager(job: Job) -> Manager:
    here = address(job.site)
    store = TCPStore(here, 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=EXCHANGE_LIMIT),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=job.min_sites,
        use_async_quorum=False,
        timeout=LIMIT,
        quorum_timeout=QUORUM_LIMIT,
        rank=0,
        world_size=1,
        store_addr=here,
        store_port=store.port,
        lighthouse_addr=f"http://{job.lighthouse}",
        replica_id=f"site_{job.site}",
        hostname=here,
        init_sync=False,
    )
    setattr(manager, "own_store", store)  # noqa: B010  # lives as long as the manager
    return manager


def _train(job: Job, trace: Trace, manager: Manager) -> None:
    network = parts(job)
    inner = torch.optim.SGD(network.parameters(), lr=1e-3)
    outer: list[torch.optim.Optimizer] = [torch.optim.SGD(part.parameters(), **OUTER) for part in network]
    delay = job.local_steps - 1
    every = job.local_steps * job.n_blocks
    with DiLoCo(
        manager,
        list(network),
        inner,
        outer,
        sync_every=every,
        pin_memory=False,
        fragment_sync_delay=delay,
        fragment_update_alpha=MIX,
    ) as opened:
        diloco: Any = opened

        # Registered after the fragments, whose committed values are there by the time that this is called.
        def begin(_: object) -> None:
            diloco._restore_parameters()

        manager.register_state_dict_fn("module", begin, dict)
        committed, data = manager.current_step(), data_of(job)
        is_member = False
        for step in range(STEPS_AHEAD):
            loss_of(network, data[step : step + 1], job.step_s).backward()
            inner.step()  # torchft's hooks on it prepare, send and merge
            inner.zero_grad()
            if (step + 1) % job.local_steps:
                continue
            now = manager.current_step()
            if now > committed:
                if not is_member:
                    is_member = True
                    trace.note("member", round=now - 1)
                values = diloco._fragments[(now - 1) % job.n_blocks].original_parameters.values()
                trace.note(
                    "commit",
                    round=now - 1,
                    block=(now - 1) % job.n_blocks,
                    hash=digest(values),
                    members=manager.num_participants(),
                )
            committed = now
            last = last_round(job)
            if last is not None and committed > last:
                break
        values = [value for fragment in diloco._fragments for value in fragment.original_parameters.values()]
        trace.note("done", hash=digest(values), steps=committed * job.local_steps)


def main() -> None:
    """Train until the launcher has named the last round; the trace begins after the imports."""
    job = Job(**json.loads(sys.argv[1]))
    trace = Trace(job)
    trace.note("imported")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    manager = _manager(job)
    _train(job, trace, manager)
    manager.shutdown(wait=False)
    os._exit(0)  # its threads may wait for peers that have ended


if __name__ == "__main__":
    main()
