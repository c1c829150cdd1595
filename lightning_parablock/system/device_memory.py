"""Memory that a device has free for this process."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device, *, processes: int = 1) -> int:
    """Bytes of memory that this process can still take on the device: of a GPU its own, else the machine's.

    Args:
        device: The device.
        processes: Number of processes that share this machine's memory alike; each has a GPU to itself.
    """
    if device.type != "cuda":
        return psutil.virtual_memory().available // processes
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
