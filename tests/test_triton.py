# SPDX-License-Identifier: Apache-2.0
"""What is special to Triton: refusals, tiles of every shape, row masks, numbers that other arithmetic loses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import tiles
from secl_ops.engines import reference, triton
from secl_ops.engines.reference import Origin
from secl_ops.spec import Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = tiles.Tile(16, 16, 16, 16, 4, 2)


@pytest.fixture
def runs() -> None:
    """Skip where no Triton kernel can run."""
    reasons = triton.objections(DEVICE, torch.float32, "info_nce")
    if reasons:
        pytest.skip("; ".join(reasons))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integers(low: int, high: int, size: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (size,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def every_rule(anchors: int, keys: int, *, shared: bool = False, attracts: bool = True, repels: bool = True) -> Pairs:
    """Pairs with ignored rows, groups and exclusions, of keys that attract, that repel, or both."""
    labels, groups = integers(-1, 3, anchors, 1).int(), integers(0, 2, anchors, 2).int()
    key_labels = labels if shared else integers(-1, 3, keys, 3).int()
    key_groups = groups if shared else integers(0, 2, keys, 4).int()
    exclude = None if shared else integers(-1, keys, anchors, 5)
    return Pairs(labels, key_labels, groups, key_groups, exclude, 0 if attracts else keys, keys if repels else 0)


def check(anchors: Tensor, keys: Tensor, pairs: Pairs, scale: float, flags: Flag) -> None:
    """Hold forward and backward against the reference in fp64, beside the reference in the rows' dtype."""
    weights = draw(anchors.shape[0], seed=6)
    found = {}
    for name, module, wide in (("triton", triton, False), ("plain", reference, False), ("truth", reference, True)):
        a, k = (rows.double() if wide else rows for rows in (anchors, keys))
        state = module.contrast_forward(a, k, pairs, scale, flags | Flag.ANCHOR_GRADIENT)
        both = flags | Flag.ANCHOR_GRADIENT | Flag.KEY_GRADIENT
        factors = (weights.to(state.loss.dtype), *push_and_draw(state))
        gradients = module.contrast_backward(factors, a, k, pairs, state.lse, scale, both)
        found[name] = [*state[:5], *gradients]
    peak = scale * float(anchors.float().norm(dim=1).max() * keys.float().norm(dim=1).max())
    rounding = torch.finfo(anchors.dtype).eps / torch.finfo(torch.float32).eps  # the weights take the rows' dtype
    for number, (actual, plain, truth) in enumerate(zip(*found.values(), strict=True)):
        amplification = max(4 * peak, rounding if truth.ndim == 2 else 1.0)
        shown = f"output {number}"
        finite = truth.double().nan_to_num(neginf=0.0)
        assert torch.equal(actual.isneginf(), truth.isneginf()), shown
        assert_within_budget(
            shown, actual.float().nan_to_num(neginf=0.0), finite, plain.float().nan_to_num(neginf=0.0),
            amplification=amplification, magnitude=peak,
        )  # fmt: skip


@pytest.mark.thinned(4)
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES, Flag.SELF, Flag.SELF | Flag.NEGATIVES], ids=str)
@pytest.mark.parametrize("rules", [(True, True), (True, False), (False, True)], ids=["both", "attract", "repel"])
@pytest.mark.parametrize("width", [16, 40, 100], ids=["one chunk", "ragged chunks", "a loop of chunks"])
def test_tiles_of_every_shape(
    width: int, rules: tuple[bool, bool], flags: Flag, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "pick", lambda *_: SMALL)
    anchors = draw(37, width)
    keys = anchors if Flag.SELF in flags else draw(45, width, seed=9)
    pairs = every_rule(37, len(keys), shared=Flag.SELF in flags, attracts=rules[0], repels=rules[1])
    check(anchors, keys, pairs, 0.5, flags)


@pytest.mark.thinned(4)
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 3, 130, 300])
def test_widths_beside_the_table(width: int, dtype: torch.dtype) -> None:
    anchors, keys = (torch.nn.functional.normalize(draw(rows, width, seed=rows), dim=1) for rows in (21, 70))
    check(anchors.to(dtype), keys.to(dtype), every_rule(21, 70), 10.0, Flag.NEGATIVES | Flag.UNIT)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_the_running_maximum_agrees_with_the_fixed_one(flags: Flag) -> None:
    anchors, keys = (torch.nn.functional.normalize(draw(rows, 8, seed=rows), dim=1) for rows in (20, 150))
    pairs = every_rule(20, 150)
    fixed = triton.contrast_forward(anchors, keys, pairs, 30.0, flags | Flag.UNIT)
    running = triton.contrast_forward(anchors, keys, pairs, 30.0, flags)
    rough = reference.contrast_forward(anchors, keys, pairs, 30.0, flags)
    valid = rough.count > 0
    assert_within_budget("loss", fixed.loss[valid], running.loss[valid].double(), rough.loss[valid], amplification=30.0)


