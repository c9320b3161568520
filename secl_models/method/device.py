# SPDX-License-Identifier: Apache-2.0
"""The processor or accelerator a run uses: choosing it, naming it, and how much memory it held."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import torch

from secl_models.method.origin import processor
from secl_models.options.errors import InputError


def choose_device(name: str, processes: int = 1) -> torch.device:
    """The device a run uses.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
        processes: Of the run; with several each takes the GPU of its place on the machine.

    Returns:
        The device, with an index for a GPU.

    Raises:
        InputError: Unknown name, or no such GPU here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            "--device", rule="auto, cpu, cuda or cuda:<number>", got=name, cure="name one of these"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if processes > 1 and device.index is not None:
            raise InputError(
                "--device",
                rule="auto, cpu or cuda where a run has several processes, each with a GPU of its own",
                got=name,
                cure="use --device cuda, and CUDA_VISIBLE_DEVICES to choose the GPUs",
            )
        if processes > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if (device.index or 0) >= count:
            raise InputError(
                "--device",
                rule="a GPU that torch can use",
                got=f"{name if processes == 1 else device} with {count} such GPUs here",
                cure="use --device cpu, fewer processes, or a torch built for your GPU",
            )
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise InputError("--device", rule="auto, cpu, cuda or cuda:<number>", got=name, cure="name one of these")
    return device


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors on a CPU free, so that the next step finds its pages in place.

    The allocator of glibc gives large pieces back to the system, and every step waits for thousands of new pages.

    Returns:
        Whether the allocator took it; no other one is asked.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    trim, map_alone = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(set_option(trim, 1 << 30)) and bool(set_option(map_alone, 1 << 25))  # 32 MiB, the most it takes


def machine(device: torch.device) -> str:
    """The processor a run used, its widest vectors and its threads; or the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory_mib(device: torch.device) -> float:
    """Most memory the process held: of the accelerator where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would still hold that of the program which started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
