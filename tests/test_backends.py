# SPDX-License-Identifier: Apache-2.0
"""Every backend computes the same: loss and gradients, every case, every dtype, within the error budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import ops
from secl_ops.spec import Flag
from tests.budget import assert_within_budget
from tests.cases import CASES, alone, rows, separate
from tests.exact import exact
from tests.lanes import Fit
from tests.oracle import Call, present
from tests.oracle import dense as plain

C = TypeVar("C", bound=Call)
pytestmark = pytest.mark.usefixtures("poisoned")


def on(call: C, device: str) -> C:
    given: dict[str, Any] = {name: value for name, value in call.__dict__.items() if isinstance(value, Tensor)}
    return replace(call, **{name: value.to(device) for name, value in given.items()})


def run(call: Call, backend: str, device: str) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a backend, on the CPU."""
    call, leaves = on(call, device).leaves()
    loss = secl_ops.info_nce(**call.arguments(), backend=backend)
    gradients = torch.autograd.grad(loss.sum(), leaves)
    return loss.detach().cpu(), [gradient.cpu() for gradient in gradients]


def check(call: Call, backend: str, device: str) -> None:
    loss, gradients = run(call, backend, device)
    truth, true_gradients = plain(call.to(torch.float64))
    rough, rough_gradients = plain(call)
    assert loss.dtype == (torch.float64 if call.anchors.dtype == torch.float64 else torch.float32)
    amplification = 4 / call.degree
    assert_within_budget("loss", loss, truth, rough, amplification=amplification, magnitude=1 / call.degree)
    for number, gradient in enumerate(gradients):
        assert gradient.dtype == call.anchors.dtype
        assert_within_budget(
            f"gradient {number}", gradient, true_gradients[number], rough_gradients[number],
            amplification=amplification,
        )  # fmt: skip


@pytest.mark.thinned(10, backend="triton")
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", CASES)
def test_every_case(name: str, denominator: str, backend: str, device: str) -> None:
    check(replace(CASES[name](), denominator=denominator), backend, device)


@pytest.mark.thinned(10, backend="triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.cuda_kernels
@pytest.mark.thinned(4, backend="emulated-cuda")
@pytest.mark.thinned(4, backend="emulated-hopper")
def test_low_precision(name: str, denominator: str, dtype: torch.dtype, backend: str, device: str, fitted: Fit) -> None:
    check(fitted(replace(CASES[name](), denominator=denominator).to(dtype)), backend, device)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["ragged", "weighted", "no positive"])
@pytest.mark.cuda_kernels
def test_reductions(name: str, reduction: str, backend: str, device: str, fitted: Fit) -> None:
    check(fitted(replace(CASES[name](), reduction=reduction)), backend, device)


