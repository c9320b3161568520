# SPDX-License-Identifier: Apache-2.0
"""The second pass of the Triton backend visits tiles with a positive, 1 / C of them, whatever order rows lie in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import secl_ops
from benchmarks.model import kinds
from secl_ops import ops, tiles
from secl_ops.engines import triton
from secl_ops.engines.triton import grids, launch
from secl_ops.engines.triton.grids import Card
from secl_ops.engines.triton.sides import Names, meet
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import CASES, alone, separate
from tests.draws import examples
from tests.oracle import Call
from tests.test_backends import check, on, run
from tests.test_properties import Drawn, calls
from tests.test_properties import check as check_drawn
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
    """Rows are sorted however few they are; else they are ordered by counting."""
    monkeypatch.setattr(tiles, "counts", lambda *_: False)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side is cut into parts, as for a card of many multiprocessors."""
    monkeypatch.setattr(grids, "card", lambda _: Card(90, 132))


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
def met(small: None, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each tile of the denominator."""
    return counted("denominator_tile", monkeypatch)


@pytest.fixture
def looks(small: None, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each tile of the first pass whose pairs are looked at one by one."""
    return counted("comparable", monkeypatch)


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1).to(DEVICE)


def shuffled(labels: Tensor, seed: int) -> Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))].to(DEVICE)


def one_pass(
    labels: Tensor, key_labels: Tensor | None, flags: Flag, *, groups: Tensor | None = None, second: bool = True
) -> None:
    """The pass over the positives of rows with these labels, or that before it; without key labels with themselves."""
    anchors = rows(len(labels), 0)
    keys = anchors if key_labels is None else rows(len(key_labels), 1)
    others = labels if key_labels is None else key_labels
    pairs = Pairs(labels.int(), others.int(), groups, groups, None, 0, len(keys))
    known_lse = torch.zeros(len(labels), device=DEVICE) if second else None
    flags |= Flag.UNIT if second else Flag.UNIT | Flag.SCAN
    triton.contrast_forward(anchors, keys, pairs, 10.0, flags, known_lse)


def balanced(seed: int) -> Tensor:
    """Each class has as many rows as two tiles of 16, in random order."""
    return shuffled(torch.arange(ROWS) % CLASSES, seed)


@pytest.mark.parametrize("self_contrast", [False, True], ids=["keys", "self"])
def test_the_positives_of_rows_in_any_order_lie_in_one_tile_of_c(self_contrast: bool, visits: list[None]) -> None:
    labels, key_labels = balanced(0), None if self_contrast else balanced(1)
    one_pass(labels, key_labels, Flag.NEGATIVES | (Flag.SELF if self_contrast else Flag(0)))
    assert len(visits) == TILES // CLASSES


