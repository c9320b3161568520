# SPDX-License-Identifier: Apache-2.0
"""What is built and runs on this GPU: its name, each backend's reasons, and a small loss of each that has none."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

import secl_ops
from benchmarks import gate
from benchmarks.cases import Case, truth
from benchmarks.gpu import demand_gpu
from benchmarks.provenance import commit, machine
from secl_ops import library
from secl_ops.engines.select import MODULES

SMALL = Case("small", 96, 64, 160, both=True, denominator="negatives")
QUERY = (
    "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,mig.mode.current",
    "--format=csv",
)
DTYPES = ("bfloat16", "float16", "float32")


def card() -> str:
    """What the driver says of the GPU."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    return subprocess.run(["nvidia-smi", *QUERY], capture_output=True, text=True, check=False).stdout.strip()


def examine(device: str) -> list[str]:
    """Print what is there; backends and dtypes that should serve this device and do not, or are wrong."""
    print(f"commit {commit()}, {machine(device)}")
    print(f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}")
    print(f"extension: {library.ABSENCE or 'loaded'}")
    faults = []
    for name, module in MODULES.items():
        for dtype in DTYPES:
            reasons = module.objections(device, getattr(torch, dtype), "info_nce")
            state = "; ".join(reasons) or small(name, device, dtype)
            print(f"backend {name}, {dtype}: {state}", flush=True)
            if state != "right" and not (reasons and name == "native"):  # a build without CUDA kernels is no fault
                faults.append(f"{name}, {dtype}")
    return faults


def small(backend: str, device: str, dtype: str) -> str:
    """The word right, or what is wrong with a small loss and its gradients."""
    case = SMALL.on(device, dtype)
    problem = case.problem()
    try:
        loss = secl_ops.info_nce(
            problem.anchors, problem.keys, anchor_labels=problem.labels, key_labels=problem.key_labels,
            temperature=case.temperature, denominator=case.denominator, backend=backend,
        )  # fmt: skip
        answer = type(truth(case))(loss.detach(), torch.autograd.grad(loss, problem.leaves))
        gate.agree(case, backend, answer)
    except Exception as error:  # whatever it is, it is what the owner of the GPU must read
        return gate.reason(error)
    return "right"


def main(arguments: Sequence[str]) -> int:
    """Everything, or one backend and dtype; how much is wrong."""
    if arguments:
        backend, dtype = arguments
        state = small(backend, "cuda", dtype)
        print(state)
        return state != "right"
    print(card())
    return len(examine("cuda"))


if __name__ == "__main__":
    demand_gpu("build")
    sys.exit(main(sys.argv[1:]))
