"""DiLoCo and Streaming DiLoCo by torchft: a lighthouse, and in each client's process a manager and its server.

The inner optimizer is the module's own AdamW; the outer one is the papers' Nesterov SGD (arXiv 2311.08105; 2501.18512).
torchft's defaults are kept, except for timeouts and settings required on a CPU without an accelerator.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.hosts import address
from benchmarks.peers.job import Job, leave, meet, rank, sent_bytes
from benchmarks.peers.methods import N_CLIENTS
from benchmarks.peers.task import PeerData, PeerModel, data_of, loss_of, model_of, point, warm_up

LIGHTHOUSE_PORT, STORE_PORT = 29510, 29511
LIMIT = timedelta(hours=1)
OUTER: dict[str, Any] = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
STREAMING_MIX = 0.5
"""Share of a client's own value when a fragment comes back late: alpha of Streaming DiLoCo."""


def run(job: Job) -> None:
    """Train and write the curve, or time and write the time stamps."""
    module = model_of(job)
    data = data_of(job, module)
    data.setup("fit")
    inner: Any = module.configure_optimizers()
    if job.timed:
        warm_up(module, inner)
    with _manager() as manager:
        n_fragments = job.of_size.fragments if job.of_method.options["streaming"] else 1
        fragments = fragments_of(module.network, n_fragments)
        with _diloco(job, manager, fragments, inner) as diloco:
            meet(job, "start")
            result = _timed(job, module, data, inner) if job.timed else _trained(job, module, data, inner, diloco)
        rounds = job.steps // job.local_steps
        if (manager.current_step(), manager.batches_committed()) != (rounds, rounds * N_CLIENTS):
            raise RuntimeError(f"of {rounds} exchanges {manager.current_step()} were committed by every client")
        leave(job, result | {"committed_sha256": _hash(diloco)})
        meet(job, "end")  # the lighthouse ends with the first client


def fragments_of(network: nn.Module, n: int) -> list[nn.Module]:
    """The model in ``n`` runs of consecutive layers of about equal size; the embedding belongs to the first one."""
    if n == 1:
        return [network]
    inner: Any = network.get_submodule("model")
    parts: list[nn.Module] = [inner.embed_tokens, *inner.layers]
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    total, before, runs = sum(sizes), 0, [nn.ModuleList() for _ in range(n)]
    for part, size in zip(parts, sizes, strict=True):
        runs[min(n - 1, (before + size // 2) * n // total)].append(part)
        before += size
    runs[-1].append(inner.norm)
    return list(runs)


def _diloco(job: Job, manager: Any, fragments: list[nn.Module], inner: torch.optim.Optimizer) -> Any:
    streaming = len(fragments) > 1
    return _torchft("local_sgd").DiLoCo(
        manager,
        fragments,
        inner,
        [torch.optim.SGD(fragment.parameters(), **OUTER) for fragment in fragments],
        sync_every=job.local_steps * len(fragments),
        pin_memory=False,
        fragment_sync_delay=job.local_steps - 1 if streaming else 0,
        fragment_update_alpha=STREAMING_MIX if streaming else 0.0,
    )


@contextmanager
def _manager() -> Generator[Any]:
    here = address(rank())
    lighthouse = _lighthouse() if rank() == 0 else None
    store = TCPStore(here, STORE_PORT, is_master=True, wait_for_workers=False)
    manager = _torchft("manager").Manager(
        pg=_torchft("process_group").ProcessGroupGloo(timeout=LIMIT),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=N_CLIENTS,
        use_async_quorum=False,
        timeout=LIMIT,
        quorum_timeout=LIMIT,
        rank=0,
        world_size=1,
        store_addr=here,
        store_port=store.port,
        lighthouse_addr=f"http://{address(0)}:{LIGHTHOUSE_PORT}",
        replica_id=f"client_{rank()}",
        hostname=here,
        init_sync=False,
        max_retries=0,
    )
    try:
        yield manager
    finally:
        manager.shutdown(wait=False)
        if lighthouse is not None:
            lighthouse.shutdown()


def _lighthouse() -> Any:
    return _torchft("coordination").LighthouseServer(bind=f"[::]:{LIGHTHOUSE_PORT}", min_replicas=N_CLIENTS)


def _trained(job: Job, module: PeerModel, data: PeerData, inner: Any, diloco: Any) -> dict[str, Any]:
    start_bytes = sent_bytes()
    points = [point(0, module.held_out(data.val_dataloader()), start_bytes)]
    for step, batch in enumerate(data.train_dataloader(), start=1):
        _step(module, inner, batch)
        if step % job.evaluate_every_steps == 0:
            with _committed(diloco):
                points.append(point(step, module.held_out(data.val_dataloader()), start_bytes))
    return {"points": points}


def _timed(job: Job, module: PeerModel, data: PeerData, inner: Any) -> dict[str, Any]:
    start_bytes, stamps_s = sent_bytes(), [time.monotonic()]
    for _, batch in zip(range(job.steps), data.train_dataloader(), strict=False):
        _step(module, inner, batch)
        stamps_s.append(time.monotonic())
    return {"stamps_s": stamps_s, "sent_bytes": sent_bytes() - start_bytes}


def _step(module: PeerModel, inner: Any, batch: Any) -> None:
    loss_of(module, batch).backward()
    inner.step()  # torchft's hooks on it prepare, send and merge
    inner.zero_grad()


@contextmanager
def _committed(diloco: Any) -> Generator[None]:
    """Load the committed values that all clients share: each fragment as of its last outer step."""
    pairs = [(p.data, f.original_parameters[name]) for f in diloco._fragments for name, p in _parameters(f)]
    own = [parameter.clone() for parameter, _ in pairs]
    for parameter, committed in pairs:
        parameter.copy_(committed)
    yield
    for (parameter, _), value in zip(pairs, own, strict=True):
        parameter.copy_(value)


def _parameters(fragment: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return fragment._model_fragment.named_parameters()


def _hash(diloco: Any) -> str:
    digest = hashlib.sha256()
    for fragment in diloco._fragments:
        for value in fragment.original_parameters.values():
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _torchft(part: str) -> Any:
    try:
        return importlib.import_module(f"torchft.{part}")
    except ModuleNotFoundError as error:
        raise RuntimeError("torchft is not installed: pip install -c constraints.txt -e '.[bench]'") from error
