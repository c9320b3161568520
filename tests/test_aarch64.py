# SPDX-License-Identifier: Apache-2.0
"""The extension on AArch64: every source compiles, and the operations, run under qemu-user, keep every budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_ops import library
from secl_ops.engines import native, reference
from secl_ops.engines.reference import Origin
from tests import aarch64
from tests.budget import assert_within_budget
from tests.cases import alone, labels, rows, separate
from tests.conftest import skip_or_fail
from tests.oracle import Call
from tests.test_backends import check
from tests.test_half_rows import ALONE, SIZES, gradients
from tests.test_native import PROBLEMS, keeps_the_budget, problem

pytestmark = pytest.mark.usefixtures("built")
# One of the first of the 64-bit processors, and one with all that the emulator knows.
LANES = (("cortex-a72", "portable"), ("cortex-a72", "neon"), ("max", "auto"))


@pytest.fixture(scope="module")
def program() -> None:
    """Skip where AArch64 is not to be had; else every source has compiled without a warning."""
    if reason := aarch64.absence():
        skip_or_fail("aarch64", reason)
    aarch64.program()


@pytest.fixture(scope="module", params=LANES, ids="-".join)
def processor(request: pytest.FixtureRequest, program: None) -> Iterator[aarch64.Machine]:
    """A processor with the program on it, and kernels chosen."""
    cpu, isa = request.param
    machine = aarch64.Machine(cpu)
    assert machine.set_isa(isa) == (isa if isa != "auto" else "neon")
    assert machine.matrix_unit() == (cpu == "max")
    yield machine
    machine.close()


@pytest.fixture
def machine(processor: aarch64.Machine, monkeypatch: pytest.MonkeyPatch) -> aarch64.Machine:
    """That processor in the place of this machine's own: the native backend runs there."""
    monkeypatch.setattr(torch.ops, "secl_native", processor)
    return processor


def test_every_source_compiles_without_a_warning() -> None:
    if reason := aarch64.absence(aarch64.COMPILER):
        skip_or_fail("aarch64", reason)
    program = aarch64.program().read_bytes()
    assert program[:4] == b"\x7fELF"
    assert int.from_bytes(program[18:20], "little") == 183  # EM_AARCH64


@pytest.mark.parametrize(
    ("kernels", "function", "product", "most"),
    [
        ("neon", "dot", "fmla", 1.6),
        ("neon", "dot_columns", "fmla", 1.6),
        ("neon", "accumulate<2, false>", "fmla", 1.6),
        ("neon", "accumulate<2, true>", "fmla", 1.6),
        ("bfmmla", "dot", "bfmmla", 2.6),
        ("bfmmla", "accumulate", "bfmmla", 1.8),
    ],
)
def test_products_take_few_instructions(kernels: str, function: str, product: str, most: float, program: None) -> None:
    own = [loop for loop in aarch64.loops(f"microkernel_{kernels}.cpp") if f"::{function}(" in loop.function]
    steps = [len(loop.instructions) / loop.instructions.count(product) for loop in own if product in loop.instructions]
    assert min(steps) < most, steps


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    reason = aarch64.absence()
    assert reason is not None
    assert reason.startswith("AArch64 needs aarch64-linux-gnu-g++ and qemu-aarch64; on Debian or Ubuntu: apt-get")


def test_the_program_is_of_these_sources_and_what_it_refuses_is_heard(machine: aarch64.Machine) -> None:
    assert machine.interface() == library.INTERFACE
    with pytest.raises(RuntimeError, match="labels must have 3 elements; got 2"):
        native.unit_rows(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="isa must be 'auto' or one that this machine runs; got 'avx2'"):
        machine.set_isa("avx2")


def test_a_program_that_ends_is_heard(program: None) -> None:
    broken = aarch64.Machine("no such processor")
    with pytest.raises(RuntimeError, match="the AArch64 program ended with status 1"):
        broken.set_isa("auto")
    broken.close()


@pytest.mark.parametrize("function", ["exp2", "softplus", "sigmoid"])
def test_vector_functions_are_those_of_this_machine(function: str, machine: aarch64.Machine) -> None:
    ends = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -200.0, 200.0])
    x = torch.cat([ends, torch.linspace(-80, 80, 10_001), torch.linspace(-1, 1, 10_001)])
    found, expected = machine.probe(x, function), aarch64.NATIVE.probe(x, function)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize(("options", "seed"), PROBLEMS)
def test_every_option_keeps_the_budget(options: dict[str, bool], seed: int, machine: aarch64.Machine) -> None:
    keeps_the_budget(problem(seed, **options))


