# SPDX-License-Identifier: Apache-2.0
"""Calls every public function and every raw operation with wrong arguments, in a process that a crash may end.

    python -m tests.wrong_arguments public|secl|secl_native FILE SHARE

Of the values that each argument is exchanged for, every SHARE-th, the next argument others; and of the draws as many.

FILE always holds the call that is under way, so that whoever started this process can name what killed it.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import secl_ops
from secl_ops.spec import REDUCTIONS, Flag
from tests.draws import Examples, examples

EXAMPLES = {"public": 3000, "secl": 1500, "secl_native": 1500}
MEMORY = 16 * 2**30  # a size that no rule forbids is refused by the system, before the machine starves
ALLOWED = (TypeError, ValueError, RuntimeError)  # NotImplementedError is a RuntimeError
EDGES = (-(2**63), -(2**31) - 1, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**62, 2**63 - 1)


class Target(NamedTuple):
    """One function, arguments that it takes, and the names of which a refusal must hold one."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    names_argument: bool = True


def _tensors() -> Iterator[Tensor]:
    """Tensors of every kind, shape, dtype and place; most are wrong wherever they go."""
    dtypes = (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64, torch.bool,
        torch.uint8, torch.int8, torch.int32, torch.int64, torch.uint16,
    )  # fmt: skip
    for shape in ((), (0,), (1,), (4,), (5,), (4, 3), (0, 3), (4, 0), (2, 3, 4, 4), (2, 4, 4), (2, 0, 4), (1,) * 7):
        for dtype in dtypes:
            yield torch.ones(shape, dtype=dtype)
    for dtype in (torch.float32, torch.int32, torch.int64):
        base = torch.arange(-6, 30).to(dtype)
        yield from (base[:12].view(3, 4).T, base[:1].expand(4, 3), base[::9], base[:32].view(2, 4, 4).mT)
        yield from (torch.ones(4, 3, dtype=dtype).to_sparse(), torch.ones(4, 3, dtype=dtype, device="meta"))
        yield torch.full((4,), torch.iinfo(dtype).max if dtype != torch.float32 else torch.inf, dtype=dtype)
        yield torch.full((4,), torch.iinfo(dtype).min if dtype != torch.float32 else torch.nan, dtype=dtype)
    yield torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)
    yield torch.ones(4, 3, requires_grad=True)
    yield torch.ones(4, 3, dtype=torch.complex64).imag
    yield torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])


TENSORS = list(_tensors())
SCALARS: list[Any] = [
    None, True, 0.0, 0.5, -1.0, float("nan"), float("inf"), 1e-320, "", "native", "reference", "triton", "all", "none",
    "hard", "stratified", "é\0", [], [1, 2], (2, 2), (0, 0), (1, 2**40), ("2", 2), {}, object, b"x", 2**70, *EDGES,
    torch.float64, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.complex64,
]  # fmt: skip


def _lists() -> Iterator[Any]:
    """Lists and tuples of tensors, as keys in several pieces are given."""
    for rows in (torch.ones(5, 3), torch.ones(5), torch.ones(5).int(), torch.ones(5).long()):
        yield from ([rows], (rows, rows[:2]), [rows, rows[:2]], [rows, rows[:2], rows[:0]], [rows[:0], rows[:0]])
        yield from ([rows[:2], rows], [rows, rows.double()], [rows, rows[:2].to("meta")], [rows, rows[:2, None]])
        yield from ([rows, None], [None, rows], [[rows], [rows[:2]]], [rows, "none"], {"first": rows})
    yield from ([None], [None, None], [[], []], (), [torch.ones(5, 3).to_sparse(), torch.ones(2, 3)])


LISTS = list(_lists())


