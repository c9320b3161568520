# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, executed on the emulated GPU through the functions that a GPU is served by: right, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_ops.engines import native, reference
from secl_ops.engines.reference import Origin
from tests.budget import assert_within_budget
from tests.cases import rows, surrounded

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "cut": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 0), value=torch.nan)[:, :, 3:, 1:-2],
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
}


pytestmark = pytest.mark.usefixtures("gpu")


def bits(values: Tensor) -> Tensor:
    """What is stored, so that NaN equals itself and -0 is not 0."""
    return values.contiguous().flatten().view(torch.uint8)


def repeated(gpu: Any, call: Callable[[], Any]) -> Any:
    """What the call gives, after it has given the same bits again, and in reversed order of blocks and threads."""
    results = []
    for backwards in (False, False, True):
        gpu.set_reversed(backwards)
        found = call()
        results.append(found if isinstance(found, tuple) else (found,))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(bits(first), bits(second))
    return found


def poisoned_rows(n: int, d: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Rows [n, d] between NaN."""
    return surrounded(rows(n, d, seed).to(dtype))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 8), (9, 37), (17, 64), (5, 130), (3, 600)])
def test_unit_rows(n: int, d: int, dtype: torch.dtype, gpu: Any) -> None:
    given, labels = poisoned_rows(n, d, n + d, dtype), torch.arange(n, dtype=torch.int32) % 4 - 1
    given[labels < 0] = torch.nan
    given[labels == 2] = 0
    truth, plain = (reference.unit_rows(given.to(kind), labels) for kind in (torch.float64, dtype))
    unit, inverse = repeated(gpu, lambda: native.unit_rows(given, labels))
    assert_within_budget("unit", unit, truth[0], plain[0])
    assert_within_budget("inverse", inverse, truth[1], plain[1])
    assert torch.equal(native.row_inverse(given, labels), inverse)


def test_norms_at_the_ends_of_fp32() -> None:
    given = torch.tensor([[3e38, -3e38], [1e-45, 0.0], [0.0, 0.0], [torch.inf, 1.0], [torch.nan, 1.0]])
    labels = torch.zeros(5, dtype=torch.int32)
    unit, inverse = native.unit_rows(given, labels)
    truth, norms = reference.unit_rows(given.double(), labels)
    # Plain torch has no answer here, but a sum of two squares near 1 is as good as one of numbers near 2.
    assert_within_budget("unit", unit, truth, truth.float(), magnitude=2.0)
    assert inverse.nan_to_num(7.0).tolist()[1:] == [torch.finfo(torch.float32).max, 0.0, 0.0, 7.0]
    assert inverse[0] == norms[0].float()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 8), (9, 37), (17, 64), (5, 130), (3, 600)])
def test_gradient_through_the_norm(n: int, d: int, dtype: torch.dtype, scaled: bool, gpu: Any) -> None:
    labels = torch.zeros(n, dtype=torch.int32)
    unit, inverse = reference.unit_rows(rows(n, d, 1).to(dtype), labels)
    unit, grad = surrounded(unit)[0], poisoned_rows(n, d, 2, torch.float32)
    grad[n // 2] = 0
    unit[n // 2] = torch.nan  # a zero gradient stays zero, whatever stands in the row
    factors = (torch.linspace(0.5, 2, n), torch.tensor([0.25]).expand(n)) if scaled else None
    truth, plain = (
        reference.unit_rows_backward(grad.to(kind), factors, unit.to(kind), inverse.to(kind))
        for kind in (torch.float64, torch.float32)
    )
    found = repeated(gpu, lambda: native.unit_rows_backward(grad, factors, unit, inverse))
    assert_within_budget("gradient", found, truth, plain.to(dtype), magnitude=2 * float(grad.abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 67, 8192, 2 * 8192 + 5])
def test_reduce(n: int, weighted: bool, reduction: str, gpu: Any) -> None:
    generator = torch.Generator().manual_seed(n)
    loss, pull = (surrounded(torch.rand(n, generator=generator))[0] for _ in range(2))
    count = surrounded(torch.randint(0, 4, (n,), generator=generator, dtype=torch.int32))[0]
    weights = torch.rand(n, generator=generator) if weighted else None

    def run(backend: Any, kind: torch.dtype) -> Any:
        given = None if weights is None else weights.to(kind)
        return backend.reduce(loss.to(kind), pull.to(kind), count, given, reduction)

    found = repeated(gpu, lambda: run(native, torch.float32))
    for name, actual, truth, plain in zip(found._fields, found, run(reference, torch.float64),
                                          run(reference, torch.float32), strict=True):  # fmt: skip
        assert_within_budget(name, actual, truth, plain)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduce_nothing(reduction: str) -> None:
    zeros = torch.zeros(3)
    for length in (0, 3):
        value = native.reduce(zeros[:length], zeros[:length], zeros[:length].int(), None, reduction).value
        assert value.shape == ((length,) if reduction == "none" else ())
        assert value.eq(0).all()


def feature_map(dtype: torch.dtype, layout: str, depth: int) -> Tensor:
    """A map [2, depth, 5, 6] of this layout."""
    return LAYOUTS[layout](rows(2 * depth * 5, 6, depth).view(2, depth, 5, 6).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 24, 37, 528])
def test_gather(depth: int, dtype: torch.dtype, layout: str, gpu: Any) -> None:
    features = feature_map(dtype, layout, depth)
    index = torch.tensor([0, 59, -1, 29, 30, 7, 7, 0, 12])
    for to in DTYPES:
        truth, plain = (reference.gather(features.to(kind), index, True, kind) for kind in (torch.float64, dtype))
        unit, inverse = repeated(gpu, partial(native.gather, features, index, True, to))
        assert_within_budget("unit", unit, truth[0], plain[0].to(to))
        assert_within_budget("inverse", inverse, truth[1], plain[1])
        copied, none = native.gather(features, index, False, to)
        assert torch.equal(copied, reference.gather(features, index, False, to)[0])
        assert none.numel() == 0


@pytest.mark.parametrize("axes", [1, 3])
def test_gather_with_other_numbers_of_axes(axes: int) -> None:
    features = torch.randn(2, 8, *(5, 3, 4)[:axes])
    index = torch.arange(-1, features.numel() // 8)
    assert torch.equal(native.gather(features, index, False, torch.float32)[0],
                       reference.gather(features, index, False, torch.float32)[0])  # fmt: skip


def test_an_index_outside_the_map_is_not_read() -> None:
    features = surrounded(torch.ones(4, 3))[0].view(2, 3, 2)
    unit, inverse = native.gather(features, torch.tensor([4, 3, 2**40]), True, torch.float32)
    assert unit[[0, 2]].eq(0).all()
    assert inverse[[0, 2]].eq(0).all()
    assert unit[1].ne(0).all()


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "depth"), [(torch.float32, 37), (torch.bfloat16, 24), (torch.float16, 528)])
def test_gather_gradient(dtype: torch.dtype, depth: int, layout: str, norm: bool, unique: bool, gpu: Any) -> None:
    features = feature_map(dtype, layout, depth)
    index = torch.tensor([0, 59, -1, 29, 30, 7, 12] if unique else [0, 7, 59, -1, 29, 7, 30, 7, 0])
    grad = rows(len(index), depth, 3)
    grad[1] = 0
    factors = (torch.linspace(0.5, 2, len(index)), torch.tensor([0.25]).expand(len(index)))
    unit, inverse = reference.gather(features, index, True, dtype)
    like = Origin(features.shape, torch.empty_like(features).stride(), dtype)

    def run(backend: Any, kind: torch.dtype) -> Tensor:
        along = (unit.to(kind), inverse.to(kind)) if norm else None
        found: Tensor = backend.gather_backward(grad.to(kind), factors, index, along, unique, like._replace(dtype=kind))
        return found

    given = (unit, inverse) if norm else None
    found = repeated(gpu, lambda: native.gather_backward(grad, factors, index, given, unique, like))
    assert found.stride() == like.stride
    truth = run(reference, torch.float64)
    plain = run(reference, torch.float32).to(dtype)
    assert_within_budget("gradient", found, truth, plain, magnitude=2 * float(grad.abs().max()))


def test_raw_operations_refuse_what_they_would_read_wrongly(gpu: Any) -> None:
    seed, labels = torch.tensor([0]), torch.zeros(1, 4, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="labels must be int64, int32 or uint8"):
        gpu.sample(labels, None, None, seed, 1, 1, -1, 0, 0)
    with pytest.raises(RuntimeError, match="labels may have at most three spatial axes"):
        gpu.sample(torch.zeros(1, 1, 1, 1, 4).long(), None, None, seed, 1, 1, -1, 0, 0)
    with pytest.raises(RuntimeError, match="must have shape \\[B, D, \\*spatial\\] with one to three spatial axes"):
        gpu.gather(torch.zeros(1, 1, 1, 1, 1, 4), seed, torch.zeros(1, 1), None)
    with pytest.raises(RuntimeError, match="factor and upstream go together"):
        gpu.unit_rows_backward(torch.zeros(2, 3), torch.zeros(2), None, torch.zeros(2, 3), torch.zeros(2))
