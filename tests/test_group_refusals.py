# SPDX-License-Identifier: Apache-2.0
"""What one process of a group refuses alone: the others refuse it with that process, and the next call is joined."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import secl_ops
from secl_ops.distributed import CALL_BYTES
from tests.cases import labels, rows
from tests.group_ranks import said
from tests.test_group import Found, ran

ANCHORS, WIDTH = 6, 4
DRAW: dict[str, Any] = {"per_class": 2, "num_classes": 2}
OWN = {  # what the process that refuses says itself
    "labels": r"ValueError: anchor_labels must have shape \[6\]",
    "kind": "TypeError: anchors must be a torch.Tensor; got list",
    "values": r"ValueError: anchor_labels must lie in -1\.\.2147483647",
    "backend": "RuntimeError: backend='native' cannot run info_nce on cpu float64",
    "device": "ValueError: group must exchange tensors on the rows' device, meta; its backends do so on cpu, cuda",
    "maps": "ValueError: labels must have the batch and the number of spatial axes of features",
    "head": "RuntimeError: a head of the user's",
    "queue's width": "ValueError: queue must be as wide as features, 4; it was made with dim=3",
    "rows for a queue": "ValueError: rows must be 4 wide, the queue's dim; got 3",
    "long": "TypeError: anchors must be a torch.Tensor; got N",
}
MODES = "ValueError: group needs one call .*; got queue=read and filled in process 0; queue=read in process 1; give"


class Failing(nn.Module):
    """A head that one process cannot run."""

    def forward(self, values: Tensor) -> Tensor:
        raise RuntimeError("a head of the user's; it has two sentences")


Long = type("N" * 2000, (), {})  # whose name no process sends whole


def refusals(rank: int, world: int) -> dict[str, tuple[str, Tensor]]:
    """What each process says where one alone refuses, and the loss that it then finds with the others."""
    every, wrong = dist.group.WORLD, rank == 1
    same, of_same = rows(ANCHORS, WIDTH, rank), labels(ANCHORS, 2, 0)
    maps, classes = rows(2 * 9, WIDTH, rank).reshape(2, 3, 3, WIDTH).movedim(-1, 1), labels(18, 2, 1).reshape(2, 3, 3)
    queue, narrow = (secl_ops.ClassQueue(2, 3, width) for width in (WIDTH, 3))
    filled = secl_ops.PixelContrastLoss(**DRAW, queue=secl_ops.ClassQueue(2, 3, WIDTH), group=every)

    def loss(anchors: Any = same, of_anchors: Tensor = of_same, **options: Any) -> Tensor:
        return secl_ops.info_nce(anchors, anchor_labels=of_anchors, group=every, **options)

    def of_maps(of_maps: Tensor = classes, **options: Any) -> Tensor:
        return secl_ops.pixel_contrast(maps, of_maps, **DRAW, seed=0, group=every, **options)

    def of_modes() -> Tensor:
        criterion = filled.eval() if wrong else filled.train()
        found: Tensor = criterion(maps.requires_grad_(), classes)
        return found

    calls: dict[str, Callable[[], object]] = {
        "labels": lambda: loss(of_anchors=of_same[wrong:]),
        "kind": lambda: loss([same] if wrong else same),
        "values": lambda: loss(of_anchors=of_same + (2**40 if wrong else 0), validate=True),
        "backend": lambda: loss(same.double(), backend="native") if wrong else loss(),
        "device": lambda: loss(same.to("meta"), of_same.to("meta")) if wrong else loss(),
        "maps": lambda: of_maps(classes[wrong:]),
        "head": lambda: of_maps(head=Failing() if wrong else nn.Identity()),
        "queue's width": lambda: of_maps(queue=narrow if wrong else queue),
        "rows for a queue": lambda: queue.enqueue(same[:, wrong:], of_same, group=every),
        "long": lambda: loss(Long() if wrong else same),
        "modes": of_modes,
    }
    return {name: (said(call), loss()) for name, call in calls.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return ran(2, tmp_path_factory.mktemp("refusals"), {"refusals": refusals})


@pytest.mark.parametrize("name", OWN)
def test_what_one_process_refuses_the_others_refuse_with_its_reason(name: str, found: Found) -> None:
    others, own = (each["refusals"][name][0] for each in found)
    assert re.match(OWN[name], own), own
    told = others.removeprefix("ValueError: group needs a call in all its processes; process 1 has none: ")
    assert own.startswith(told), others
    assert len(told) >= min(len(own), CALL_BYTES - 100), others


def test_a_loss_in_evaluation_in_one_process_alone_is_refused_in_all(found: Found) -> None:
    for each in found:
        assert re.match(MODES, each["refusals"]["modes"][0]), each["refusals"]["modes"]


@pytest.mark.parametrize("name", [*OWN, "modes"])
def test_the_next_call_is_joined_with_its_own(name: str, found: Found) -> None:
    joined = secl_ops.info_nce(
        torch.cat([rows(ANCHORS, WIDTH, rank) for rank in range(2)]), anchor_labels=labels(ANCHORS, 2, 0).repeat(2)
    )
    for each in found:
        torch.testing.assert_close(each["refusals"][name][1], joined)
