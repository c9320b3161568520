# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call: a named one runs or raises with its reasons, `auto` takes the first without any."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from secl_ops.engines import native, reference, triton
from secl_ops.engines.reference import ContrastState, Origin, Reduction, SigmoidState
from secl_ops.sigmoid_spec import Logit
from secl_ops.spec import BACKENDS, Flag, Pairs, check_choice
from secl_ops.verified import VERIFIED


class Backend(Protocol):
    """What a backend module offers; `reference` says what each function means."""

    def objections(self, device: str, dtype: torch.dtype, operation: str) -> list[str]: ...
    def unit_rows(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...
    def row_inverse(self, rows: Tensor, labels: Tensor) -> Tensor: ...
    def unit_rows_backward(
        self, grad: Tensor, factors: tuple[Tensor, Tensor] | None, unit: Tensor, inverse: Tensor
    ) -> Tensor: ...
    def contrast_forward(
        self, anchors: Tensor, keys: Tensor, pairs: Pairs, scale: float, flags: Flag,
        known_lse: Tensor | None = None, key_inverse: Tensor | None = None, met: Tensor | None = None,
    ) -> ContrastState: ...  # fmt: skip
    def contrast_backward(
        self, factors: tuple[Tensor, Tensor, Tensor], anchors: Tensor, keys: Tensor, pairs: Pairs,
        lse: Tensor, scale: float, flags: Flag, met: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    def sigmoid_forward(
        self, anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag, key_inverse: Tensor | None = None
    ) -> SigmoidState: ...
    def sigmoid_backward(
        self, weight: Tensor, anchors: Tensor, keys: Tensor, pairs: Pairs, logit: Logit, flags: Flag
    ) -> Tensor: ...
    def reduce(
        self, loss: Tensor, pull: Tensor, count: Tensor, weights: Tensor | None, reduction: str
    ) -> Reduction: ...
    def gather(self, features: Tensor, index: Tensor, normalize: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]: ...
    def gather_backward(
        self, grad: Tensor, factors: tuple[Tensor, Tensor] | None, index: Tensor,
        norm: tuple[Tensor, Tensor] | None, unique: bool, like: Origin,
    ) -> Tensor: ...  # fmt: skip
    def sample(
        self, labels: Tensor, eligible: Tensor | None, scores: Tensor | None, seed: Tensor,
        per_class: int, num_classes: int, ignore_index: int, strategy: str, stream: int,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip


MODULES: dict[str, Backend] = {"native": native, "triton": triton, "reference": reference}
"""Every backend in the order in which `auto` asks them; one without an operation objects to it."""


def select(backend: str, device: torch.device, dtype: torch.dtype, operation: str, width: int = 0) -> Backend:
    """The backend module that serves `operation` on this device and dtype, on rows of this width where there are any.

    Raises:
        ValueError: No backend has this name.
        RuntimeError: A named backend has objections; the message lists each.
    """
    check_choice("backend", backend, BACKENDS)
    if backend != "auto":
        reasons = MODULES[backend].objections(device.type, dtype, operation)
        if reasons:
            raise RuntimeError(
                f"backend={backend!r} cannot run {operation} on {device.type} {str(dtype).removeprefix('torch.')}: "
                + "; ".join(reasons)
                + ". Name another backend, or 'auto' to take the first that can"
            )
        return MODULES[backend]
    for module in MODULES.values():
        if _passed_over(module, device, dtype, operation, width):
            continue
        if not module.objections(device.type, dtype, operation):
            return module
    raise RuntimeError("no backend runs, not even 'reference'; this is a defect")


def _passed_over(module: Backend, device: torch.device, dtype: torch.dtype, operation: str, width: int) -> bool:
    """What `auto` leaves to those who name it.

    Triton's interpreter serves CPU tensors for tests: right, and thousands of times too slow. The CUDA kernels are
    taken where they were seen right and faster than Triton's on such a GPU, and nowhere else.
    """
    if module is MODULES["triton"]:
        return device.type == "cpu"
    if module is not MODULES["native"] or device.type == "cpu":
        return False
    return (
        not VERIFIED
        or (_architecture(device.index), str(dtype).removeprefix("torch."), width, operation) not in VERIFIED
    )


@functools.cache
def _architecture(index: int | None) -> str:
    """The compute capability of a CUDA device, such as "90"."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"{major}{minor}"


def backends() -> dict[str, list[str] | None]:
    """Every backend by name: None where it is usable on this machine, else the reasons why it is not.

    Example:
        >>> import secl_ops
        >>> secl_ops.backends()["reference"] is None
        True
    """
    found: dict[str, list[str] | None] = {}
    for name, module in MODULES.items():
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        reasons = [module.objections(device, torch.float32, "info_nce") for device in devices]
        found[name] = None if [] in reasons else reasons[-1]
    return found
