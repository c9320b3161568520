# SPDX-License-Identifier: Apache-2.0
"""The second pass of the Triton backend visits tiles with a positive, 1 / C of them, whatever order rows lie in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import tiles
from secl_ops.engines import triton
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import CASES, alone, separate
from tests.oracle import Call
from tests.test_backends import check, on, run
from tests.test_triton import check as check_rules
from tests.test_triton import every_rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = tiles.Tile(16, 16, 16, 16, 4, 2)
ROWS, CLASSES = 256, 8
TILES = (ROWS // 16) ** 2


@pytest.fixture(autouse=True)
def _runs() -> None:
    from tests.conftest import skip_or_fail

    reasons = triton.objections(DEVICE, torch.float32, "info_nce")
    if reasons:
        skip_or_fail("triton", "; ".join(reasons))


@pytest.fixture
def sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are sorted however few they are."""
    monkeypatch.setattr(tiles, "sorts", lambda *_: True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a problem has many."""
    monkeypatch.setattr(tiles, "pick", lambda *_: SMALL)


def counted(function: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each call of a function that the second pass makes once for a tile."""
    if DEVICE == "cuda":
        pytest.skip("a compiled kernel cannot be counted from outside; the interpreter counts the same loop")
    from secl_ops.engines.triton import contrast

    seen: list[None] = []
    true = getattr(contrast, function)

    def call(*arguments: Any, **options: Any) -> Any:
        seen.append(None)
        return true(*arguments, **options)

    monkeypatch.setattr(contrast, function, call)
    return seen


@pytest.fixture
def visits(small: None, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each tile that the second pass multiplies out; no other pass takes a softplus."""
    return counted("softplus2", monkeypatch)


@pytest.fixture
def looks(small: None, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each tile whose pairs are looked at one by one, where no other pass runs."""
    return counted("pair_masks", monkeypatch)


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1).to(DEVICE)


def shuffled(labels: Tensor, seed: int) -> Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))].to(DEVICE)


def second_pass(labels: Tensor, key_labels: Tensor | None, flags: Flag, groups: Tensor | None = None) -> None:
    """The pass over the positives of rows with these labels; without key labels of the rows with themselves."""
    anchors = rows(len(labels), 0)
    keys = anchors if key_labels is None else rows(len(key_labels), 1)
    others = labels if key_labels is None else key_labels
    pairs = Pairs(labels.int(), others.int(), groups, groups, None, 0, len(keys))
    known_lse = torch.zeros(len(labels), device=DEVICE)  # nothing but the second pass has to run
    triton.contrast_forward(anchors, keys, pairs, 10.0, flags | Flag.NEGATIVES | Flag.UNIT, known_lse)


def balanced(seed: int) -> Tensor:
    """Each class has as many rows as two tiles of 16, in random order."""
    return shuffled(torch.arange(ROWS) % CLASSES, seed)


