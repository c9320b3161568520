# SPDX-License-Identifier: Apache-2.0
"""The whole option space of `info_nce`, drawn by hypothesis: loss and gradients keep the budget on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import secl_ops
from tests.budget import assert_within_budget
from tests.cases import copies, labels, rows
from tests.draws import examples
from tests.exact import exact
from tests.oracle import DIFFERENTIABLE, Call, dense

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.drawn]

EXAMPLES = {"native": 500, "reference": 150, "triton": 60}
SHARES = [4, pytest.param(1, marks=pytest.mark.exhaustive)]  # every fourth of the examples in each run
WIDEST = {"native": 70, "reference": 70, "triton": 40}
EXACT = 24  # rows, of which fifty digits are not too slow
LAYOUTS = ("dense", "permuted", "sliced", "embedded")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST_WEIGHT = 0.5
seeds = st.integers(0, 2**31)


class Drawn(NamedTuple):
    """One call, what of it learns, and how its rows lie in memory."""

    call: Call
    learning: tuple[str, ...]
    layout: str
    temperature_dtype: torch.dtype | None
    cut: int | None  # the keys come as a list of two pieces, cut here


class Numbers:
    """Sizes and numbers of one call, from one seed: hypothesis itself prefers 0 to 3, of which most losses are 0."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def among(self, low: int, high: int) -> int:
        """An integer of low .. high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def size(self, low: int, high: int) -> int:
        """A number of rows: anything, and often next to nothing."""
        return self.among(low, 3 if self.among(0, 4) == 0 else high)

    def rows(self, n: int, d: int) -> Tensor:
        """Rows [n, d], sometimes short ones, sometimes with zeros among them."""
        found = rows(n, d, self.among(0, 2**30)) * (1.0, 0.125)[self.among(0, 1)]
        found[:: (n + 1, n + 1, 3)[self.among(0, 2)]] *= self.among(0, 1)
        return found

    def labels(self, n: int, classes: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Labels [n], some or rarely all of them ignored."""
        share = (0.0, 0.1, 0.3)[self.among(0, 2)] if self.among(0, 15) else 1.0
        return labels(n, classes, self.among(0, 2**30), share).to(dtype)


