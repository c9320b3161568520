# SPDX-License-Identifier: Apache-2.0
"""What tensor cores do to fp32 numbers, which the interpreter does not do by itself: tf32 holds 11 binary digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secl_ops import tiles
from secl_ops.engines import triton
from secl_ops.spec import Flag
from tests.cases import CASES
from tests.conftest import skip_or_fail
from tests.test_backends import check
from tests.test_triton import check as check_rules
from tests.test_triton import draw, every_rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cut(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers as a tensor core reads them for a product of tf32: the rest is not looked at."""
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The nearest number of tf32, as the compiler makes both parts of a factor for three products."""
    bits = values.astype(np.float32).view(np.uint32)
    near = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.asarray(np.where(np.isfinite(values), near, values))


def three_products(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`left @ right` by a large and a small part of each factor; the product of the small parts is left out."""
    left_large, right_large = rounded(left), rounded(right)
    left_small, right_small = rounded(left - left_large), rounded(right - right_large)
    small = np.matmul(left_small, right_large) + np.matmul(left_large, right_small)
    return np.asarray(np.where(np.isnan(small), 0.0, small).astype(np.float32) + np.matmul(left_large, right_large))


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The interpreter multiplies fp32 numbers as tensor cores do; the list names each way that was asked for."""
    reasons = triton.objections(DEVICE, torch.float32, "info_nce")
    if reasons:
        skip_or_fail("triton", "; ".join(reasons))
    if DEVICE == "cuda":  # which has its own
        return ["TF32x3", "TF32"]
    from triton.runtime import interpreter

    seen: list[str] = []
    true = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, left: Any, right: Any, total: Any, precision: Any, *rest: Any) -> Any:
        name = str(precision).rpartition(".")[2]
        if left.data.dtype != np.float32:
            return true(self, left, right, total, precision, *rest)
        seen.append(name)
        multiply = three_products if name == "TF32x3" else lambda a, b: np.matmul(cut(a), cut(b))
        found = multiply(left.data, right.data) + total.data
        return interpreter.TensorHandle(found.astype(total.data.dtype), total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    return seen


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("no anchor", "no key")])
def test_three_products_of_tf32_keep_the_fp32_budget(name: str, tensor_cores: list[str]) -> None:
    check(CASES[name](), "triton", DEVICE)
    assert "IEEE" not in tensor_cores


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF], ids=str)
def test_three_products_of_wide_rows(flags: Flag, tensor_cores: list[str]) -> None:
    anchors, keys = (torch.nn.functional.normalize(draw(rows, 200, seed=rows), dim=1) for rows in (40, 90))
    keys = anchors if Flag.SELF in flags else keys
    check_rules(anchors, keys, every_rule(40, len(keys), shared=Flag.SELF in flags), 14.0, flags | Flag.UNIT)
    assert tensor_cores


def test_weights_of_fp16_rows_are_rounded_not_cut(tensor_cores: list[str]) -> None:
    anchors = torch.nn.functional.normalize(draw(70, 16), dim=1).half()
    keys = torch.ones(90, 16, device=DEVICE).half()  # the mean key is known: every bias of the weights is seen
    pairs = every_rule(70, 90)._replace(anchor_groups=None, key_groups=None, exclude=None)
    state = triton.contrast_forward(anchors, keys, pairs, 3.0, Flag.UNIT | Flag.SCAN | Flag.ANCHOR_GRADIENT)
    mean = state.grad_anchors[pairs.anchor_labels >= 0] / 3.0
    assert "TF32" in tensor_cores
    assert (mean.double().mean() - 1.0).abs() < 2.0**-14  # cut weights are 2^-12.6 too small on average


def test_the_way_that_fp32_rows_are_multiplied_is_asked_for_by_name() -> None:
    assert tiles.fp32_products("tf32x3") == "tf32x3"
    with pytest.raises(ValueError, match="SECL_FP32 must be tf32x3 or exact; got 'tf32'; unset it for the former"):
        tiles.fp32_products("tf32")