@pytest.mark.parametrize("call", [alone(40, 8), separate(21, 34, 8)], ids=["self", "separate"])
@pytest.mark.cuda_kernels
def test_the_same_call_twice_gives_the_same_bits(call: Call, backend: str, device: str, fitted: Fit) -> None:
    first, second = (run(fitted(call), backend, device) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


@pytest.mark.cuda_kernels
def test_no_valid_anchor_gives_zero_with_a_graph(backend: str, device: str, fitted: Fit) -> None:
    for name in ("no positive", "all ignored", "all keys ignored", "no anchor", "no key"):
        loss, gradients = run(fitted(CASES[name]()), backend, device)
        assert loss.item() == 0.0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.cuda_kernels
def test_positive_without_negative(backend: str, device: str, fitted: Fit) -> None:
    call = fitted(Call(torch.ones(2, 3), torch.tensor([5, 5]), reduction="none"))
    assert run(call, backend, device)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.cuda_kernels
def test_nan_in_an_ignored_row_stays_there(denominator: str, backend: str, device: str, fitted: Fit) -> None:
    call = fitted(replace(separate(30, 41, 12), denominator=denominator))
    clean = run(call, backend, device)
    anchors, keys = call.anchors.clone(), call.keys.clone()
    anchors[call.anchor_labels < 0], keys[call.key_labels < 0] = torch.nan, torch.inf
    dirty = run(replace(call, anchors=anchors, keys=keys), backend, device)
    assert torch.equal(clean[0], dirty[0])
    assert all(map(torch.equal, clean[1], dirty[1]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.cuda_kernels
def test_nan_in_a_read_row_travels_into_the_loss(value: float, backend: str, device: str, fitted: Fit) -> None:
    call = fitted(replace(separate(30, 41, 12, ignored=0.0), normalize=False))
    anchors = call.anchors.clone()
    anchors[3, 2] = value
    loss, _ = run(replace(call, anchors=anchors, reduction="none"), backend, device)
    assert not loss[3].isfinite()
    assert loss[torch.arange(30) != 3].isfinite().all()


@pytest.mark.cuda_kernels
def test_only_the_gradients_asked_for(backend: str, device: str, fitted: Fit) -> None:
    call = fitted(separate(13, 17, 8))
    for name in ("anchors", "keys"):
        moved = on(call, device)
        leaf = getattr(moved, name).clone().requires_grad_()
        secl_ops.info_nce(**{**moved.arguments(), name: leaf}, backend=backend).backward()
        (truth,), (rough,) = (plain(value, (name,))[1] for value in (call.to(torch.float64), call))
        assert_within_budget(name, present(leaf.grad).cpu(), truth, rough, amplification=4 / call.degree)
        assert (moved.keys if name == "anchors" else moved.anchors).grad is None


@pytest.mark.cuda_kernels
def test_permuted_input_and_gradient_layout(backend: str, device: str, fitted: Fit) -> None:
    call = on(fitted(separate(19, 23, 8)), device)
    dense = call.anchors.clone().requires_grad_()
    leaf = call.anchors.T.contiguous().T.requires_grad_()
    expected, loss = (
        secl_ops.info_nce(**replace(call, anchors=each).arguments(), backend=backend) for each in (dense, leaf)
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, dense)[0])
    assert gradient.stride() == leaf.stride()


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("call", [separate(13, 17, 8), alone(14, 8)], ids=["separate", "self"])
def test_temperature_tensor(call: Call, backend: str, device: str, fitted: Fit) -> None:
    check(fitted(replace(call, temperature=torch.full((1,), 0.3))), backend, device)


def test_fp16_rows_and_a_temperature_tensor_do_not_overflow(backend: str, device: str) -> None:
    anchors, keys = (torch.eye(4) * 6000).half().to(device), (torch.eye(4) * 0.02).half().to(device)
    labels = torch.tensor([0, 0, 1, 1], device=device)
    losses = [
        secl_ops.info_nce(
            anchors, keys, anchor_labels=labels, key_labels=labels, normalize=False, temperature=temperature,
            backend=backend,
        ).cpu()
        for temperature in (0.05, torch.tensor([0.05], device=device))
    ]  # fmt: skip
    assert_within_budget("tensor", losses[1], losses[0].double(), losses[0], amplification=2400 * 4)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.cuda_kernels
def test_nan_in_an_anchor_without_a_positive_stays_there(
    denominator: str, backend: str, device: str, fitted: Fit
) -> None:
    call = fitted(replace(separate(30, 41, 12, ignored=0.0), denominator=denominator))
    labels = call.anchor_labels.clone()
    labels[4] = 99
    call = replace(call, anchor_labels=labels)
    anchors = call.anchors.clone()
    anchors[4] = torch.nan
    clean, dirty = run(call, backend, device), run(replace(call, anchors=anchors), backend, device)
    assert torch.equal(clean[0], dirty[0])
    assert not dirty[1][0][4].any()
    assert all(gradient.isfinite().all() for gradient in dirty[1])


@pytest.mark.cuda_kernels
def test_nan_where_nothing_counts_leaves_zero_gradients(backend: str, device: str, fitted: Fit) -> None:
    call = fitted(CASES["no positive"]())
    keys = present(call.keys).clone()
    keys[3] = torch.nan
    loss, gradients = run(replace(call, keys=keys), backend, device)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("factor", [2.0**83, 2.0**-83])
@pytest.mark.cuda_kernels
def test_rows_of_extreme_norm_are_rows(factor: float, backend: str, device: str, fitted: Fit) -> None:
    call = fitted(separate(19, 23, 8))
    extreme = run(replace(call, anchors=call.anchors * factor), backend, device)
    usual, truth = run(call, backend, device), plain(call.to(torch.float64))[0]
    assert_within_budget("loss", extreme[0], truth, usual[0], amplification=40)
    assert extreme[1][0].abs().max() > 0


@pytest.mark.cuda_kernels
def test_exclude_never_names_a_prototype(backend: str, device: str, fitted: Fit) -> None:
    call = fitted(CASES["prototypes"]())
    excluding = replace(call, exclude=torch.full((33,), 42))  # the second prototype, were it a key
    assert torch.equal(run(call, backend, device)[0], run(excluding, backend, device)[0])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_queue_may_take_rows_before_the_backward_pass(normalize: bool, backend: str, device: str) -> None:
    call, gradients = on(separate(10, 12, 8, classes=3, ignored=0.0), device), list[Tensor]()
    other, other_labels = rows(12, 8, 99).to(device), (call.key_labels + 1) % 3
    for taken in (False, True):
        queue = secl_ops.ClassQueue(3, 4, 8).to(device)
        queue.enqueue(call.keys, call.key_labels)
        leaf, before = call.anchors.clone().requires_grad_(), queue.keys.clone()
        loss = secl_ops.info_nce(
            leaf, queue.keys, anchor_labels=call.anchor_labels, key_labels=queue.key_labels, normalize=normalize,
            temperature=2.0, backend=backend,
        )  # fmt: skip
        if taken:
            queue.enqueue(other, other_labels)
            assert (queue.keys != before).any(dim=1).sum() > 6
        gradients += torch.autograd.grad(loss, leaf)
    assert gradients[0].any(dim=1).all()
    assert torch.equal(*gradients)


@pytest.mark.cuda_kernels
def test_second_derivative_is_refused(backend: str, device: str, fitted: Fit) -> None:
    call, (anchors, _) = on(fitted(separate(5, 6, 4)), device).leaves()
    loss = secl_ops.info_nce(**call.arguments(), backend=backend)
    (gradient,) = torch.autograd.grad(loss, anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF, Flag.SELF | Flag.NEGATIVES], ids=str)
@pytest.mark.cuda_kernels
def test_a_known_log_sum_exp_replaces_the_denominators_own(flags: Flag, backend: str, device: str, fitted: Fit) -> None:
    call = fitted(separate(19, 19 if Flag.SELF in flags else 27, 8))
    keys, key_labels = (call.anchors, call.anchor_labels) if Flag.SELF in flags else (call.keys, call.key_labels)
    known = torch.arange(19) / 4 - 1.0
    found = []
    wide = torch.float64
    for at, name, dtype, sums in ((device, backend, keys.dtype, torch.float32), ("cpu", "reference", wide, wide)):
        rows = [value.to(at, dtype) for value in (call.anchors, keys)]
        pairs = [value.to(at, torch.int32) for value in (call.anchor_labels, key_labels)]
        options = (None, None, None, 0, len(keys), None, None, known.to(at, sums), 0.5, int(flags), name)
        found.append([value.cpu() for value in ops.contrast(*rows, *pairs, *options)])
    assert torch.equal(found[0][1], known)
    for output in (0, 2, 3):
        assert_within_budget(f"output {output}", found[0][output], found[1][output], found[1][output].float(),
                             amplification=20)  # fmt: skip


@pytest.mark.cuda_kernels
def test_an_anchor_without_push_and_draw_reaches_no_gradient(backend: str, device: str, fitted: Fit) -> None:
    call = on(fitted(separate(19, 27, 8, ignored=0.0)), device)
    anchors = call.anchors.clone()
    anchors[3] = torch.nan
    push, draw = (torch.full((19,), value, device=device) for value in (0.7, 0.2))
    push[3], draw[3], push[5], draw[7] = 0, 0, 0, 0
    upstream = torch.tensor(0.5, device=device).expand(19)
    pairs = [value.int() for value in (call.anchor_labels, call.key_labels)]
    both = int(Flag.NEGATIVES | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT)
    options = (None, None, None, 0, 27, None, torch.ones(19, device=device), 0.5, both)
    dirty = ops.contrast_backward(upstream, push, draw, anchors, call.keys, *pairs, *options, backend)
    wide = [value.double().cpu() for value in (upstream, push, draw, call.anchors, call.keys)]
    others = [value.cpu() if isinstance(value, Tensor) else value for value in (*pairs, *options)]
    truth = ops.contrast_backward(*wide, *others, "reference")
    rounding = torch.finfo(anchors.dtype).eps / torch.finfo(torch.float32).eps  # weights take the rows' dtype
    for name, actual, true in zip(("anchors", "keys"), dirty, truth, strict=True):
        assert_within_budget(name, actual.cpu(), true, true.float(), amplification=max(20, rounding))
    assert not dirty[0][3].any()


def map_like(layout: str) -> Tensor:
    features = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    if layout == "channels_last":
        return features.contiguous(memory_format=torch.channels_last)
    return features.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2) if layout == "permuted" else features


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.cuda_kernels
def test_gather_reads_and_its_gradient_writes(layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    features = map_like(layout).to(device, dtype).requires_grad_()
    index = torch.tensor([0, 69, -1, 17, 17, 34, 35], device=device)
    rows = secl_ops.gather_pixels(features, index, backend=backend)
    flat = features.detach().permute(0, 2, 3, 1).reshape(-1, 6)
    expected = torch.where((index >= 0)[:, None], flat[index.clamp(min=0)], 0)
    assert torch.equal(rows, expected)
    weight = (torch.arange(rows.numel(), device=device) % 5).reshape(rows.shape).to(dtype)
    (gradient,) = torch.autograd.grad(rows, features, weight)
    dense = torch.zeros_like(flat).index_put_((index[index >= 0],), weight[index >= 0], accumulate=True)
    assert torch.equal(gradient, dense.reshape(2, 5, 7, 6).permute(0, 3, 1, 2))
    assert gradient.stride() == features.stride()


@pytest.mark.cuda_kernels
def test_a_pixel_drawn_often_is_summed_in_fp32(backend: str, device: str) -> None:
    features = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16, device=device, requires_grad=True)
    rows = secl_ops.gather_pixels(features, torch.zeros(1000, dtype=torch.int64, device=device), backend=backend)
    (gradient,) = torch.autograd.grad(rows.sum(), features)
    assert gradient[0, 0, 0, 0] == 1000