def test_classes_of_unequal_size_cost_their_edges_alone(visits: list[None]) -> None:
    generator = torch.Generator().manual_seed(2)
    labels, key_labels = (torch.randint(-1, CLASSES, (ROWS,), generator=generator).to(DEVICE) for _ in range(2))
    one_pass(labels, key_labels, Flag.NEGATIVES)
    ordered = key_labels[key_labels >= 0].sort().values
    needed = 0  # tiles of sorted anchors against the tiles of sorted keys that hold their classes
    for tile in torch.cat([labels[labels >= 0], labels[labels < 0]]).split(ROWS)[0].sort().values.flip(0).split(ROWS):
        by_class = torch.cat([tile[tile >= 0].flip(0), tile[tile < 0]])
        for block in by_class.split(16):
            named = block[block >= 0]
            if len(named):
                places = ((ordered >= named[0]) & (ordered <= named[-1])).nonzero()
                needed += int(places[-1] // 16 - places[0] // 16 + 1)
    assert len(visits) == needed
    assert needed <= 1.9 * TILES / CLASSES


def test_groups_divide_the_visits_again(visits: list[None]) -> None:
    labels = torch.arange(ROWS) % 4
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    groups = (torch.arange(ROWS) // (ROWS // 2) * 5 - 3)[order].int().to(DEVICE)  # -3 and 2
    one_pass(labels[order].to(DEVICE), None, Flag.SELF | Flag.NEGATIVES, groups=groups)
    assert len(visits) == TILES // 8


def test_a_tile_without_a_negative_is_not_met_and_few_are_looked_at(met: list[None], looks: list[None]) -> None:
    one_pass(balanced(0), balanced(1), Flag.NEGATIVES, second=False)
    assert (len(met), len(looks)) == (TILES - TILES // CLASSES, 0)  # whole tiles of a class: no edge anywhere


def test_under_all_no_label_is_looked_at_but_the_own_key_is(met: list[None], looks: list[None]) -> None:
    one_pass(balanced(0), None, Flag.SELF, second=False)
    assert (len(met), len(looks)) == (TILES, ROWS // 16)


def test_groups_meet_no_tile_of_another(met: list[None], looks: list[None]) -> None:
    groups = shuffled(torch.arange(ROWS) // (ROWS // 4), 5).int()
    one_pass(balanced(0), balanced(1), Flag(0), groups=groups, second=False)
    assert (len(met), len(looks)) == (TILES // 4, 0)


def test_ignored_rows_are_met_by_nobody(met: list[None]) -> None:
    labels = balanced(0)
    labels[labels == 3] = -1
    one_pass(labels, labels.clone(), Flag(0), second=False)
    assert len(met) == TILES * 7 // 8 * 7 // 8


@pytest.mark.usefixtures("small")
def test_an_ignored_row_takes_nothing_of_the_tiles_that_its_block_takes_whole() -> None:
    labels = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    labels[5] = -1
    pairs = Pairs(labels, torch.ones(32, dtype=torch.int32, device=DEVICE), None, None, None, 0, 32)
    flags = Flag.UNIT | Flag.SCAN | Flag.ANCHOR_GRADIENT
    keys = rows(32, 1)
    keys[3, 4] = torch.nan
    state = triton.contrast_forward(rows(16, 0), keys, pairs, 5.0, flags)
    assert state.lse.isnan().sum() == 15
    assert state.lse.isneginf().nonzero().flatten().tolist() == [5]
    assert not state.grad_anchors[5].any()


@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF, Flag.SELF | Flag.NEGATIVES], ids=str)
@pytest.mark.parametrize("others", [256, 330])
def test_the_model_counts_the_tiles_that_the_kernel_meets(
    others: int, flags: Flag, met: list[None], looks: list[None]
) -> None:
    shared = Flag.SELF in flags
    labels, key_labels = (torch.arange(count).mul(7).div(count, rounding_mode="floor") for count in (256, others))
    one_pass(labels.to(DEVICE), None if shared else key_labels.to(DEVICE), flags, second=False)
    found = kinds(256, 256 if shared else others, 7, SMALL, hole=Flag.NEGATIVES in flags, positive=False, shared=shared)
    assert (found.far, found.near) == (len(met) - len(looks), len(looks))


@pytest.mark.parametrize("excluding", ["", "rows", "others"])
@pytest.mark.parametrize("grouped", [False, True], ids=["", "grouped"])
@pytest.mark.parametrize(("count", "others"), [(1, 1), (70, 45), (33, 200), (257, 0)], ids=str)
def test_counting_and_sorting_give_the_same_order(
    count: int, others: int, grouped: bool, excluding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def side(size: int, seed: int) -> Names:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(-1, 4, (size,), generator=generator)
        labels[labels == 3] = 2**31 - 1  # the largest label is no ignored row
        groups = torch.randint(-2, 2, (size,), generator=generator) * (2**31 - 1) if grouped else None
        return Names(labels.int().to(DEVICE), None if groups is None else groups.int().to(DEVICE))

    first = side(count, 0)
    second = side(others, 1) if others else first
    given = {
        "exclude": torch.randint(-1, len(second.labels) + 2, (count,)).to(DEVICE) if excluding == "rows" else None,
        "other_exclude": torch.randperm(max(count, others))[:others].to(DEVICE)
        if others and excluding == "others" else None,
    }  # fmt: skip
    counted = meet(first, second, **given)
    monkeypatch.setattr(tiles, "counts", lambda *_: False)
    for found, expected in zip(counted[:-1], meet(first, second, **given)[:-1], strict=True):
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            continue
        same = found == expected
        if expected.ndim == 2:  # of a run where nothing lies the place is all the same
            same = same | (expected[0] >= expected[1])
        assert same.all()


@pytest.mark.usefixtures("many_rows")
def test_a_pixel_step_visits_one_in_c(visits: list[None]) -> None:
    features = torch.randn(4, 16, 8, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = shuffled(torch.arange(4 * 8 * 16) % CLASSES, 4).view(4, 8, 16)
    secl_ops.pixel_contrast(features, labels, per_class=8, num_classes=CLASSES, seed=0, backend="triton")
    assert len(visits) == TILES // CLASSES  # 4 images x 8 draws fill two tiles a class


@pytest.mark.thinned(6)
@pytest.mark.usefixtures("sorting", "small", "split", "poisoned")
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


@pytest.mark.usefixtures("sorting", "small", "split")
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


@pytest.mark.usefixtures("sorting", "small", "split")
@pytest.mark.parametrize("scale", [5.0, 100.0], ids=["fixed maximum", "running maximum"])
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF, Flag.SELF | Flag.NEGATIVES], ids=str)
def test_every_rule_in_parts(flags: Flag, scale: float) -> None:
    anchors = rows(150, 0)
    keys = anchors if Flag.SELF in flags else rows(170, 1)
    check_rules(anchors, keys, every_rule(150, len(keys), shared=Flag.SELF in flags), scale, flags | Flag.UNIT)


@pytest.mark.drawn
@pytest.mark.usefixtures("small", "split", "poisoned")
@pytest.mark.parametrize("order", ["counting", "sorting"])
def test_every_option_keeps_the_budget_in_small_tiles_and_parts(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "counts", lambda *_: order == "counting")

    @examples(20, calls(60))
    def holds(drawn: Drawn) -> None:
        check_drawn(drawn, "triton", DEVICE)

    holds()


@pytest.mark.usefixtures("sorting", "small", "split")
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


@pytest.mark.parametrize("sizes", [(4096, 4096), (912, 912), (1024, 65_536), (65_536, 65_536), (24, 24)], ids=str)
def test_programs_fill_the_card_as_far_as_there_are_tiles(sizes: tuple[int, int]) -> None:
    count, others = sizes
    tile = tiles.shrunk(tiles.Tile(128, 128, 128, 128, 8, 3), count, others, 132)
    programs, blocks = grids.cells(count, tile.block_n), grids.cells(others, tile.block_m)
    parts = tiles.parts(programs, blocks, 132)
    assert 1 <= parts <= blocks
    assert parts * programs >= min(2 * 132, programs * min(blocks, tiles.MOST_PARTS))
    if programs >= 2 * 132:
        assert parts == 1  # there is enough to do


def test_sizes_alone_decide() -> None:
    assert tiles.sorts(65536, 65536, 128, torch.bfloat16)
    assert not tiles.sorts(8192, 8192, 256, torch.bfloat16)  # a pixel step is bound by its launches
    assert tiles.sorts(8192, 8192, 256, torch.float32)
    assert not tiles.sorts(65536, 0, 128, torch.bfloat16)


@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_the_order_is_found_once_for_each_piece_of_the_keys(denominator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "FEW_ROWS", 0)
    sizes: list[tuple[int, int]] = []

    def counted(side: Names, other: Names, **given: Tensor | None) -> Any:
        sizes.append((len(side.labels), len(other.labels)))
        return meet(side, other, **given)

    monkeypatch.setattr(launch, "meet", counted)
    options: dict[str, Any] = {"denominator": denominator, "backend": "triton"}
    call, (anchors, keys) = on(separate(19, 27, 8), DEVICE).leaves()
    own = secl_ops.info_nce(anchors, anchor_labels=call.anchor_labels, **options)
    own.backward()
    assert sizes == [(19, 19)]  # the gradient of shared rows has no other
    sizes.clear()
    frozen, names = keys.detach(), call.key_labels
    pieces: dict[str, Any] = {"keys": [frozen[:11], frozen[11:]], "key_labels": [names[:11], names[11:]]}
    secl_ops.info_nce(anchors, anchor_labels=call.anchor_labels, **pieces, **options).backward()
    assert sizes == [(19, 11), (19, 16)]  # of the sums; the positives are met as they were


@pytest.mark.parametrize("count", [257, 256])
def test_what_a_pass_met_serves_the_next_one_bit_for_bit(count: int) -> None:
    call = alone(count, 16)
    rows, labels = functional.normalize(call.anchors).to(DEVICE), call.anchor_labels.int().to(DEVICE)
    pairs = Pairs(labels, labels, None, None, None, 0, count)
    flags = Flag.SELF | Flag.NEGATIVES | Flag.UNIT
    state = triton.contrast_forward(rows, rows, pairs, 5.0, flags)
    factors = (torch.ones(count, device=DEVICE), state.pull, state.pull / count)
    given = factors, rows, rows, pairs, state.lse, 5.0, flags | Flag.ANCHOR_GRADIENT
    assert state.met is not None
    assert torch.equal(triton.contrast_backward(*given)[0], triton.contrast_backward(*given, state.met)[0])


def test_what_a_pass_met_is_refused_at_another_size() -> None:
    call = separate(9, 13, 8)
    pairs = (call.anchor_labels.int(), call.key_labels.int(), None, None, None, 0, 13, None)
    options = (None, torch.zeros(9), 10.0, 0, "reference")
    with pytest.raises(ValueError, match=r"met must have shape \[64\]; got \(3,\)"):
        ops.contrast(call.anchors, call.keys, *pairs, *options, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"met must be int32, as the forward pass left it; got torch\.float32"):
        ops.contrast(call.anchors, call.keys, *pairs, *options, torch.zeros(64))