def _public() -> list[Target]:
    rows, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    keys, key_labels = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    features, classes = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    drawing = {"per_class": 2, "num_classes": 2, "ignore_index": -1, "strategy": "uniform"}
    contrasting = {
        "temperature": 0.1, "denominator": "all", "normalize": True, "reduction": "mean", "backend": "auto",
        "validate": False,
    }  # fmt: skip
    info: dict[str, Any] = {
        "anchors": rows, "keys": keys, "anchor_labels": labels, "key_labels": key_labels, "weights": torch.ones(4),
        "positives": None, "positive_labels": None, "positive_groups": None, "anchor_groups": labels,
        "key_groups": key_labels, "exclude": labels, "key_weights": None, **contrasting,
    }  # fmt: skip
    weighted = {**info, "key_weights": torch.ones(5)}
    pieces = {
        name: [weighted[name], weighted[name][:2]] for name in ("keys", "key_labels", "key_groups", "key_weights")
    }
    prototypes = {"positives": keys[:2], "positive_labels": key_labels[:2], "positive_groups": key_labels[:2]}
    absent = dict.fromkeys(("keys", "key_labels", "key_groups", "exclude"))
    whole = ("weights", "positives", "positive_labels", "positive_groups", "reduction")
    parts = {**{name: value for name, value in info.items() if name not in whole}, "lse": torch.zeros(4)}
    checked = {"validate": True, "backend": "reference"}
    apart = {"features": features, "labels": classes, "key_features": features, "key_labels": classes}
    extra = {"eligible": classes == 0, "key_eligible": classes == 0, "scores": None}
    sample = {"labels": classes, **drawing, "eligible": classes == 0, "scores": None, "seed": 0, "backend": "auto"}
    index = {
        "features": features, "index": labels, "normalize": False, "dtype": None, "unique": False, "backend": "auto",
        "validate": False,
    }  # fmt: skip
    queue = {"num_classes": 2, "size": 3, "dim": 3}
    contrasts = (info, {**info, **absent}, {**info, **prototypes}, {**info, **pieces}, weighted)
    contrasts_apart = (parts, {**parts, **absent}, {**parts, **pieces, "lse": None})
    judged = {"scale": 10.0, "bias": torch.tensor(-10.0)}
    others = ("temperature", "denominator", "key_weights")
    judging = [{**{name: given[name] for name in given if name not in others}, **judged} for given in contrasts]
    return [
        *(Target("sigmoid_contrast", secl_ops.sigmoid_contrast, given) for given in judging),
        Target("sigmoid_contrast", secl_ops.sigmoid_contrast, {**judging[2], **checked}),
        *(Target("info_nce", secl_ops.info_nce, given) for given in contrasts),
        Target("info_nce", secl_ops.info_nce, {**info, **prototypes, **pieces, **checked}),
        *(Target("info_nce_parts", secl_ops.info_nce_parts, given) for given in contrasts_apart),
        Target("info_nce_parts", secl_ops.info_nce_parts, {**parts, **pieces, **checked}),
        Target("sample_pixels", secl_ops.sample_pixels, sample),
        Target("sample_pixels", secl_ops.sample_pixels, {**sample, "strategy": "hard", "scores": classes.float()}),
        Target("gather_pixels", secl_ops.gather_pixels, index),
        Target(
            "gather_pixels", secl_ops.gather_pixels,
            {**index, "index": torch.arange(4), "normalize": True, "unique": True, "validate": True},
        ),
        Target("pool_regions", secl_ops.pool_regions, {"features": features, "grid": (2, 2)}),
        Target("class_means", secl_ops.class_means, {"rows": rows, "labels": labels, "num_classes": 2}),
        Target(
            "pixel_contrast", secl_ops.pixel_contrast,
            {
                **apart, **extra, **drawing, **contrasting, "seed": 0, "key_seed": 0,
                "queue": secl_ops.ClassQueue(2, 3, 3),
            },
        ),
        Target(
            "pixel_contrast", secl_ops.pixel_contrast,
            {
                **apart, **drawing, "head": torch.nn.Identity(), "key_head": torch.nn.Identity(), "seed": 0,
                "queue": secl_ops.ClassQueue(2, 3, 3),
            },
        ),
        Target("PixelContrastLoss", secl_ops.PixelContrastLoss,
               {**drawing, **contrasting, "head": None, "key_head": None, "queue": None, "seed": 0}),
        Target("PixelContrastLoss()", secl_ops.PixelContrastLoss(2, 2), {**apart, **extra}),
        Target("ClassQueue", secl_ops.ClassQueue, queue),
        Target("ClassQueue.enqueue", secl_ops.ClassQueue(2, 3, 3).enqueue, {"rows": rows, "labels": labels}),
    ]  # fmt: skip


