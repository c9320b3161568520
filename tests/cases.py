# SPDX-License-Identifier: Apache-2.0
"""Named calls of the loss: ragged sizes, every option, every edge; shared by all tests of the backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from secl_ops.engines.reference import ContrastState
from tests.oracle import Call, Separate


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Random rows [n, d] with values that bf16 and fp16 hold exactly, so that every dtype sees the same."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-64, 65, (n, d), generator=generator) / 32).float()


def labels(n: int, classes: int, seed: int, ignored: float = 0.0) -> torch.Tensor:
    """Random labels [n], a share of them -1."""
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn = torch.randint(0, classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < ignored, -1, drawn)


def surrounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values as a contiguous view into a larger buffer of NaN, or of class 0, and that buffer."""
    margin, outside = 80, torch.nan if values.is_floating_point() else 0
    buffer = values.new_full((len(values) + 2 * margin, *values.shape[1:]), outside)
    view = buffer[margin : margin + len(values)]
    view.copy_(values)
    return view, buffer


class Guarded:
    """Tensors as views into larger buffers, and whether something was written around them."""

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        view, buffer = surrounded(values)
        self._buffers.append((buffer, buffer.clone()))
        return view

    def untouched(self) -> bool:
        """Whether all buffers are as they were."""
        return all(torch.equal(now.nan_to_num(7.0), before.nan_to_num(7.0)) for now, before in self._buffers)


def separate(n: int, m: int, d: int, seed: int = 0, classes: int = 4, ignored: float = 0.2) -> Separate:
    """Anchors and keys of their own."""
    return Separate(
        rows(n, d, seed), labels(n, classes, seed, ignored), rows(m, d, seed + 1), labels(m, classes, seed + 1, ignored)
    )


def alone(n: int, d: int, seed: int = 0, classes: int = 3, ignored: float = 0.1) -> Call:
    """Self-contrast."""
    return Call(rows(n, d, seed), labels(n, classes, seed, ignored))


def _grouped() -> Call:
    call = separate(31, 45, 16, 3)
    return replace(call, anchor_groups=labels(31, 3, 8), key_groups=labels(45, 3, 9))


def _excluding() -> Call:
    call = separate(29, 37, 9, 4)
    return replace(call, exclude=labels(29, 37, 5, ignored=0.3))


def _prototypes() -> Call:
    call = separate(33, 41, 24, 5)
    return replace(call, positives=rows(4, 24, 6), positive_labels=torch.arange(4))


def _grouped_prototypes() -> Call:
    return replace(_grouped(), positives=rows(6, 16, 6), positive_labels=torch.arange(6) % 4)


def _zero_rows() -> Call:
    call = separate(18, 22, 8, 7)
    anchors, keys = call.anchors.clone(), call.keys.clone()
    anchors[::3], keys[::4] = 0, 0
    return replace(call, anchors=anchors, keys=keys)


def _weighted() -> Call:
    call = separate(20, 30, 12, 11)
    return replace(call, weights=torch.arange(20) % 4 / 2.0)


def push_and_draw(state: ContrastState) -> tuple[torch.Tensor, torch.Tensor]:
    """What the gradient of each anchor's own loss is made of: its pull, and 1 / count where it has a positive."""
    positives = state.count.to(state.pull.dtype)
    return state.pull, torch.where(positives > 0, 1.0 / torch.where(positives > 0, positives, 1.0), 0.0)