@pytest.mark.parametrize("shape", [(3, 4, 11), (2, 3, 4, 3, 5)], ids=["1-D", "3-D"])
@pytest.mark.cuda_kernels
def test_gather_in_one_and_three_dimensions(shape: tuple[int, ...], backend: str, device: str) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    pixels = features[:, 0].numel()
    rows = secl_ops.gather_pixels(features, torch.arange(pixels, device=device), backend=backend)
    assert torch.equal(rows, features.movedim(1, -1).reshape(pixels, shape[1]))


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("rows_dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.cuda_kernels
def test_gather_normalises_and_casts(
    layout: str, rows_dtype: torch.dtype | None, unique: bool, backend: str, device: str
) -> None:
    features = map_like(layout)
    features[0, :, 0, 0] = 0
    index = torch.tensor([0, 69, -1, 17, 34, 35] if unique else [0, 69, -1, 17, 17, 34])
    found = []
    for at, name, dtype in ((device, backend, torch.float32), ("cpu", "reference", torch.float64)):
        leaf = features.to(at, dtype).requires_grad_()
        kept = rows_dtype if dtype == torch.float32 else None
        rows = secl_ops.gather_pixels(
            leaf, index.to(at), normalize=True, dtype=kept, unique=unique, backend=name, validate=True
        )
        assert rows.dtype == (kept or dtype)
        upstream = (torch.arange(rows.numel(), device=at) % 5).reshape(rows.shape).to(rows.dtype)
        (gradient,) = torch.autograd.grad(rows, leaf, upstream)
        assert gradient.stride() == leaf.stride()
        found.append((rows.detach().cpu(), gradient.cpu()))
    for name, actual, truth in zip(("rows", "gradient"), *found, strict=True):
        rough = truth.to(found[0][0].dtype)  # a gradient passes through the rows, as they were rounded
        magnitude = 8 * float(truth.abs().max())
        assert_within_budget(name, actual.to(rough.dtype), truth, rough, amplification=4, magnitude=magnitude)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.cuda_kernels
def test_weights_get_their_gradient(reduction: str, backend: str, device: str, fitted: Fit) -> None:
    call = fitted(replace(CASES["weighted"](), reduction=reduction))
    found = []
    for at, name, dtype in ((device, backend, call.anchors.dtype), ("cpu", "reference", torch.float64)):
        moved, (weights,) = on(call.to(dtype), at).leaves(["weights"])
        loss = secl_ops.info_nce(**moved.arguments(), backend=name)
        found.append(torch.autograd.grad(loss, weights)[0].cpu())
    wide = call.to(torch.float64)
    (truth,), (rough,), (usual,) = exact(wide, ["weights"])[1], *(plain(each, ["weights"])[1] for each in (call, wide))
    assert_within_budget("float32", found[0], truth, rough, amplification=40)
    assert_within_budget("float64", found[1], truth, usual, amplification=40)
