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
    """``devices`` and ``num_nodes`` of the Trainer, as the launcher started processes; empty where none did.

    Raises:
        ConfigurationError: it started different numbers of processes on the nodes, or does not say how many.
    """
    local, total = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local is None and _in_slurm():
        local, total = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_NTASKS")
        if local is None and total not in (None, "1"):  # Lightning refuses it, too, and says a wrong number
            raise ConfigurationError(f"SLURM started {total} tasks; say how many on each node: --ntasks-per-node")
    if local is None or total is None:
        return {}
    if int(total) % int(local):
        raise ConfigurationError(
            f"the launcher started {total} processes in all and {local} of them on this machine; every machine must "
            "have the same number of processes"
        )
    return {"devices": int(local), "num_nodes": int(total) // int(local)}


def refuse_other_sizes(devices: int, num_nodes: int) -> None:
    """Raise unless the Trainer's numbers are those of the processes that a launcher has started, where one has.

    Args:
        devices: Processes on this machine, as the Trainer has them.
        num_nodes: Machines, as the Trainer has them.

    Raises:
        ConfigurationError: says the right values.
    """
    launched = launched_devices()
    if launched and launched != {"devices": devices, "num_nodes": num_nodes}:
        raise ConfigurationError(
            f"the launcher started {launched['devices']} processes on each of {launched['num_nodes']} machines, but "
            f"the Trainer has devices={devices} and num_nodes={num_nodes}; use devices={launched['devices']} and "
            f"num_nodes={launched['num_nodes']}"
        )
    if not launched and "LOCAL_RANK" not in os.environ and "RANK" in os.environ and launched_ranks() > 1:
        raise ConfigurationError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} are set, but LOCAL_RANK and "
            "LOCAL_WORLD_SIZE are not, so that every process would train alone; start the processes by torchrun, or "
            "set LOCAL_RANK (the process' number on its machine), LOCAL_WORLD_SIZE (processes on it) and NODE_RANK, too"
        )


def refuse_lonely_nodes(num_nodes: int) -> None:
    """Raise where a run of several machines has no launcher and nothing that says where they meet.

    Raises:
        ConfigurationError: says what to set, or what to start on one machine.
    """
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if num_nodes > 1 and absent:
        raise ConfigurationError(
            f"num_nodes={num_nodes}, but no launcher has started this process and {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not set, so that the machines cannot meet. On one machine use "
            f"devices={num_nodes} and num_nodes=1: the other processes are started, too. On {num_nodes} machines use a "
            "launcher such as torchrun, or give each process a name and all of them an address: --site NAME "
            "--strategy.rendezvous HOST:PORT"
        )


def launched_ranks() -> int:
    """How many processes a launcher such as torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _in_slurm() -> bool:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # late: most command lines need it not

    return SLURMEnvironment.detect()