def _raw(namespace: str) -> list[Target]:
    """Every operation of a namespace, with arguments that it takes."""
    rows, keys = torch.randn(4, 3), torch.randn(5, 3)
    labels, others = torch.tensor([0, 0, 1, 1]).int(), torch.tensor([0, 1, 0, 1, 1]).int()
    features, classes = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    outer = namespace == "secl"  # its operations choose a backend and know their results' dtypes
    named = {"backend": "native"} if outer else {}
    scales = {"factor": torch.ones(4), "upstream": torch.ones(4)}
    pairs = {
        "anchor_labels": labels, "key_labels": others, "anchor_groups": labels, "key_groups": others,
        "exclude": labels.long(), "positive_start": 0, "negative_stop": 5, "key_weights": None,
    }  # fmt: skip
    weights = {"key_weights": torch.ones(5)}
    apart = {"anchors": rows, "keys": keys, **pairs, "scale": 10.0, "flags": int(Flag.UNIT | Flag.ANCHOR_GRADIENT)}
    shared = {"keys": rows, "key_labels": labels, "key_groups": labels}
    alone = {**apart, **shared, "flags": int(Flag.SELF | Flag.NEGATIVES)}
    both = int(Flag.UNIT | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT)
    absent = dict.fromkeys(("key_inverse", "known_lse"))
    contrast = [
        {**apart, "key_inverse": torch.ones(5), "known_lse": torch.zeros(4)},
        {**apart, **absent, "flags": int(Flag.SCAN | Flag.ANCHOR_GRADIENT)},
        {**alone, **absent},
        {**apart, **absent, **weights},
    ]  # fmt: skip
    judged: dict[str, Any] = {"scale": 10.0, "bias": -10.0, "learned_scale": None, "learned_bias": None}
    if outer:  # on a CPU the native operations take numbers
        judged["learned_scale"] = torch.ones(1)
    unweighted = ({name: each[name] for name in each if name != "key_weights"} for each in (apart, alone))
    flagged = zip(unweighted, (Flag.ANCHOR_GRADIENT, Flag.SELF), strict=True)
    judging = [{**each, **judged, "flags": int(flag)} for each, flag in flagged]
    judged_forward = [{**judging[0], "key_inverse": torch.ones(5)}, {**judging[1], "key_inverse": None}]
    judged_backward = [{**each, "weight": torch.ones(4)} for each in judging]
    factors = dict.fromkeys(("grad_loss", "push", "draw", "lse"), torch.ones(4))
    backward = [
        {**factors, **apart, "flags": both}, {**factors, **alone},
        {**factors, **apart, **weights, "flags": int(Flag.UNIT | Flag.KEY_GRADIENT)},
    ]  # fmt: skip
    norm, index = {"unit": rows, "inverse": torch.ones(4)}, {"index": labels.long()}
    layout = {"size": [2, 3, 4, 4], "stride": [48, 16, 4, 1], "dtype": torch.float32} if outer else {"result": features}
    gathered = {"normalize": True, "dtype": torch.float32} if outer else {"rows": rows, "inverse": torch.ones(4)}
    numbers = ("positive_start", "negative_stop", "key_weights")
    unnumbered = {name: value for name, value in apart.items() if name not in numbers}
    spread = {"normalize": True, "scale": 10.0, "flags": both, "reduction": 0}
    known: dict[str, list[dict[str, Any]]] = {
        "unit_rows": [{"rows": rows, "labels": labels}],
        "row_inverse": [{"rows": rows, "labels": labels}],
        "unit_rows_backward": [{"grad": rows, **scales, **norm}],
        "contrast": contrast,
        "contrast_forward": contrast,
        "contrast_backward": backward,
        "sigmoid": judged_forward,
        "sigmoid_forward": judged_forward,
        "sigmoid_backward": judged_backward,
        "reduce": [
            {"loss": torch.ones(4), "pull": torch.ones(4), "count": labels, "weights": torch.ones(4),
             "reduction": name if outer else place}
            for place, name in enumerate(REDUCTIONS)
        ] + [
            {"loss": torch.ones(4), "pull": torch.ones(4), "count": torch.ones(4), "weights": None,
             "reduction": "mean" if outer else 0}
        ],
        "gather": [{"features": features, **index, **gathered}],
        "gather_backward": [{"grad": rows, **scales, **index, **norm, "unique": False, **layout}],
        "sample": [{
            "labels": classes, "eligible": classes == 0, "scores": classes.double(), "seed": torch.zeros(1).long(),
            "per_class": 2, "num_classes": 2, "ignore_index": -1, "strategy": "hard" if outer else 2, "stream": 5,
        }],
        "info_nce": [
            {**unnumbered, "weights": torch.ones(4), **spread},
            {**unnumbered, **dict.fromkeys(("keys", "key_labels", "key_groups", "exclude", "weights")), **spread},
        ],
        "pixel_contrast": [{
            "features": features, "labels": classes, "key_features": features, "key_labels": classes,
            "eligible": classes == 0, "key_eligible": classes == 0, "scores": classes.double(),
            "seed": torch.zeros(1).long(), "key_seed": None, "seed_number": 0, "key_seed_number": 3, "key_stream": 5,
            "per_class": 2, "num_classes": 2, "ignore_index": -1, "strategy": 2, **spread,
        }],
        "small_backward": [
            {"rows": rows, "pixels": None, "upstream": torch.ones(()), "result": torch.ones(4, 3)},
            {"rows": rows, "pixels": labels.long(), "upstream": torch.ones(()), "result": features},
        ],
        "probe": [{"x": torch.ones(4), "function": "exp2"}],
        "set_isa": [{"name": "auto"}],
        "matrix_unit": [{}],
        "cuda_archs": [{}],
        "cuda_absence": [{}],
        "interface": [{}],
    }  # fmt: skip
    names = {schema.name.removeprefix(f"{namespace}::") for schema in torch._C._jit_get_all_schemas()
             if schema.name.startswith(f"{namespace}::")}  # fmt: skip
    return [
        Target(f"{namespace}::{name}", getattr(torch.ops, namespace).__getattr__(name).default, {**given, **named},
               names_argument=False)
        for name in sorted(names) for given in known[name]
    ]  # fmt: skip


