# SPDX-License-Identifier: Apache-2.0
"""Processes of a test: forked, so that none has to import torch again, and joined as `torchrun` joins them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess

FORK = multiprocessing.get_context("fork")
SECONDS = 120.0  # what a test waits for a process before it fails


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(task: Callable[[], object]) -> BaseProcess:
    """A forked process that runs the task; its exit code is 0, 2 with the error printed, or minus a signal."""

    def body() -> None:
        code = 0
        try:
            task()
        except BaseException:
            traceback.print_exc()
            code = 2
        os._exit(code)

    process = FORK.Process(target=body)
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Its exit code; one that does not end is killed, and the test fails."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process still ran after {SECONDS:g} s")
    return process.exitcode


def start_ranks(count: int, task: Callable[[int], object]) -> list[BaseProcess]:
    """The task in `count` processes that know of each other by the variables that `torchrun` sets."""
    port = free_port()

    def of_rank(rank: int) -> Callable[[], object]:
        def body() -> object:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }  # fmt: skip
            return task(rank)

        return body

    return [start(of_rank(rank)) for rank in range(count)]
