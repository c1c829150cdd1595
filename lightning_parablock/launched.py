"""What launchers other than Lightning's own say of the processes they started."""

from __future__ import annotations

import os

from lightning_parablock.errors import ConfigurationError

_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Rank, number of ranks, and the same on this node: Open MPI; MPICH and Intel MPI."""

_MASTER_PORT = "29500"


def adopt_mpi() -> None:
    """Set for Lightning what torchrun would have set, where mpirun started this process.

    Lightning knows mpirun's processes only where mpi4py is installed; without it each takes itself for the only one.

    Raises:
        ConfigurationError: the ranks do not fill the nodes one after the other, or there is no MASTER_ADDR for several.
    """
    names = next((names for names in _MPI if all(name in os.environ for name in names)), None)
    if names is None or "LOCAL_RANK" in os.environ or _in_slurm():
        return
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    if size == 1:
        return
    if size % local_size or (rank - local_rank) % local_size:
        raise ConfigurationError(
            f"mpirun's rank {rank} of {size} is number {local_rank} of {local_size} on its node; every node must have "
            "the same number of ranks, and one node must be filled after the other: mpirun --map-by slot"
        )
    if size > local_size and "MASTER_ADDR" not in os.environ:
        raise ConfigurationError(
            f"mpirun started clients on {size // local_size} nodes, which do not know where to meet; name the first "
            "node: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ..."
        )
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "NODE_RANK": str(rank // local_size),
    }
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", _MASTER_PORT)
    from lightning_utilities.core.rank_zero import rank_zero_only

    setattr(rank_zero_only, "rank", rank)  # noqa: B010  # Lightning took it from the variables when it was imported


def launched_devices() -> dict[str, int]:
    """``devices`` and ``num_nodes`` of the Trainer, as the launcher started processes; empty where none did."""
    local, total = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local is None and _in_slurm():
        local, total = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_NTASKS")
    if local is None or total is None:
        return {}
    return {"devices": int(local), "num_nodes": int(total) // int(local)}


def launched_ranks() -> int:
    """How many processes a launcher such as torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _in_slurm() -> bool:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # late: most command lines need it not

    return SLURMEnvironment.detect()
