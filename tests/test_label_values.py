# SPDX-License-Identifier: Apache-2.0
"""Under `validate` a label that is neither a class nor ignored is named; without it such a pixel is never drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops

SHAPES = [(9,), (6, 5), (4, 3, 5)]
WRONG = [(3, -1), (7, -1), (-5, -1), (-100, -1), (-1, 255), (2**40, -1), (255, -1), (256, 255), (-(2**40), -100)]


def classes(shape: tuple[int, ...], value: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Labels of three classes, and two pixels of this value."""
    labels = (torch.arange(2 * torch.Size(shape).numel()) % 3).view(2, *shape).to(dtype)
    labels[1].view(-1)[4:6] = value
    return labels


def calls(wrong: Tensor, **options: Any) -> dict[str, Callable[[], object]]:
    """Wherever labels of pixels go, by the name of the argument that a message must hold."""
    options = {"per_class": 2, "num_classes": 3, "validate": True, **options}
    right = classes(tuple(wrong.shape[1:]), 0)
    maps = torch.randn(2, 4, *wrong.shape[1:])
    queue = secl_ops.ClassQueue(3, 4, 4)
    module = secl_ops.PixelContrastLoss(**options, queue=queue)
    late = secl_ops.PixelContrastLoss(**{**options, "validate": False})
    late.validate = options["validate"]
    return {
        "labels of the function": lambda: secl_ops.pixel_contrast(maps, wrong, **options, seed=0),
        "labels beside a teacher": lambda: secl_ops.pixel_contrast(maps, wrong, maps, right, **options, seed=0),
        "key_labels of the function": lambda: secl_ops.pixel_contrast(maps, right, maps, wrong, **options, seed=0),
        "labels of both": lambda: secl_ops.pixel_contrast(maps, wrong, maps, **options, seed=0),
        "labels of the module": lambda: module(maps, wrong),
        "key_labels of the module": lambda: module(maps, right, maps, wrong),
        "labels of a module that checks from now on": lambda: late(maps, wrong),
        "labels of the sampler": lambda: secl_ops.sample_pixels(wrong, **options, seed=0),
        "labels of a finer map": lambda: secl_ops.pixel_contrast(
            maps, wrong.repeat_interleave(2, dim=1), **options, seed=0
        ),
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("value", "ignored"), WRONG)
def test_a_value_that_is_no_class_is_named(value: int, ignored: int, shape: tuple[int, ...]) -> None:
    wrong = classes(shape, value)
    wrong[0].view(-1)[3] = ignored
    for name, call in calls(wrong, ignore_index=ignored).items():
        count = 4 if "finer" in name else 2
        rule = (
            f"{name.split()[0]} must lie in 0..2 (num_classes - 1) or be ignore_index, {ignored}; got {value} ({count}"
        )
        with pytest.raises(ValueError, match="^" + re.escape(rule)):
            call()
    for call in calls(wrong, ignore_index=ignored, validate=False).values():
        call()


def test_ignored_labels_and_pixels_that_are_left_out_pass() -> None:
    for dtype, value in ((torch.uint8, 255), (torch.int16, -100), (torch.int64, 2**40)):
        labels = classes((6, 5), value, dtype)
        for call in calls(labels, ignore_index=value).values():
            call()
        maps = torch.randn(2, 4, 6, 5)
        options: dict[str, Any] = {"per_class": 2, "num_classes": 3, "seed": 0, "validate": True}
        known = labels != value
        secl_ops.sample_pixels(labels, **options, eligible=known)
        secl_ops.pixel_contrast(maps, labels, maps, labels, **options, eligible=known, key_eligible=known)
        secl_ops.pixel_contrast(maps, labels, maps, **options, eligible=known)
        with pytest.raises(ValueError, match="key_labels must lie in"):
            secl_ops.pixel_contrast(maps, labels, maps, labels, **options, eligible=known)


def test_of_many_wrong_values_the_first_are_listed() -> None:
    labels = torch.arange(20).view(1, 4, 5)
    with pytest.raises(
        ValueError, match=r"got 5 \(1 pixels\), 6 \(1 pixels\), .*, 12 \(1 pixels\), \.\.\.; set num_cl"
    ):
        secl_ops.sample_pixels(labels, 2, num_classes=5, seed=0, validate=True)
    secl_ops.sample_pixels(labels[:, :0], 2, num_classes=5, seed=0, validate=True)