@pytest.mark.usefixtures("runs")
def test_far_keys_keep_their_weight_at_a_low_temperature() -> None:
    near, far = (torch.nn.functional.normalize(1 + 0.1 * draw(rows, 8, seed=rows), dim=1) for rows in (20, 50))
    check(near, -far, every_rule(20, 50), 100.0, Flag.UNIT)  # exp(-2 * 100) is no fp32 number: the maximum must run


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flat_probabilities_do_not_underflow(dtype: torch.dtype) -> None:
    anchors, keys = (torch.nn.functional.normalize(draw(rows, 130, seed=rows), dim=1) for rows in (20, 50))
    check(anchors.to(dtype), keys.to(dtype), every_rule(20, 50), 30.0, Flag.UNIT)  # every term is near exp(-30)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_an_anchor_without_a_positive_passes_no_nan_to_the_keys(flags: Flag) -> None:
    anchors, keys = draw(9, 16), draw(12, 16, seed=1)
    keys[3, 4] = torch.nan
    ones, twos = (torch.full((size,), size % 2, dtype=torch.int32, device=DEVICE) for size in (9, 12))
    pairs = Pairs(ones, twos, None, None, None, 0, 12)
    state = triton.contrast_forward(anchors, keys, pairs, 1.0, flags)
    assert torch.equal(state.loss, torch.zeros_like(state.loss))
    factors = (torch.ones(9, device=DEVICE), *push_and_draw(state))
    _, found = triton.contrast_backward(factors, anchors, keys, pairs, state.lse, 1.0, flags | Flag.KEY_GRADIENT)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.usefixtures("runs")
def test_nothing_is_read_outside_the_rows() -> None:
    buffers = [torch.full((rows + 40, 24), torch.nan, device=DEVICE) for rows in (19, 35)]
    anchors, keys = buffers[0][20:39], buffers[1][20:55]
    anchors.copy_(draw(19, 24, seed=1))
    keys.copy_(draw(35, 24, seed=2))
    pairs = every_rule(19, 35)
    inside = triton.contrast_forward(anchors, keys, pairs, 0.3, Flag.ANCHOR_GRADIENT)
    alone = triton.contrast_forward(anchors.clone(), keys.clone(), pairs, 0.3, Flag.ANCHOR_GRADIENT)
    assert all(map(torch.equal, inside[:5], alone[:5]))
    assert inside.loss.isfinite().all()


@pytest.mark.usefixtures("runs")
def test_a_tiny_loss_keeps_its_digits() -> None:
    anchors, keys = torch.tensor([[1.0]], device=DEVICE), torch.tensor([[1.0], [-1.0]], device=DEVICE)
    labels = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    pairs = Pairs(labels, torch.tensor([3, 4], dtype=torch.int32, device=DEVICE), None, None, None, 0, 2)
    loss = triton.contrast_forward(anchors, keys, pairs, 15.0, Flag.NEGATIVES | Flag.UNIT).loss
    truth = torch.tensor([-30.0], dtype=torch.float64, device=DEVICE).exp().log1p()
    assert_within_budget("loss", loss, truth, truth.float(), amplification=30.0)


@pytest.mark.usefixtures("runs")
def test_many_drawings_of_one_pixel_are_summed_in_order() -> None:
    index = torch.cat([torch.full((70,), 11), torch.arange(30), torch.full((9,), -1)]).to(DEVICE)
    index = index[integers(0, 2**30, 109).argsort()]
    grad = integers(-8, 8, 109 * 70).reshape(109, 70).float()
    given = (grad, None, index, None, False, Origin([2, 70, 3, 5], [1050, 15, 5, 1], torch.float32))
    expected = reference.gather_backward(*given)
    found = triton.gather_backward(*given)
    assert torch.equal(found, expected)  # whole numbers: any order gives the same sum