def copies(n: int, seed: int) -> torch.Tensor:
    """How often each of n keys counts: not at all, once, more often, or in part."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 3.0])[torch.randint(0, 7, (n,), generator=generator)]


def _all_at_once() -> Call:
    call = replace(_grouped(), exclude=labels(31, 45, 5, ignored=0.3), weights=torch.arange(31) % 4 / 2.0)
    return replace(call, key_weights=copies(45, 7))


def _unlike() -> Call:
    """Some anchors must not see the key beside which the others of their class weigh nothing."""
    heavy = (torch.arange(30) == 12) | (torch.arange(30) == 25)
    exclude = torch.tensor([12, 25]).repeat(10)
    return replace(separate(20, 30, 12, 5), exclude=exclude, key_weights=torch.where(heavy, 1e9, 1e-9))


def _many() -> Call:
    """Tiles that lie whole in the class of some anchors, and whole in another; the other anchors have no positive."""
    call = replace(separate(20, 400, 16, 8, classes=2), key_weights=copies(400, 8))
    return replace(call, anchor_labels=torch.tensor([0, 0, -1, 0, 7]).repeat(4))


KEY_WEIGHTED: dict[str, Callable[[], Call]] = {
    "weighted keys": lambda: replace(separate(67, 83, 20), key_weights=copies(83, 0)),
    "many weighted keys": _many,
    "two of three keys": lambda: replace(separate(3, 3, 4, 19, 1, 0.0), key_weights=torch.tensor([0.5, 0.0, 2.0])),
    "self, weighted as keys": lambda: replace(alone(61, 16), key_weights=copies(61, 1)),
    "self prototypes, weighted as keys": lambda: replace(CASES["self prototypes"](), key_weights=copies(26, 2)),
    "weighted keys and prototypes": lambda: replace(_grouped_prototypes(), key_weights=copies(45, 3)),
    "weighted keys and weights": _all_at_once,
    "cold weighted keys": lambda: replace(CASES["cold"](), key_weights=copies(40, 4)),
    "unlike weights": _unlike,
    "weighted keys, not normalised": lambda: replace(CASES["not normalised"](), key_weights=copies(40, 5)),
    "no key counts": lambda: replace(separate(9, 11, 8), key_weights=torch.zeros(11)),
    "no weighted key": lambda: replace(CASES["no key"](), key_weights=torch.zeros(0)),
}

CASES: dict[str, Callable[[], Call]] = {
    "one pair": lambda: Call(rows(1, 1, 0), torch.tensor([0]), rows(1, 1, 1), torch.tensor([0])),
    "ragged": lambda: separate(67, 83, 20),
    "wide": lambda: separate(17, 35, 130, 1),
    "self": lambda: alone(61, 16),
    "self grouped": lambda: replace(alone(40, 16, 2), anchor_groups=labels(40, 2, 3)),
    "self prototypes": lambda: replace(alone(26, 8, 6), positives=rows(3, 8, 1), positive_labels=torch.arange(3)),
    "grouped": _grouped,
    "excluding": _excluding,
    "prototypes": _prototypes,
    "grouped prototypes": _grouped_prototypes,
    "prototypes with groups": lambda: replace(_grouped_prototypes(), positive_groups=labels(6, 3, 10)),
    "zero rows": _zero_rows,
    "weighted": _weighted,
    "cold": lambda: replace(separate(24, 40, 16, 12), temperature=0.01),
    "warm": lambda: replace(separate(24, 40, 16, 13), temperature=2.0),
    "not normalised": lambda: replace(separate(24, 40, 16, 14), normalize=False, temperature=1.0),
    "one class": lambda: separate(19, 21, 8, 15, classes=1),
    "no positive": lambda: replace(separate(9, 11, 8, 16), key_labels=torch.full((11,), 99)),
    "all ignored": lambda: replace(separate(9, 11, 8, 17), anchor_labels=torch.full((9,), -1)),
    "all keys ignored": lambda: replace(separate(9, 11, 8, 18), key_labels=torch.full((11,), -1)),
    "no anchor": lambda: replace(separate(5, 7, 8), anchors=torch.zeros(0, 8), anchor_labels=torch.zeros(0).long()),
    "no key": lambda: replace(separate(5, 7, 8), keys=torch.zeros(0, 8), key_labels=torch.zeros(0).long()),
    "duplicated rows": lambda: Call(rows(4, 8, 3).repeat(6, 1), torch.arange(24) % 4),
}