def described(value: Any) -> str:
    """An argument, short enough to print beside others."""
    if isinstance(value, Tensor):
        sizes = "nested" if value.is_nested else f"{tuple(value.shape)}"
        return f"<{str(value.dtype)[6:]} {sizes} {str(value.layout)[6:]} {value.device}>"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(described, value))})"
    return repr(value)[:60]


def wrong_values(valid: Any) -> list[Any]:
    """What an argument is exchanged for: anything, and what it held with one of its pieces exchanged for anything."""
    pieces = valid if isinstance(valid, list) else []
    return [*TENSORS, *SCALARS, *LISTS] + [
        [*pieces[:place], value, *pieces[place + 1 :]] for place in range(len(pieces)) for value in (*TENSORS, *SCALARS)
    ]


class Wrong(NamedTuple):
    """One wrong call: a target's valid arguments with some of them exchanged."""

    target: Target
    changes: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.target.name}({', '.join(f'{name}={described(self.changes[name])}' for name in self.changes)})"

    def make(self) -> None:
        """Make the call; one that is refused must say so properly."""
        arguments = {
            name: value.clone() if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
            and value.is_contiguous() else value
            for name, value in {**self.target.arguments, **self.changes}.items()
        }  # fmt: skip
        try:
            self.target.function(**arguments)
        except ALLOWED as error:
            words = set(re.findall(r"\w+", str(error)))
            starved = "can't allocate memory" in str(error)  # torch's own word on a size that no rule forbids
            if self.target.names_argument and not starved and not words & set(arguments):
                raise AssertionError(f"{self!r}: {type(error).__name__} names no argument: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self!r}: {type(error).__name__} is no refusal: {error}") from error


def calls(targets: list[Target]) -> st.SearchStrategy[Wrong]:
    """Wrong calls of any of the targets."""

    def changed(target: Target) -> st.SearchStrategy[Wrong]:
        values = {name: st.sampled_from(wrong_values(valid)) for name, valid in target.arguments.items()}
        names = st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True)
        changes = names.flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))
        return changes.map(lambda found: Wrong(target, found))

    with_arguments = [target for target in targets if target.arguments]
    return st.sampled_from(with_arguments).flatmap(changed)


def main(group: str, path: str, share: int) -> None:
    """Make the group's calls; the first improper failure ends the process."""
    targets = _public() if group == "public" else _raw(group)
    for target in targets:
        target.function(**target.arguments)  # what is changed must be right before
    under_way = os.open(path, os.O_WRONLY | os.O_CREAT)

    def make(call: Wrong) -> None:
        os.ftruncate(under_way, 0)
        os.pwrite(under_way, repr(call).encode(), 0)
        call.make()

    # Each argument alone is wrong in every way; several at once, as chance has it.
    places = [(target, name) for target in targets for name in target.arguments]
    for number, (target, name) in enumerate(places):
        for value in wrong_values(target.arguments[name])[number % share :: share]:
            make(Wrong(target, {name: value}))

    @examples(EXAMPLES[group] // share, calls(targets))
    def holds(call: Wrong) -> None:
        make(call)

    holds()
    print(Examples.drawn)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "SECL_SANITIZE" not in os.environ:  # a sanitizer's shadow alone is larger
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