# About tiles of 8 and of 12, panels of 96 and blocks of 192; few rows and many.
CALLS = {
    **{f"{n}-{m}-{d}": separate(n, m, d) for n, m, d in ((1, 1, 1), (7, 13, 5), (33, 97, 20), (193, 250, 64))},
    **{f"{n}-{d}": alone(n, d) for n, d in ((2, 3), (31, 20), (97, 50), (200, 12))},
    "grouped": replace(separate(40, 50, 24), anchor_groups=labels(40, 3, 8), key_groups=labels(50, 3, 9)),
    "excluding": replace(separate(40, 50, 24), exclude=labels(40, 50, 5, ignored=0.3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_losses_and_gradients_keep_the_budget(
    name: str, denominator: str, dtype: torch.dtype, machine: aarch64.Machine, request: pytest.FixtureRequest
) -> None:
    call: Call = replace(CALLS[name], denominator=denominator)
    check(call.to(dtype), "native", "cpu")
    request.getfixturevalue("many_rows")
    check(call.to(dtype), "native", "cpu")


@pytest.fixture(scope="module")
def bf16_processor(program: None) -> Iterator[aarch64.Machine]:
    """A processor whose instructions multiply matrices of bf16."""
    machine = aarch64.Machine("max")
    yield machine
    machine.close()


@pytest.fixture
def bf16_machine(
    bf16_processor: aarch64.Machine, many_rows: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[aarch64.Machine]:
    """That processor in the place of this machine's own, for many rows."""
    monkeypatch.setattr(torch.ops, "secl_native", bf16_processor)
    yield bf16_processor
    bf16_processor.set_isa("auto")


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("size", [*SIZES, *ALONE], ids=str)
def test_half_rows_of_every_size_keep_the_budget(
    size: tuple[int, ...], denominator: str, bf16_machine: aarch64.Machine
) -> None:
    call = separate(*size) if len(size) == 3 else alone(*size)
    check(replace(call, denominator=denominator).to(torch.bfloat16), "native", "cpu")


@pytest.mark.parametrize("call", [separate(40, 50, 24), alone(60, 24)], ids=["separate", "alone"])
def test_half_rows_are_multiplied_as_such_unless_kernels_are_chosen(call: Call, bf16_machine: aarch64.Machine) -> None:
    half, found = call.to(torch.bfloat16), {}
    for isa in ("auto", "neon"):
        bf16_machine.set_isa(isa)
        assert bf16_machine.matrix_unit() == (isa == "auto")
        found[isa] = gradients(half)[1]
    assert not torch.equal(found["auto"], found["neon"])  # the coefficients are rounded


@pytest.mark.parametrize("strategy", ["uniform", "stratified", "hard"])
def test_draws_the_pixels_that_plain_torch_draws(strategy: str, machine: aarch64.Machine) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(-1, 5, (2, 23, 17), generator=generator)
    eligible = torch.rand(classes.shape, generator=generator) < 0.7
    scores = torch.randint(0, 9, classes.shape, generator=generator).float()
    for seed in (0, -5, 2**62):
        for per_class in (1, 31, 200):
            given = (classes, eligible, scores, torch.tensor([seed]), per_class, 5, 3, strategy, 9)
            assert all(map(torch.equal, native.sample(*given), reference.sample(*given)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_rows_and_their_gradient_are_exact(dtype: torch.dtype, machine: aarch64.Machine) -> None:
    features = rows(2 * 3 * 4 * 5, 1, 0).view(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)[:, :, 1:, ::2]
    index, like = torch.tensor([0, 17, -1, 8, 17]), Origin([2, 3, 4, 4], [64, 1, 16, 4], dtype)
    found, expected = (each.gather(features, index, False, torch.float32) for each in (native, reference))
    assert all(map(torch.equal, found, expected))
    given = (rows(5, 3, 1).to(dtype), None, index, None, False, like)
    assert torch.equal(native.gather_backward(*given), reference.gather_backward(*given))


def pixel_step(features: Tensor, **options: Any) -> list[Tensor]:
    leaf = features.detach().clone().requires_grad_()
    classes = labels(2 * 20 * 20, 3, 0, 0.1).view(2, 20, 20)
    loss = secl_ops.pixel_contrast(leaf, classes, per_class=4, num_classes=3, seed=1, **options)
    return [loss.detach(), *torch.autograd.grad(loss, [leaf])]


def test_a_pixel_step_keeps_the_budget(machine: aarch64.Machine) -> None:
    features = rows(2 * 16, 64, 0).view(2, 16, 8, 8)
    truth, plain = (pixel_step(each, backend="reference") for each in (features.double(), features))
    for name, *each in zip(("loss", "gradient"), pixel_step(features), truth, plain, strict=True):
        assert_within_budget(name, *each, amplification=40)
