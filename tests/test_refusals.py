# SPDX-License-Identifier: Apache-2.0
"""An error is part of the API: each refusal of secl_ops is seen, with its argument, rule and cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import secl_ops
from secl_ops.engines import reference

untyped: Any = secl_ops  # what mypy would refuse is refused at run time too
A, Y = torch.ones(4, 3), torch.tensor([0, 0, 1, 1])
K, Z = torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 1])
F, MAP = torch.ones(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)


def loss(anchors: object = A, keys: object = None, **options: object) -> Callable[[], object]:
    given = {"anchor_labels": Y, **options}
    return lambda: untyped.info_nce(anchors, keys, **given)


def pixels(labels: object = MAP, per_class: object = 2, **options: object) -> Callable[[], object]:
    given = {"num_classes": 2, "seed": 0, **options}
    return lambda: untyped.sample_pixels(labels, per_class, **given)


def maps(features: object = F, labels: object = MAP, *keys: object, **options: object) -> Callable[[], object]:
    given = {"per_class": 2, "num_classes": 2, "seed": 0, **options}
    return lambda: untyped.pixel_contrast(features, labels, *keys, **given)


class Returns(torch.nn.Module):
    """A head that returns the same whatever it sees."""

    def __init__(self, *values: object) -> None:
        super().__init__()
        self.values = values

    def forward(self, rows: torch.Tensor) -> object:
        return self.values[0] if len(self.values) == 1 else self.values


SAME = torch.nn.Identity()
REFUSALS: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("rows as list", loss([[1.0]]), TypeError, "anchors must be a torch.Tensor; got list"),
    ("sparse rows", loss(A.to_sparse()), TypeError, r"anchors must be dense .*; got torch.sparse_coo; convert it"),
    (
        "nested map",
        lambda: secl_ops.gather_pixels(torch.nested.nested_tensor([A, A[:2]]), Y), TypeError, "got a nested tensor",
    ),
    ("rank", loss(F), ValueError, r"anchors must have two dimensions \[rows, width\]; got shape \(2, 3, 4, 4\)"),
    ("integer rows", loss(A.long()), TypeError, r"anchors must be floating .*; got torch.int64; cast it"),
    ("float8 rows", loss(A.to(torch.float8_e5m2)), TypeError, "anchors must be floating .* got torch.float8_e5m2"),
    ("no width", loss(A[:, :0]), ValueError, r"anchors must be at least one wide; got shape \(4, 0\)"),
    ("width", loss(A, K[:, :2], key_labels=Z), ValueError, "keys and anchors must have the same width; got 2 and 3"),
    ("dtype", loss(A, K.half(), key_labels=Z), TypeError, "keys and anchors must have one dtype; got torch.float16"),
    ("device", loss(A, K.to("meta"), key_labels=Z), ValueError, "must be on one device; got meta and cpu; move one"),
    ("keys alone", loss(A, K), ValueError, "keys needs key_labels as well; pass keys and key_labels together"),
    ("key labels alone", loss(key_labels=Z), ValueError, "key_labels needs keys as well"),
    ("label length", loss(anchor_labels=Z), ValueError, r"anchor_labels must have shape \[4\], one per row of anchors"),
    ("label kind", loss(anchor_labels=Y.float()), TypeError, "anchor_labels must hold integers; got torch.float32"),
    ("label bool", loss(anchor_labels=Y.bool()), TypeError, "anchor_labels must hold integers; got torch.bool"),
    ("temperature 0", loss(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    ("temperature -1", loss(temperature=-1), ValueError, "temperature must be finite and above 0; got -1"),
    ("temperature nan", loss(temperature=float("nan")), ValueError, "temperature must be finite and above 0; got nan"),
    ("temperature text", loss(temperature="0.1"), TypeError, "temperature must be a float or a one-element tensor"),
    ("temperature pair", loss(temperature=torch.ones(2)), ValueError, r"got a tensor of shape \(2,\)"),
    ("temperature 10^400", loss(temperature=10**400), ValueError, "temperature must be finite and above 0; got 1000"),
    ("temperature checked", loss(temperature=-torch.ones(1), validate=True), ValueError, "above 0; got -1.0"),
    ("temperature inf", loss(temperature=torch.tensor(torch.inf), validate=True), ValueError, "be finite .*; got inf"),
    ("denominator", loss(denominator="both"), ValueError, "denominator must be one of 'negatives', 'all'; got 'both'"),
    ("reduction", loss(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none'; got 'avg'"),
    ("backend", loss(backend="cuda"), ValueError, "backend must be one of 'auto', 'reference', 'native', 'triton'"),
    ("normalize", loss(normalize=1), TypeError, "normalize must be a bool; got int"),
    ("weights shape", loss(weights=torch.ones(3)), ValueError, r"weights must have shape \[4\], one per row of anc"),
    ("weights kind", loss(weights=Y), TypeError, "weights must be floating .*; got torch.int64"),
    ("weights below 0", loss(weights=-torch.ones(4), validate=True), ValueError, "weights must be finite and at"),
    ("weights nan", loss(weights=torch.full((4,), torch.nan), validate=True), ValueError, "weights must .*; got nan"),
    (
        "key weights shape",
        loss(A, K, key_labels=Z, key_weights=torch.ones(4)), ValueError,
        r"key_weights must have shape \[5\], one per row of keys; got \(4,\)",
    ),
    (
        "key weights of the anchors",
        loss(key_weights=torch.ones(5)), ValueError, r"key_weights must have shape \[4\], one per row of anchors",
    ),
    ("key weights kind", loss(key_weights=Y), TypeError, "key_weights must be floating .*; got torch.int64"),
    ("key weights without keys", loss(key_weights=[A[:, 0]]), TypeError, "key_weights must be a torch.Tensor; got li"),
    (
        "a list of keys, a tensor of weights",
        loss(A, [K], key_labels=[Z], key_weights=K[:, 0]), ValueError,
        "key_weights must come in the pieces of keys, a list of 1; got one tensor",
    ),
    (
        "a wrong weight in a list",
        loss(A, [K, A], key_labels=[Z, Y], key_weights=[K[:, 0], Y]), TypeError, r"key_weights\[1\] must be floating",
    ),
    (
        "key weights elsewhere",
        loss(A, K, key_labels=Z, key_weights=K[:, 0].to("meta")), ValueError, "key_weights and keys must be on one dev",
    ),
    (
        "key weights that learn",
        loss(key_weights=torch.ones(4, requires_grad=True)), ValueError,
        r"key_weights get no gradient; got a tensor that requires one; pass key_weights.detach\(\)",
    ),
    *(
        (
            f"key weights of {value}",
            loss(key_weights=torch.tensor([1, 0, value, 1]), validate=True), ValueError,
            f"key_weights must be finite and at least 0; got {value}",
        )
        for value in (-0.5, torch.inf, torch.nan)
    ),
    ("positives alone", loss(positives=A), ValueError, "positives needs positive_labels as well"),
    (
        "positive groups without groups",
        loss(positives=A, positive_labels=Y, positive_groups=Y), ValueError, "positive_groups goes with anchor_groups",
    ),
    ("positive groups alone", loss(positive_groups=Y), ValueError, "positive_groups goes with positives"),
    (
        "a list of keys, a tensor of labels",
        loss(A, [K], key_labels=Z), ValueError, "key_labels must come in the pieces of keys, a list of 1; got one t",
    ),
    ("a wrong key in a list", loss(A, [K, Y], key_labels=[Z, Y]), ValueError, r"keys\[1\] must have two dimensions"),
    ("an empty list of keys", loss(A, [], key_labels=[]), ValueError, "keys must hold at least one tensor"),
    ("group", loss(group="world"), TypeError, "group must be a torch.distributed.ProcessGroup .*, or None; got str; p"),
    (
        "group of a queue",
        lambda: untyped.ClassQueue(2, 2, 3).enqueue(A, Y, group=2), TypeError, "group must be .*; got int; pass torch",
    ),
    ("group of maps", maps(group=[0, 1]), TypeError, "group must be a torch.distributed.ProcessGroup .*; got list"),
    (
        "group of a module",
        lambda: untyped.PixelContrastLoss(2, 2, group=object()), TypeError, "group must be .*; got object; pass torch",
    ),
    ("a wrong lse", lambda: secl_ops.info_nce_parts(A, anchor_labels=Y, lse=A), ValueError, r"lse must have shape"),
    ("groups alone", loss(A, K, key_labels=Z, anchor_groups=Y), ValueError, "anchor_groups needs key_groups as well"),
    ("key groups alone", loss(key_groups=Z), ValueError, "key_groups goes with keys"),
    ("exclude alone", loss(exclude=Y), ValueError, "exclude goes with keys"),
    (
        "exclude range",
        loss(A, K, key_labels=Z, exclude=Y + 9, validate=True), ValueError, r"exclude must lie in -1..4; got 9..10",
    ),
    (
        "label range",
        loss(anchor_labels=Y - 2, validate=True), ValueError, "anchor_labels must lie in -1..2147483647, .* got -2..-1",
    ),
    (
        "group range",
        loss(anchor_groups=Y + 2**31, validate=True), ValueError, "anchor_groups must lie in -2147483648..2147483647",
    ),
    ("map", lambda: secl_ops.gather_pixels(A, Y), ValueError, r"features must have shape \[B, D, \*spatial\]"),
    ("integer map", lambda: secl_ops.gather_pixels(F.int(), Y), TypeError, "features must be floating"),
    ("index kind", lambda: secl_ops.gather_pixels(F, Y.int()), TypeError, r"index must be int64 of shape \[n\]"),
    (
        "index range",
        lambda: secl_ops.gather_pixels(F, Y + 31, validate=True), ValueError, r"index must lie in -1..31 .* got 31..32",
    ),
    (
        "index twice",
        lambda: secl_ops.gather_pixels(F, torch.tensor([1, 3, 3]), unique=True, validate=True), ValueError,
        "index must name no pixel twice under unique=True; got 3 twice",
    ),
    ("gather norm", lambda: untyped.gather_pixels(F, Y, normalize=1), TypeError, "normalize must be a bool; got int"),
    ("gather dtype", lambda: secl_ops.gather_pixels(F, Y, dtype=torch.int32), TypeError, "dtype must be None or float"),
    ("no channel", maps(F[:, :0], MAP), ValueError, "features must have at least one channel"),
    ("grid rank", lambda: secl_ops.pool_regions(F, (2,)), ValueError, "grid must have one number per spatial axis"),
    ("grid fine", lambda: secl_ops.pool_regions(F, (2, 5)), ValueError, r"grid must not be finer than the map"),
    ("grid kind", lambda: untyped.pool_regions(F, 2), TypeError, "grid must be a sequence"),
    ("grid zero", lambda: secl_ops.pool_regions(F, (2, 0)), ValueError, "grid must be at least 1; got 0"),
    ("class count", lambda: secl_ops.class_means(A, Y, 0), ValueError, "num_classes must be at least 1; got 0"),
    ("float labels", pixels(MAP.float()), TypeError, "labels must hold integers; got torch.float32; cast it"),
    ("flat labels", pixels(Y), ValueError, r"labels must have shape \[B, \*spatial\]"),
    ("per class", pixels(per_class=0), ValueError, "per_class must be at least 1; got 0"),
    ("per class kind", pixels(per_class=2.0), TypeError, "per_class must be an int; got float"),
    ("ignore", pixels(ignore_index=None), TypeError, "ignore_index must be an int; got NoneType"),
    ("ignore range", pixels(ignore_index=2**63), ValueError, "ignore_index must be an int64"),
    ("strategy", pixels(strategy="grid"), ValueError, "strategy must be one of 'uniform', 'stratified', 'hard'"),
    ("hard alone", pixels(strategy="hard"), ValueError, 'scores go with strategy="hard"'),
    ("scores alone", pixels(scores=MAP.float()), ValueError, 'scores go with strategy="hard"'),
    ("eligible kind", pixels(eligible=MAP), TypeError, "eligible must be torch.bool; got torch.int64"),
    ("eligible shape", pixels(eligible=MAP[:1].bool()), ValueError, "eligible must have the shape of labels"),
    ("seed kind", pixels(seed=0.5), TypeError, "seed must be an int or an int64 tensor of one element; got float"),
    ("seed tensor", pixels(seed=torch.zeros(1)), TypeError, "seed must be an int or an int64 tensor"),
    ("label batch", maps(F, MAP[:1]), ValueError, "labels must have the batch and the number of spatial axes"),
    ("labels without map", maps(F, MAP, None, MAP), ValueError, "key_labels and key_eligible go with key_features"),
    ("label map empty", maps(F, MAP[:, :0]), ValueError, "labels must not be empty where features is not"),
    ("eligible map", maps(eligible=MAP[0].bool()), ValueError, "eligible must have the shape of labels"),
    ("queue kind", maps(queue=[1]), TypeError, "queue must be a ClassQueue; got list"),
    ("queue classes", maps(queue=secl_ops.ClassQueue(3, 2, 3)), ValueError, "queue must hold num_classes=2 classes"),
    ("queue map", maps(queue=secl_ops.ClassQueue(2, 2, 5)), ValueError, "queue must be as wide as features, 3"),
    ("head kind", maps(head=torch.relu), TypeError, "head must be a torch.nn.Module .* got builtin_function_or_method"),
    ("key head kind", maps(F, MAP, F, head=SAME, key_head=1), TypeError, "key_head must be a torch.nn.Module .* got i"),
    ("key seed without map", maps(key_seed=1), ValueError, "key_seed goes with key_features; pass key"),
    ("key seed kind", maps(F, MAP, F, key_seed=0.5), TypeError, "key_seed must be an int or an int64 tensor of one"),
    ("key head alone", maps(F, MAP, F, key_head=SAME), ValueError, "key_head goes with head; pass head as well"),
    ("key head in self-contrast", maps(head=SAME, key_head=SAME), ValueError, "key_head goes with key_features"),
    ("head of a pair", maps(head=Returns(A, Y)), TypeError, r"head\(rows\) must be a torch.Tensor; got tuple; return"),
    ("head of few", maps(head=Returns(A)), ValueError, r"head\(rows\) must have shape \[8, P\], .* got \(4, 3\); let"),
    ("head of maps", maps(head=Returns(torch.ones(8, 3, 1))), ValueError, r"head\(rows\) .* got \(8, 3, 1\)"),
    ("head of no width", maps(head=Returns(torch.ones(8, 0))), ValueError, r"head\(rows\) .* got \(8, 0\)"),
    ("head of integers", maps(head=Returns(torch.ones(8, 3).int())), TypeError, r"head\(rows\) must be floating"),
    ("head elsewhere", maps(head=Returns(torch.ones(8, 3).to("meta"))), ValueError, r"head\(rows\) and its rows must"),
    (
        "heads of two widths",
        maps(F, MAP, F, head=Returns(torch.ones(8, 5)), key_head=SAME), ValueError,
        r"key_head\(rows\) must be as wide as head\(rows\), 5; got 3; give both one P",
    ),
    (
        "queue of another width than the head",
        maps(head=Returns(torch.ones(8, 5)), queue=secl_ops.ClassQueue(2, 2, 3)), ValueError,
        r"queue must be as wide as head\(rows\), 5; it was made with dim=3; make it with dim=5",
    ),
    ("module head", lambda: untyped.PixelContrastLoss(2, 2, head=1), TypeError, "head must be a torch.nn.Module"),
    ("module seed", lambda: untyped.PixelContrastLoss(2, 2, seed=1.5), TypeError, "seed must be an int; got float"),
    ("module queue", lambda: untyped.PixelContrastLoss(2, 2, queue=1), TypeError, "queue must be a ClassQueue"),
    ("validate kind", loss(validate=1), TypeError, "validate must be a bool; got int"),
    ("temperature kind", loss(temperature=torch.ones(1).to(torch.float8_e5m2)), ValueError, "dtype torch.float8_e5m2"),
    ("draws", pixels(per_class=2**30), ValueError, r"B \* num_classes \* per_class must stay below 2\^31; got 42949"),
    ("classes", lambda: secl_ops.class_means(A, Y, 2**29), ValueError, "num_classes times the number of rows must"),
    ("places", lambda: secl_ops.ClassQueue(2**16, 2**15, 1), ValueError, r"num_classes \* size must stay below 2\^31"),
    ("key map", maps(F, MAP, F[:, :2], MAP), ValueError, "key_features must be as wide as features, 3; got 2"),
    ("key map kind", maps(F, MAP, F.half(), MAP), TypeError, "key_features must have the dtype of features"),
    ("queue size", lambda: secl_ops.ClassQueue(2, 0, 3), ValueError, "size must be at least 1; got 0"),
    ("queue width", lambda: secl_ops.ClassQueue(2, 4, 8).enqueue(A, Y), ValueError, "rows must be 8 wide"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refusal(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_float64_is_for_the_reference_backend(backend: str) -> None:
    rows = A.double()
    if backend == "reference":
        assert secl_ops.info_nce(rows, anchor_labels=Y, backend=backend).dtype == torch.float64
        return
    with pytest.raises(RuntimeError, match=f"backend='{backend}' cannot run info_nce on cpu float64: .*reference"):
        secl_ops.info_nce(rows, anchor_labels=Y, backend=backend)


def test_a_named_backend_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "objections", lambda *_: ["it is Sunday", "it rains"])
    with pytest.raises(RuntimeError, match="cannot run info_nce on cpu float32: it is Sunday; it rains"):
        secl_ops.info_nce(A, anchor_labels=Y, backend="reference")


def test_auto_never_takes_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from secl_ops.engines import native
    from secl_ops.engines.select import select

    monkeypatch.setattr(native, "objections", lambda *_: ["not built"])
    assert select("auto", torch.device("cpu"), torch.float32, "info_nce") is reference