@pytest.mark.usefixtures("runs")
def test_an_index_outside_the_map_is_not_read() -> None:
    features = draw(1, 3, 4)
    rows, _ = triton.gather(features, torch.tensor([4, -7, 2**40, 3], device=DEVICE), False, torch.float32)
    assert torch.equal(rows[:3], torch.zeros(3, 3, device=DEVICE))
    assert torch.equal(rows[3], features[0, :, 3])


@pytest.mark.usefixtures("runs")
def test_unit_rows_of_any_stride() -> None:
    rows = draw(90, 41).T  # [41, 90]
    labels = integers(-1, 2, 41).int()
    rows[labels < 0] = torch.nan
    rows[int((labels >= 0).nonzero()[0])] = 0.0
    unit, inverse = triton.unit_rows(rows, labels)
    truth = reference.unit_rows(rows.double(), labels)
    rough = reference.unit_rows(rows, labels)
    grad = draw(90, 41, seed=3).T
    backward = triton.unit_rows_backward(grad, None, unit, inverse)
    true_backward = reference.unit_rows_backward(grad.double(), None, *truth)
    rough_backward = reference.unit_rows_backward(grad, None, *rough)
    for name, actual, exact, plain in (
        ("unit", unit, truth[0], rough[0]), ("inverse", inverse, truth[1], rough[1]),
        ("backward", backward, true_backward, rough_backward),
    ):  # fmt: skip
        assert_within_budget(name, actual, exact, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("purpose", ["scan", "value", "positive", "gradient"])
def test_every_tile_can_be_multiplied(purpose: str, dtype: torch.dtype) -> None:
    for width, capability in product((1, 16, 17, 64, 65, 128, 129, 256, 257, 600, 100_000), (80, 86, 90, 100)):
        tile = tiles.pick(width, dtype, purpose, capability)
        assert min(tile[:4]) >= 16
        assert all(value & (value - 1) == 0 for value in tile[:5])
        assert all(tiles.padded_width(width) % columns == 0 for columns in tile[2:4])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("fp64 is served by the reference" in reason for reason in triton.objections("cpu", torch.float64, "x"))
    assert any("not int32" in reason for reason in triton.objections("cpu", torch.int32, "gather_pixels"))
    assert triton.objections("mps", torch.float32, "info_nce") == ["it runs on CUDA devices, not on mps"]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "compiles for GPUs only" in triton.objections("cpu", torch.float32, "info_nce")[0]


def test_an_interpreting_process_and_an_old_card_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "_interpreted", lambda: True)
    assert "unset it" in triton.objections("cuda", torch.float32, "info_nce")[0]
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    triton._graphics_card.cache_clear()
    assert triton.objections("cuda", torch.float32, "info_nce") == ["compute capability 7.5 is below 8.0"]
    triton._graphics_card.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "arrays", "reasons"),
    [
        ("3.6.0", "2.4.6", ["Triton 3.6.0 interprets no loop under NumPy 2.4.6; pip install 'numpy<2.4'"]),
        ("3.6.0", "2.3.5", []),
        ("3.7.0", "2.4.6", []),
    ],
)
def test_a_triton_that_cannot_interpret_under_this_numpy_is_refused(
    monkeypatch: pytest.MonkeyPatch, compiler: str, arrays: str, reasons: list[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "_interpreted", lambda: True)
    monkeypatch.setattr("importlib.metadata.version", {"triton": compiler, "numpy": arrays}.__getitem__)
    triton._interpreter.cache_clear()
    assert triton.objections("cpu", torch.float32, "info_nce") == reasons
    triton._interpreter.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for an older one")
@pytest.mark.parametrize("strategy", ["uniform", "stratified"])
def test_the_draws_are_those_of_an_older_triton(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 3.4 a histogram has no mask, and a gather few layouts."""
    from triton.language import constexpr

    from secl_ops.engines.triton import primitives

    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0))

    def draw() -> Tensor:
        return secl_ops.sample_pixels(labels, 8, num_classes=4, strategy=strategy, seed=3, backend="triton").index

    expected = draw()
    monkeypatch.setattr(primitives, "BEFORE_3_4", constexpr(True))
    assert torch.equal(draw(), expected)


def test_a_triton_that_cannot_negate_a_mask_interprets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(triton, "_interpreted", lambda: True)
    monkeypatch.setattr("importlib.metadata.version", {"triton": "3.3.1", "numpy": "2.3.5"}.__getitem__)
    monkeypatch.delattr(InterpreterBuilder, "get_int1_ty")
    triton._interpreter.cache_clear()
    (reason,) = triton.objections("cpu", torch.float32, "info_nce")
    assert reason == "Triton 3.3.1 interprets no mask that is negated; 3.4 and later do"
    triton._interpreter.cache_clear()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "Triton is not installed; pip install triton"),
        ("3.2.0", "Triton 3.2.0 is older than 3.3, which torch 2.7 brings"),
    ],
)
def test_without_a_usable_triton_the_package_still_imports(version: str | None, message: str) -> None:
    program = f"""
import importlib.metadata, sys
true = importlib.metadata.version
def version(name):
    if name != "triton":
        return true(name)
    if {version!r} is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return {version!r}
importlib.metadata.version = version
import secl_ops
from secl_ops.engines import triton
print(secl_ops.backends()["triton"], "triton" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert message in done.stdout
    assert done.stdout.strip().endswith("False"), "asking for objections must not import an unusable Triton"


def test_a_gpu_without_room_for_a_tile_gets_a_smaller_one_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    from secl_ops.engines.triton import grids

    tried: list[tuple[int, ...]] = []

    class Kernel:
        fn = SimpleNamespace(__name__="crowded_kernel")

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*, BLOCK_M: int, num_stages: int, **_: int) -> None:
                tried.append((*grid, BLOCK_M, num_stages))
                if num_stages > 1 or BLOCK_M > 32:
                    raise OutOfResources(120_000, 101_376, "shared memory")

            return run

    monkeypatch.setattr(grids, "_SMALLER", {})
    tile = tiles.Tile(64, 64, 64, 64, 4, 2)
    with pytest.warns(
        UserWarning, match="crowded_kernel: out of resource: shared memory.* It runs with a smaller"
    ) as said:
        grids.launch(Kernel(), tile, lambda each: (grids.cells(100, each.block_n),))
    assert tried == [(2, 64, 2), (2, 64, 1), (2, 32, 1)]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grids.launch(Kernel(), tile, lambda each: (grids.cells(100, each.block_n),))
    assert tried[3:] == [(2, 32, 1)]


def test_a_gpu_without_room_for_any_tile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    from secl_ops.engines.triton import grids

    class Kernel:
        fn = SimpleNamespace(__name__="crowded_kernel")

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(**_: int) -> None:
                raise OutOfResources(120_000, 101_376, "shared memory")

            return run

    monkeypatch.setattr(grids, "_SMALLER", {})
    with pytest.raises(RuntimeError, match="crowded_kernel: no tile is small enough for this GPU: out of resource"):
        grids.launch(Kernel(), SMALL, lambda _: (1,))


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("start", "stop"), [(3, 12), (0, 11)])
def test_keys_of_which_only_some_attract_or_repel_are_refused(start: int, stop: int) -> None:
    pairs = every_rule(9, 12)._replace(positive_start=start, negative_stop=stop)
    said = f"positive_start must be 0 or the number of keys, 12; got {start}" if start else "negative_stop must be 0 or"
    with pytest.raises(ValueError, match=said):
        triton.contrast_forward(draw(9, 16), draw(12, 16), pairs, 1.0, Flag(0))


@pytest.mark.usefixtures("runs")
def test_a_gradient_of_anchors_without_their_state_is_refused() -> None:
    from secl_ops.engines.triton import launch, sides

    names = sides.Names(integers(0, 2, 9).int(), None)
    meeting, rows = sides.meet(names, names), draw(9, 16)
    side = sides.arrange(rows, names.labels, meeting.row)
    with pytest.raises(TypeError, match="the anchors of a backward pass must be arranged with their state"):
        launch._gradient(side, side, meeting, rows.shape, 1.0, Flag.SELF, (True, True), keys=True)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("flags", [Flag(0), Flag.NEGATIVES], ids=str)
def test_rows_of_which_none_counts_have_no_gradient_beside_a_nan(flags: Flag) -> None:
    rows, flags = draw(9, 16), flags | Flag.SELF | Flag.UNIT
    rows[3, 4] = torch.nan
    labels = torch.arange(9, dtype=torch.int32, device=DEVICE)
    pairs = Pairs(labels, labels, None, None, None, 0, 9)
    state = triton.contrast_forward(rows, rows, pairs, 1.0, flags)
    factors = (torch.ones(9, device=DEVICE), *push_and_draw(state))
    found, _ = triton.contrast_backward(factors, rows, rows, pairs, state.lse, 1.0, flags)
    assert torch.equal(found, torch.zeros_like(found))