@st.composite
def calls(draw: Any, widest: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Drawn:
    """Any call that is allowed."""
    chance, integer = Numbers(draw(seeds)), draw(st.sampled_from([torch.int64, torch.int32, torch.int8]))
    n, m, d = chance.size(0, widest), chance.size(0, widest), chance.size(1, widest)
    p, classes, alone = chance.size(1, 6), chance.among(1, 5), draw(st.booleans())
    options: dict[str, Any] = {
        "denominator": draw(st.sampled_from(["negatives", "all"])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "normalize": draw(st.booleans()),
    }
    call = Call(chance.rows(n, d), chance.labels(n, classes, integer), **options)
    if not alone:
        call = replace(call, keys=chance.rows(m, d), key_labels=chance.labels(m, classes, integer))
        if draw(st.booleans()):
            call = replace(call, exclude=chance.labels(n, max(m, 1)))
    if draw(st.booleans()):
        call = replace(call, positives=chance.rows(p, d), positive_labels=chance.labels(p, classes))
    if draw(st.booleans()):
        call = replace(call, anchor_groups=chance.labels(n, 2))
        call = call if alone else replace(call, key_groups=chance.labels(m, 2))
        if call.positives is not None and draw(st.booleans()):
            call = replace(call, positive_groups=chance.labels(p, 2))
    if draw(st.booleans()):
        call = replace(call, weights=(torch.arange(n) + chance.among(0, 3)) % 4 / 2.0)
    if draw(st.booleans()):
        call = replace(call, key_weights=copies(len(call.columns().rows), chance.among(0, 2**30)))
    dtype = draw(st.sampled_from(dtypes))
    # Values that bf16 holds; where plain torch would overflow in fp16 it is no measure.
    cold = options["normalize"] or dtype != torch.float16
    temperature: float = draw(st.sampled_from([0.0625, 0.25, 1.0, 2.0, *([0.01, 1 / 128] if cold else [0.5])]))
    learned = draw(st.sampled_from([None, dtype if dtype == torch.float64 else torch.float32, dtype]))
    if learned is not None and temperature != 0.01:
        call = replace(call, temperature=torch.full(draw(st.sampled_from([(), (1,)])), temperature))
    else:
        call, learned = replace(call, temperature=temperature), None
    may = [name for name in DIFFERENTIABLE if isinstance(getattr(call, name), Tensor)]
    learning = tuple(name for name in may if draw(st.booleans()))
    cut = None if alone else draw(st.sampled_from([None, 0, m // 3]))
    return Drawn(call.to(dtype), learning, draw(st.sampled_from(LAYOUTS)), learned, cut)


def laid_out(values: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The rows [n, d] in a memory layout, and the buffer that holds them amid NaN."""
    n, d = values.shape
    if layout == "permuted":
        buffer = values.T.contiguous()
        return buffer.T, buffer
    buffer = values.new_full((n + 5, d + (7 if layout == "sliced" else 0)), torch.nan)
    view = buffer[2 : 2 + n, 3 : 3 + d] if layout == "sliced" else buffer[2 : 2 + n]
    view.copy_(values)
    return (values.clone(), values) if layout == "dense" else (view, buffer)


def run(drawn: Drawn, backend: str, device: str) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a backend, after a look at the memory around its input."""
    call, buffers = drawn.call, []
    for name, value in call.__dict__.items():
        if not isinstance(value, Tensor):
            continue
        moved = value.to(device)
        if name in ("anchors", "keys", "positives"):
            moved, buffer = laid_out(moved, drawn.layout)
            buffers.append((buffer, buffer.clone()))
        elif name == "temperature":
            moved = moved.to(drawn.temperature_dtype)
        change: dict[str, Any] = {name: moved.detach().requires_grad_(name in drawn.learning)}
        call = replace(call, **change)
    arguments = call.arguments()
    if drawn.cut is not None:
        for name in ("keys", "key_labels", "key_groups", "key_weights"):
            whole = getattr(call, name)
            arguments[name] = None if whole is None else [whole[: drawn.cut], whole[drawn.cut :]]
    loss = secl_ops.info_nce(**arguments, backend=backend)
    leaves = [getattr(call, name) for name in drawn.learning]
    gradients = torch.autograd.grad(loss.sum(), leaves) if leaves else ()
    for now, before in buffers:
        assert torch.equal(now.isnan(), before.isnan())
        assert torch.equal(now.nan_to_num(), before.nan_to_num())
    if drawn.layout == "permuted" and "anchors" in drawn.learning and min(call.anchors.shape) > 1:
        assert gradients[drawn.learning.index("anchors")].stride() == call.anchors.stride()
    for name, leaf, gradient in zip(drawn.learning, leaves, gradients, strict=True):
        assert gradient.dtype == leaf.dtype, name
    return loss.detach().cpu(), [gradient.cpu() for gradient in gradients]


def _longest(values: Tensor | None) -> float:
    return 0.0 if values is None or values.numel() == 0 else float(values.double().norm(dim=1).max())


def _shortest(values: Tensor) -> float:
    norms = values.double().norm(dim=1)
    return float(norms[norms > 0].min()) if norms.any() else 1.0


def magnitudes(call: Call, learning: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """Of the largest similarity, and of what the loss and each gradient add up.

    A loss is the difference of two numbers as large as a similarity: each may err by a rounding of it, and a sum by as
    many as it has anchors, also where plain torch subtracts a number from itself.
    """
    temperature = float(call.temperature)
    anchor, other = _longest(call.anchors), max(_longest(call.keys), _longest(call.positives), 0.0)
    other = max(other, anchor) if call.keys is None else other
    peak = (1.0 if call.normalize else anchor * other) / temperature
    weight = 1.0 if call.weights is None else float(call.weights.max()) if len(call.weights) else 0.0
    losses = {"mean": 1.0, "none": weight, "sum": weight * len(call.anchors)}[call.reduction]
    weight *= len(call.anchors) if call.reduction != "mean" else 1  # every anchor pulls at one key
    exponent = max(1.0, peak)  # a coefficient exp(s - lse) errs as much more as the exponent is larger than 1
    terms = {"temperature": weight * peak * exponent / temperature, "weights": peak / SMALLEST_WEIGHT}
    terms["loss"] = losses * peak
    for name in set(learning) - set(terms):
        value = getattr(call, name)
        across = max(other, anchor) if name == "anchors" or call.keys is None else anchor
        reach = 1 / _shortest(value) if call.normalize else across
        terms[name] = weight * reach * exponent / temperature
    return peak, terms


def check(drawn: Drawn, backend: str, device: str) -> None:
    loss, gradients = run(drawn, backend, device)
    wide = drawn.call.anchors.dtype == torch.float64
    stated: Callable[..., tuple[Any, Sequence[Any]]] = exact if wide else dense
    truth, true_gradients = stated(drawn.call.to(torch.float64), drawn.learning)
    rough, rough_gradients = dense(drawn.call, drawn.learning)
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert rough.isfinite().all()
    peak, terms = magnitudes(drawn.call, drawn.learning)
    assert_within_budget("loss", loss, truth, rough, amplification=4 * peak, magnitude=terms["loss"])
    for name, actual, true, plain in zip(drawn.learning, gradients, true_gradients, rough_gradients, strict=True):
        assert_within_budget(name, actual, true, plain, amplification=4 * peak, magnitude=terms[name])


@pytest.mark.parametrize("share", SHARES)
def test_every_option_keeps_the_budget(share: int, backend: str, device: str) -> None:
    @examples(EXAMPLES[backend] // share, calls(WIDEST[backend]))
    def holds(drawn: Drawn) -> None:
        check(drawn, backend, device)

    holds()


@pytest.mark.parametrize("share", SHARES)
def test_the_reference_keeps_the_budget_in_fp64(share: int) -> None:
    @examples(EXAMPLES["reference"] // share, calls(EXACT, (torch.float64,)))
    def holds(drawn: Drawn) -> None:
        check(drawn, "reference", "cpu")

    holds()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("key labels without keys", {"keys": None}, "key_labels needs keys as well"),
    ("keys without labels", {"key_labels": None}, "keys needs key_labels as well"),
    ("groups of one side", {"anchor_groups": "anchors"}, "anchor_groups needs key_groups as well"),
    ("groups of the other side", {"key_groups": "keys"}, "key_groups needs anchor_groups as well"),
    ("exclude alone", {"keys": None, "key_labels": None, "exclude": "anchors"}, "exclude goes with keys"),
    ("key groups alone", {"keys": None, "key_labels": None, "key_groups": "keys"}, "key_groups goes with keys"),
    ("prototypes without labels", {"positives": "rows"}, "positives needs positive_labels as well"),
    ("prototype groups alone", {"positive_groups": "keys"}, "positive_groups goes with positives"),
    ("prototype labels alone", {"positive_labels": "keys"}, "positive_labels needs positives as well"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_combinations(change: dict[str, Any], message: str) -> None:
    @examples(20, calls(WIDEST["reference"]))
    def holds(drawn: Drawn) -> None:
        n, d = drawn.call.anchors.shape
        beside = {
            "anchors": torch.zeros(n).long(),
            "keys": torch.zeros(3).long(),
            "rows": drawn.call.anchors.new_ones(3, d),
        }
        bare = replace(
            drawn.call, keys=beside["rows"], key_labels=beside["keys"], positives=None, positive_labels=None,
            positive_groups=None, anchor_groups=None, key_groups=None, exclude=None, key_weights=None,
        )  # fmt: skip
        secl_ops.info_nce(**bare.arguments())
        given: dict[str, Any] = {
            name: beside.get(value) if isinstance(value, str) else value for name, value in change.items()
        }
        with pytest.raises(ValueError, match=message):
            secl_ops.info_nce(**replace(bare, **given).arguments())

    holds()