@pytest.mark.parametrize("self_contrast", [False, True], ids=["keys", "self"])
def test_random_order_visits_every_tile_and_sorting_one_in_c(
    self_contrast: bool, visits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, key_labels = balanced(0), None if self_contrast else balanced(1)
    flags = Flag.SELF if self_contrast else Flag(0)
    second_pass(labels, key_labels, flags)
    assert len(visits) == TILES
    visits.clear()
    monkeypatch.setattr(tiles, "sorts", lambda *_: True)
    second_pass(labels, key_labels, flags)
    assert len(visits) == TILES // CLASSES


@pytest.mark.usefixtures("sorting")
def test_classes_of_unequal_size_cost_their_edges_alone(visits: list[None]) -> None:
    generator = torch.Generator().manual_seed(2)
    labels, key_labels = (torch.randint(-1, CLASSES, (ROWS,), generator=generator).to(DEVICE) for _ in range(2))
    second_pass(labels, key_labels, Flag(0))
    needed = 0  # tiles of sorted anchors against the run of keys that hold their classes
    for tile in labels.sort().values.split(16):
        named = tile[tile >= 0]
        if len(named):
            run_length = int(((key_labels >= named[0]) & (key_labels <= named[-1])).sum())
            needed += -(-run_length // 16)
    assert len(visits) == needed
    assert needed <= 1.7 * TILES / CLASSES


@pytest.mark.usefixtures("sorting")
def test_groups_divide_the_visits_again(visits: list[None]) -> None:
    labels = torch.arange(ROWS) % 4
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    groups = (torch.arange(ROWS) // (ROWS // 2) * 5 - 3)[order].int().to(DEVICE)  # -3 and 2
    second_pass(labels[order].to(DEVICE), None, Flag.SELF, groups)
    assert len(visits) == TILES // 8


@pytest.mark.usefixtures("sorting")
def test_rows_that_lie_class_by_class_are_not_sorted_and_visit_as_few(visits: list[None], looks: list[None]) -> None:
    labels = torch.arange(ROWS).div(ROWS // CLASSES, rounding_mode="floor").to(DEVICE)
    labels[::7] = -1
    second_pass(labels, None, Flag.SELF | Flag.ORDERED)
    assert len(visits) == len(looks) == TILES // CLASSES


def test_labels_that_lie_between_each_other_are_looked_at_and_not_visited(
    visits: list[None], looks: list[None]
) -> None:
    labels = torch.arange(32).to(DEVICE) % 2 * 2  # 0, 2, 0, 2, ..
    second_pass(labels, torch.ones_like(labels), Flag(0))
    assert (len(visits), len(looks)) == (0, 4)


def test_a_pixel_step_visits_one_in_c(visits: list[None]) -> None:
    features = torch.randn(4, 16, 8, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = shuffled(torch.arange(4 * 8 * 16) % CLASSES, 4).view(4, 8, 16)
    secl_ops.pixel_contrast(features, labels, per_class=8, num_classes=CLASSES, seed=0, backend="triton")
    assert len(visits) == TILES // CLASSES  # 4 images x 8 draws fill two tiles a class


@pytest.mark.thinned(6)
@pytest.mark.usefixtures("sorting", "small", "poisoned")
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "wide"])  # width has no part in this
def test_every_case_when_sorted(name: str, denominator: str) -> None:
    check(replace(CASES[name](), denominator=denominator), "triton", DEVICE)


@pytest.mark.usefixtures("sorting", "poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ragged", "self grouped", "grouped prototypes", "excluding", "zero rows"])
def test_low_precision_when_sorted(name: str, dtype: torch.dtype) -> None:
    check(CASES[name]().to(dtype), "triton", DEVICE)


def frozen(call: Call, parts: Callable[[Tensor], Any], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Loss and anchor gradient over frozen keys, in the pieces that `parts` cuts."""
    moved = on(call.to(dtype), DEVICE)
    anchors = moved.anchors.clone().requires_grad_()
    given = {name: parts(getattr(moved, name)) for name in ("keys", "key_labels", "key_groups")}
    loss = secl_ops.info_nce(
        anchors, anchor_labels=moved.anchor_labels, anchor_groups=moved.anchor_groups, exclude=moved.exclude,
        temperature=moved.temperature, denominator=moved.denominator, backend=backend, **given,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, anchors)]


@pytest.mark.usefixtures("sorting", "small")
@pytest.mark.parametrize("pieces", [1, 2], ids=["a factor per key", "a known log-sum-exp"])
@pytest.mark.parametrize("name", ["grouped", "excluding", "cold"])
def test_frozen_keys_when_sorted(name: str, pieces: int) -> None:
    parts = (
        (lambda value: value) if pieces == 1 else (lambda value: None if value is None else [value[:17], value[17:]])
    )
    call = CASES[name]()
    found = frozen(call, parts, "triton", torch.float32)
    rough = frozen(call, parts, "reference", torch.float32)
    truth = frozen(call, parts, "reference", torch.float64)
    for title, actual, exact, plain in zip(("loss", "gradient"), found, truth, rough, strict=True):
        assert_within_budget(
            title, actual, exact, plain, amplification=4 / call.degree,
            magnitude=1 / call.degree if title == "loss" else 0.0,
        )  # fmt: skip


@pytest.mark.usefixtures("sorting", "small")
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF, Flag.SELF | Flag.NEGATIVES], ids=str)
def test_every_rule_when_sorted(flags: Flag) -> None:
    anchors = rows(37, 0)
    keys = anchors if Flag.SELF in flags else rows(45, 1)
    check_rules(anchors, keys, every_rule(37, len(keys), shared=Flag.SELF in flags), 5.0, flags)


@pytest.mark.usefixtures("sorting", "small")
@pytest.mark.parametrize("call", [alone(70, 8), separate(51, 64, 8)], ids=["self", "separate"])
def test_the_same_call_twice_gives_the_same_bits_when_sorted(call: Call) -> None:
    first, second = run(call, "triton", DEVICE), run(call, "triton", DEVICE)
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


@pytest.mark.usefixtures("sorting")
def test_nan_in_an_ignored_row_stays_there_when_sorted() -> None:
    call = separate(30, 41, 12)
    clean = run(call, "triton", DEVICE)
    anchors, keys = call.anchors.clone(), call.keys.clone()
    anchors[call.anchor_labels < 0], keys[call.key_labels < 0] = torch.nan, torch.inf
    dirty = run(replace(call, anchors=anchors, keys=keys), "triton", DEVICE)
    assert torch.equal(clean[0], dirty[0])
    assert all(map(torch.equal, clean[1], dirty[1]))


def test_sizes_alone_decide() -> None:
    assert tiles.sorts(65536, 65536, 128, torch.bfloat16)
    assert not tiles.sorts(8192, 8192, 256, torch.bfloat16)  # a pixel step is bound by its launches
    assert tiles.sorts(8192, 8192, 256, torch.float32)
    assert not tiles.sorts(65536, 0, 128, torch.bfloat16)
