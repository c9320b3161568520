# SPDX-License-Identifier: Apache-2.0
"""What is special to the C++ backend: its build, instruction sets, threads, speed, limits and objections."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import setup
from secl_ops import info_nce, library
from secl_ops.engines import native, reference
from secl_ops.engines.reference import Origin
from secl_ops.engines.select import select
from secl_ops.spec import REDUCTIONS, STRATEGIES, Flag, Pairs
from tests.budget import assert_within_budget
from tests.cases import push_and_draw
from tests.conftest import REPOSITORY, skip_or_fail


@pytest.fixture
def unbuilt() -> None:
    """Marks a test that needs no extension."""


@pytest.fixture(autouse=True)
def _built(request: pytest.FixtureRequest) -> None:
    if library.ABSENCE and "unbuilt" not in request.fixturenames:
        skip_or_fail("native", library.ABSENCE)


@dataclass(frozen=True)
class Problem:
    """One call of the contrast operations; ignored rows hold NaN."""

    anchors: Tensor
    keys: Tensor
    pairs: Pairs
    scale: float
    flags: Flag
    grad_loss: Tensor

    def run(self, backend: object, dtype: torch.dtype | None = None) -> list[Tensor]:
        """State of the forward pass, then both gradients."""
        anchors = self.anchors if dtype is None else self.anchors.to(dtype)
        keys = anchors if Flag.SELF in self.flags else self.keys.to(anchors.dtype)
        state = backend.contrast_forward(anchors, keys, self.pairs, self.scale, self.flags)  # type: ignore[attr-defined]
        gradients = backend.contrast_backward(  # type: ignore[attr-defined]
            (self.grad_loss, *push_and_draw(state)), anchors, keys, self.pairs, state.lse, self.scale,
            self.flags | Flag.KEY_GRADIENT,
        )  # fmt: skip
        return [*state[:5], *gradients]


def problem(seed: int, *, shared: bool = False, n: int = 101, m: int = 333, d: int = 37, unit: bool = True) -> Problem:
    """Random rows and every option at once: ignored, groups, excluded keys, and limits on what attracts and repels."""
    generator = torch.Generator().manual_seed(seed)
    m = n if shared else m

    def integers(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    anchors, keys = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    if unit:
        anchors, keys = (torch.nn.functional.normalize(rows, dim=1) for rows in (anchors, keys))
    anchor_labels, key_labels = integers(-1, 4, n).int(), integers(-1, 4, m).int()
    anchor_groups, key_groups = integers(-1, 2, n).int(), integers(-1, 2, m).int()
    if shared:
        key_labels, key_groups = anchor_labels, anchor_groups
    anchors[anchor_labels < 0], keys[key_labels < 0] = torch.nan, torch.nan
    pairs = Pairs(anchor_labels, key_labels, anchor_groups, key_groups, integers(-1, m, n), m // 5, m - m // 7)
    flags = Flag.ANCHOR_GRADIENT | (Flag.SELF if shared else Flag(0)) | (Flag.UNIT if unit else Flag(0))
    flags |= Flag.NEGATIVES if seed % 2 else Flag(0)
    grad_loss = torch.rand(n, generator=generator)
    return Problem(anchors, anchors if shared else keys, pairs, 12.5 if unit else 1.5, flags, grad_loss)


PROBLEMS = [
    pytest.param({"shared": shared, "unit": unit}, seed, id=f"{'self' * shared}-{'unit' * unit}-{seed}")
    for shared in (False, True)
    for unit in (True, False)
    for seed in range(2)
]


def keeps_the_budget(given: Problem) -> None:
    truth, plain, found = given.run(reference, torch.float64), given.run(reference), given.run(native)
    names = ("loss", "lse", "pull", "count", "forward gradient", "anchor gradient", "key gradient")
    for name, true, rough, actual in zip(names, truth, plain, found, strict=True):
        finite = true.isfinite()
        assert torch.equal(finite, actual.isfinite()), name
        if name == "count":
            assert torch.equal(true, actual)
            continue
        # An exponential turns one rounding of a similarity, at most 4 scale wide here, into that much relative error.
        assert_within_budget(name, actual.where(finite, 0), true.where(finite, 0), rough.where(finite, 0),
                             amplification=4 * given.scale)  # fmt: skip


@pytest.mark.parametrize(("options", "seed"), PROBLEMS)
def test_every_instruction_set_keeps_the_budget(options: dict[str, bool], seed: int, isa: str) -> None:
    keeps_the_budget(problem(seed, **options))


@pytest.mark.parametrize(("options", "seed"), PROBLEMS)
def test_any_number_of_threads_gives_the_same_bits(
    options: dict[str, bool], seed: int, threads: Callable[[int], None]
) -> None:
    given, results = problem(seed, **options), []
    for count in (1, 2, 3):
        threads(count)
        results.append(given.run(native))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Bands of three blocks, of one, blocks of half the height, chunks of fewer columns, and nothing to cut.
@pytest.mark.parametrize(("n", "m"), [(700, 3200), (200, 3200), (300, 400), (64, 2000), (90, 180)])
@pytest.mark.parametrize("unit", [True, False])
def test_every_cut_of_the_work_keeps_the_budget_and_the_bits(
    n: int, m: int, unit: bool, threads: Callable[[int], None]
) -> None:
    given = problem(1, n=n, m=m, d=40, unit=unit)
    truth, plain, found = given.run(reference, torch.float64), given.run(reference), given.run(native)
    # One rounding of the largest similarity becomes that much relative error of its exponential.
    largest = given.scale * float((given.anchors.nan_to_num() @ given.keys.nan_to_num().T).abs().max())
    for name, at in (("loss", 0), ("forward gradient", 4), ("anchor gradient", 5), ("key gradient", 6)):
        assert_within_budget(name, found[at], truth[at], plain[at], amplification=max(largest, 4 * given.scale))
    for count in (1, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(found, given.run(native), strict=True))


@pytest.mark.parametrize("d", [1, 15, 16, 17, 31, 33, 48])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (11, 31), (12, 32), (13, 33), (47, 255), (49, 257)])
def test_sizes_around_every_tile_edge(n: int, m: int, d: int) -> None:
    given = problem(n + m + d, n=n, m=m, d=d)
    truth, plain, found = given.run(reference, torch.float64), given.run(reference), given.run(native)
    for name, at in (("loss", 0), ("anchor gradient", 5), ("key gradient", 6)):
        assert_within_budget(name, found[at], truth[at], plain[at], amplification=4 * given.scale)


@pytest.mark.parametrize("function", ["exp2", "softplus", "sigmoid"])
def test_vector_functions_are_accurate(function: str, isa: str) -> None:
    # Below 2^-126 exp2 flushes to zero; sigmoid and softplus follow it there.
    x = torch.cat([torch.linspace(-80, 80, 100_001), torch.linspace(-1, 1, 100_001)])
    wide = x.double()
    truth = {
        "exp2": torch.exp2(wide),
        "softplus": torch.logaddexp(wide, torch.zeros_like(wide)),
        "sigmoid": torch.sigmoid(wide),
    }[function]
    found = torch.ops.secl_native.probe(x, function).double()
    error = ((found - truth).abs() / truth).max().item() / torch.finfo(torch.float32).eps
    # The exponent -|x| log2(e) of softplus and sigmoid is itself rounded: up to 80 * 1.44 half-ulps of 1.
    assert error < (2 if function == "exp2" else 80)


def test_vector_functions_at_the_ends(isa: str) -> None:
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -200.0, 200.0])
    expected = {
        "exp2": [0.0, torch.inf, torch.nan, 1.0, 0.0, torch.inf],
        "sigmoid": [0.0, 1.0, torch.nan, 0.5, 0.0, 1.0],
    }
    for function, values in expected.items():
        found = torch.ops.secl_native.probe(x, function)
        assert torch.equal(found.nan_to_num(7.0, 8.0), torch.tensor(values).nan_to_num(7.0, 8.0))
    softplus = torch.ops.secl_native.probe(x, "softplus")
    assert softplus[0] == 0
    assert softplus[1] == torch.inf
    assert softplus[2].isnan()


@pytest.mark.parametrize("negatives", [False, True])
def test_a_nan_in_the_key_an_anchor_must_not_see_does_not_reach_it(negatives: bool) -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    rows[4] = torch.nan
    labels = torch.tensor([0, 0, 0, 1, 0, 1], dtype=torch.int32)
    pairs = Pairs(labels[:4], labels, None, None, torch.full((4,), 4), 0, 6)
    flags = Flag.UNIT | (Flag.NEGATIVES if negatives else Flag(0))
    assert native.contrast_forward(rows[:4], rows, pairs, 10.0, flags).loss.isfinite().all()
    seen = pairs._replace(exclude=None)
    assert native.contrast_forward(rows[:4], rows, seen, 10.0, flags).loss.isnan().all()


def test_a_lone_positive_pair_costs_exactly_nothing(isa: str) -> None:
    rows = torch.nn.functional.normalize(torch.randn(64, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.zeros(1, dtype=torch.int32)
    pairs = Pairs(labels, labels, None, None, None, 0, 1)
    for i in range(63):
        state = native.contrast_forward(rows[i : i + 1], rows[i + 1 : i + 2], pairs, 14.3, Flag.UNIT)
        assert state.loss.item() == 0.0


@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_faster_than_dense_torch(denominator: str) -> None:
    n, flags = 1536, Flag.SELF | Flag.UNIT | (Flag.NEGATIVES if denominator == "negatives" else Flag(0))
    rows = torch.nn.functional.normalize(torch.randn(n, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = (torch.arange(n) % 8).int()
    given = Problem(rows, rows, Pairs(labels, labels, None, None, None, 0, n), 10.0, flags, torch.full((n,), 1 / n))
    best = {native: float("inf"), reference: float("inf")}
    for _ in range(4):
        for backend in best:
            start = time.process_time()  # of one thread, which other programs hardly lengthen
            given.run(backend)
            best[backend] = min(best[backend], time.process_time() - start)
    # Five to eight times on an idle machine with AVX-512; twice leaves room for a busy one.
    assert 2 * best[native] < best[reference], best


@pytest.mark.parametrize("strategy", ["uniform", "stratified", "hard"])
@pytest.mark.parametrize("shape", [(2, 23, 17), (1, 300), (3, 6, 7, 8)])
def test_draws_the_pixels_that_plain_torch_draws(strategy: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    labels = torch.randint(-1, 5, shape, generator=generator)
    eligible = torch.rand(shape, generator=generator) < 0.7
    scores = torch.randint(0, 9, shape, generator=generator).float()
    scores[scores == 7], scores[scores == 8], scores[scores == 0] = torch.inf, torch.nan, -torch.inf
    for seed in (0, 1, -5, 2**62):
        for per_class in (1, 4, 31, 200):
            given = (labels, eligible, scores, torch.tensor([seed]), per_class, 5, 3, strategy, 9)
            for expected, found in zip(reference.sample(*given), native.sample(*given), strict=True):
                assert expected.dtype == found.dtype
                assert torch.equal(expected, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pixel_drawn_twice_gets_the_sum_in_fp32(dtype: torch.dtype) -> None:
    index = torch.tensor([5, -1, 5, 0, 5])
    grad = torch.tensor([[1.0], [64.0], [2.0**-8], [3.0], [2.0**-8]], dtype=dtype)
    found = native.gather_backward(grad, None, index, None, False, Origin([2, 1, 2, 2], [4, 4, 2, 1], dtype)).flatten()
    # Added one by one in bfloat16 the two small ones would vanish.
    assert found.tolist() == [3.0, 0.0, 0.0, 0.0, 0.0, 1.0078125, 0.0, 0.0]


def test_gather_reads_any_layout() -> None:
    features = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, :, 1:, ::2]
    index = torch.tensor([0, 17, -1, 8])
    expected = reference.gather(features, index, False, torch.float32)
    assert all(map(torch.equal, native.gather(features, index, False, torch.float32), expected))


@pytest.mark.parametrize("bad", [-2, 8])
def test_an_index_outside_the_map_is_refused(bad: int) -> None:
    with pytest.raises(RuntimeError, match=rf"index must lie in -1\.\.7; got {bad}"):
        native.gather(torch.zeros(2, 1, 2, 2), torch.tensor([0, bad]), False, torch.float32)
    like = Origin([2, 1, 2, 2], [4, 4, 2, 1], torch.float32)
    with pytest.raises(RuntimeError, match="index must lie in"):
        native.gather_backward(torch.zeros(1, 1), None, torch.tensor([bad]), None, True, like)


def test_raw_operations_check_what_they_read() -> None:
    rows, labels, wrong = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="labels must have 3 elements; got 2"):
        torch.ops.secl_native.unit_rows(rows, wrong)
    with pytest.raises(RuntimeError, match="labels has the wrong dtype"):
        torch.ops.secl_native.unit_rows(rows, labels.long())
    with pytest.raises(RuntimeError, match="fp64 is served by the reference backend"):
        torch.ops.secl_native.unit_rows(rows.double(), labels)
    with pytest.raises(RuntimeError, match="rows must be contiguous"):
        torch.ops.secl_native.unit_rows(torch.zeros(2, 3).T, labels)
    with pytest.raises(RuntimeError, match="isa must be 'auto' or one that this machine runs; got 'mmx'"):
        torch.ops.secl_native.set_isa("mmx")


def test_objections_name_the_device_and_the_dtype() -> None:
    assert native.objections("cpu", torch.bfloat16, "info_nce") == []
    assert native.objections("cpu", torch.int64, "sample_pixels") == []
    assert "its CUDA kernels multiply fp16 and bf16 rows, as under autocast" in native.objections(
        "cuda", torch.float32, "info_nce"
    )
    for operation in ("gather_pixels", "reduce"):  # neither multiplies rows; losses are fp32 whatever the rows are
        assert not [text for text in native.objections("cuda", torch.float32, operation) if "multiply" in text]
    assert native.objections("mps", torch.float32, "info_nce") == ["there are no kernels for mps"]
    assert native.objections("cpu", torch.float64, "info_nce") == ["fp64 is served by the reference backend"]
    with pytest.raises(RuntimeError, match="cannot run info_nce on cpu float64: fp64 is served by the reference"):
        select("native", torch.device("cpu"), torch.float64, "info_nce")


@pytest.mark.usefixtures("unbuilt")
def test_without_the_extension_the_reason_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABSENCE", "the C++ extension was not built; " + library.HOW_TO_BUILD)
    (reason,) = native.objections("cpu", torch.float32, "info_nce")
    assert "SECL_BUILD=cpu" in reason
    assert select("auto", torch.device("cpu"), torch.float32, "info_nce") is reference


@pytest.mark.usefixtures("unbuilt")
def test_flags_are_those_of_the_kernels() -> None:
    body = re.search(r"enum Flag[^{]*\{(.*?)\}", (REPOSITORY / "csrc/params.h").read_text(), re.DOTALL)
    assert body is not None
    found = {name: int(value) for name, value in re.findall(r"k(\w+) = (\d+)", body.group(1))}
    assert found == {flag.name.title().replace("_", ""): flag.value for flag in Flag if flag.name}


@pytest.mark.usefixtures("unbuilt")
def test_choices_are_those_of_the_kernels() -> None:
    text = (REPOSITORY / "csrc/params.h").read_text()
    for name, choices in (("Reduction", REDUCTIONS), ("Strategy", STRATEGIES)):
        body = re.search(rf"enum {name}[^{{]*{{(.*?)}}", text)
        assert body is not None
        assert re.findall(r"k(\w+)", body.group(1)) == [choice.title() for choice in choices]


def test_a_raw_choice_outside_the_list_is_refused() -> None:
    ones, seed, labels = torch.ones(2), torch.zeros(1).long(), torch.zeros(1, 4).long()
    for choice in (-1, 3):
        with pytest.raises(RuntimeError, match=rf"reduction must lie in 0\.\.2; got {choice}"):
            torch.ops.secl_native.reduce(ones, ones, ones.int(), None, choice)
        with pytest.raises(RuntimeError, match=rf"strategy must lie in 0\.\.2; got {choice}"):
            torch.ops.secl_native.sample(labels, None, None, seed, 1, 1, -1, choice, 0)


@pytest.mark.usefixtures("unbuilt")
def test_the_package_knows_the_interface_of_its_sources() -> None:
    assert setup.interface() == library.INTERFACE, "the operations have changed: write this into secl_ops/library.py"


def test_an_extension_of_other_sources_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library._load() is None
    for told in ("0123456789abcdef", None):
        operations = SimpleNamespace() if told is None else SimpleNamespace(interface=lambda told=told: told)
        monkeypatch.setattr(torch.ops, "secl_native", operations)
        reason = library._load()
        assert reason is not None
        assert f"of other sources than this package (interface {told or 'unknown'}, not {library.INTERFACE})" in reason
        assert "build it again: install g++ and run `SECL_BUILD=cpu pip install" in reason


def test_the_shared_object_uses_the_stable_abi_only() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    (built,) = (REPOSITORY / "secl_ops").glob("_C.*so")
    assert built.name == "_C.abi3.so"
    command = ["nm", "-D", "-C", "--undefined-only", str(built)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch" in symbols
    assert not re.search(r"\b(at|c10|torch)::", symbols)


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("fast", "SECL_BUILD must be one of auto, cpu, cuda, none; got 'fast'"),
    ],
)
def test_setup_refuses_what_it_cannot_build(choice: str, message: str) -> None:
    environment = {**os.environ, "SECL_BUILD": choice}
    command = [sys.executable, "setup.py", "--name"]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert finished.stderr.strip().splitlines()[-1] == message


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(("choice", "status"), [("none", 0), ("auto", 0), ("cpu", 1)])
def test_setup_works_without_torch(choice: str, status: int) -> None:
    hide_torch = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name']; "
    command = [sys.executable, "-c", hide_torch + "runpy.run_path('setup.py', run_name='__main__')"]
    environment = {**os.environ, "SECL_BUILD": choice}
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == status
    assert ("cannot import torch" in finished.stderr) == (choice != "none")


def test_the_losses_of_half_rows_are_reduced_where_fp32_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def objections(_: str, dtype: torch.dtype, operation: str) -> list[str]:
        return ["no fp32 rows"] if (dtype, operation) == (torch.float32, "info_nce") else []

    monkeypatch.setattr(native, "objections", objections)
    rows, labels = torch.randn(6, 8), torch.arange(6) % 2
    assert info_nce(rows.half(), anchor_labels=labels, backend="native").isfinite()
    with pytest.raises(RuntimeError, match="no fp32 rows"):
        info_nce(rows, anchor_labels=labels, backend="native")
