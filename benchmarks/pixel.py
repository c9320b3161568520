# SPDX-License-Identifier: Apache-2.0
"""The whole pixel step: feature map -> sample, gather, contrast -> loss -> gradient of the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

import secl_ops
from benchmarks import baseline
from benchmarks.cases import Answer
from benchmarks.contenders import NATIVE, TRITON
from benchmarks.gate import Admitted, hold, reason

LOOP, LEAN = "per-class loop", "per-class loop, one gather"
GRAPH = "secl_ops triton, CUDA graph"
EAGER = "secl_ops reference"
SEED = 0


@dataclass(frozen=True)
class PixelCase:
    """A batch of feature maps with labels, of which `per_class` pixels of each class and image are contrasted."""

    name: str
    title: str
    batch: int
    width: int
    size: tuple[int, ...]
    classes: int
    per_class: int
    temperature: float = 0.1
    source: str = ""
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def anchors(self) -> int:
        """Rows that are contrasted."""
        return self.batch * self.classes * self.per_class

    def on(self, device: str, dtype: str) -> PixelCase:
        """The same case elsewhere."""
        return replace(self, device=device, dtype=dtype)

    def small(self) -> PixelCase:
        """A case of the same kind that takes no time."""
        return replace(self, batch=1, size=tuple(min(side, 16) for side in self.size), classes=2, per_class=2)

    def problem(self) -> PixelProblem:
        """The tensors, the same at every call; a third of the pixels are predicted wrongly."""
        random = torch.Generator().manual_seed(0)
        features = torch.randn(self.batch, self.width, *self.size, generator=random)
        places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in self.size), indexing="ij")).sum(0)
        stripe = max(1, sum(self.size) // (2 * self.classes))
        labels = ((places[None] + torch.arange(self.batch).view(-1, *[1] * len(self.size))) // stripe) % self.classes
        wrong = torch.rand(labels.shape, generator=random) < 1 / 3
        chance = torch.rand(labels.shape, generator=random)
        return PixelProblem(
            features.to(self.device, getattr(torch, self.dtype)).requires_grad_(),
            labels.to(self.device),
            torch.where(wrong, (labels + 1) % self.classes, labels).to(self.device),
            torch.where(wrong, 0.5 * chance, 0.5 + 0.5 * chance).to(self.device),
        )


class PixelProblem(NamedTuple):
    """The tensors of one case."""

    features: Tensor  # [B, D, *spatial], requires a gradient
    labels: Tensor  # [B, *spatial]
    predicted: Tensor  # [B, *spatial]
    scores: Tensor  # [B, *spatial] probability of the true class, below 0.5 where predicted wrongly


class PixelAnswer(NamedTuple):
    """What a contender computes, and which pixels it took."""

    loss: Tensor  # scalar
    gradient: Tensor  # [B, D, *spatial]
    pixel: Tensor  # [n] number of each drawn pixel in the batch; -1: none
    label: Tensor  # [n]


PixelStep = Callable[[], PixelAnswer]
CASES = (
    PixelCase("contrastiveseg", "ContrastiveSeg: 8 maps 256 x 128 x 128, 19 classes", 8, 256, (128, 128), 19, 6, 0.07,
              "ICCV 2021, ContrastiveSeg@287e5d3: Cityscapes, at most 1,024 anchors of at most 100 a class and image"),
    PixelCase("acdc-2d", "ACDC slices: 24 maps 128 x 64 x 64, 4 classes", 24, 128, (64, 64), 4, 32, 0.1,
              "24 slices of 256 x 256 at stride 4, 32 pixels of each class and image"),
    PixelCase("la-3d", "Left atrium volumes: 4 maps 64 x 28 x 28 x 20, 2 classes", 4, 64, (28, 28, 20), 2, 256, 0.1,
              "112 x 112 x 80 crops (UA-MT, RCPS) at stride 4, 256 voxels of each class and volume"),
)  # fmt: skip


def _ours(case: PixelCase, problem: PixelProblem, backend: str) -> PixelStep:
    reasons = secl_ops.backends()[backend]
    if reasons:
        raise RuntimeError("; ".join(reasons))
    draw = secl_ops.sample_pixels(  # the same seed draws the same pixels in each step below
        problem.labels, case.per_class, num_classes=case.classes, seed=SEED, strategy="hard", scores=problem.scores,
        backend=backend,
    )  # fmt: skip

    def step() -> PixelAnswer:
        loss = secl_ops.pixel_contrast(
            problem.features, problem.labels, per_class=case.per_class, num_classes=case.classes, seed=SEED,
            strategy="hard", scores=problem.scores, temperature=case.temperature, backend=backend,
        )  # fmt: skip
        return PixelAnswer(loss.detach(), torch.autograd.grad(loss, problem.features)[0], draw.index, draw.label)

    return step


def _graph(case: PixelCase, problem: PixelProblem) -> PixelStep:
    """The same step captured once and replayed: no launch is paid for on the host."""
    step = _ours(case, problem, "triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = step()

    def replay() -> PixelAnswer:
        graph.replay()
        return answer

    return replay


def _loop(case: PixelCase, problem: PixelProblem, lean: bool) -> PixelStep:
    def step() -> PixelAnswer:
        loss, number, label = baseline.pixel_contrast(
            problem.features, problem.labels, problem.predicted, case.anchors, case.per_class, case.temperature,
            lean=lean,
        )  # fmt: skip
        return PixelAnswer(loss.detach(), torch.autograd.grad(loss, problem.features)[0], number, label)

    return step


def pixel_names(case: PixelCase) -> tuple[str, ...]:
    """The contenders on this device."""
    mine = (NATIVE,) if case.device == "cpu" else (TRITON, GRAPH, NATIVE)
    return (*mine, EAGER, LEAN, LOOP)


def pixel_contender(case: PixelCase, name: str) -> PixelStep:
    """One way to do the work of a case.

    Raises:
        Exception: Whatever keeps it from running here.
    """
    problem = case.problem()
    if name == GRAPH:
        return _graph(case, problem)
    if name in (LOOP, LEAN):
        return _loop(case, problem, lean=name == LEAN)
    return _ours(case, problem, name.removeprefix("secl_ops "))


def agree(case: PixelCase, name: str, answer: PixelAnswer) -> None:
    """Hold the draw against its rule, and loss and gradient at those pixels against the reference in float64.

    Raises:
        AssertionError: One of them is wrong.
    """
    problem = case.problem()
    kept = answer.pixel >= 0
    index, label = answer.pixel[kept], answer.label[kept].long()
    labels = problem.labels.flatten()
    if len(torch.unique(index)) != len(index) or not torch.equal(labels[index], label):
        raise AssertionError(f"{name}, {case.name}: a pixel was drawn twice, or under another label than its own")
    cell = index // math.prod(case.size) * case.classes + label
    counts = torch.stack([cell, (problem.predicted.flatten()[index] != label).long()])
    drawn = counts[0].bincount(minlength=case.batch * case.classes)
    hard = counts[0][counts[1] > 0].bincount(minlength=case.batch * case.classes)
    if (drawn != case.per_class).any() or (hard < case.per_class // 2).any():
        raise AssertionError(f"{name}, {case.name}: not {case.per_class} pixels of each class, half of them hard")
    right, plain = (
        _truth(problem.features, index, label, case.temperature, dtype) for dtype in (torch.float64, torch.float32)
    )
    given = Answer(answer.loss, (answer.gradient,))
    hold(f"{name}, {case.name}", given, right, plain, case.temperature, problem.features.dtype)


def _truth(features: Tensor, index: Tensor, label: Tensor, temperature: float, dtype: torch.dtype) -> Answer:
    leaf = features.detach().to(dtype).requires_grad_()
    rows = secl_ops.gather_pixels(leaf, index, unique=True, backend="reference")
    loss = secl_ops.info_nce(rows, anchor_labels=label, temperature=temperature, backend="reference")
    return Answer(loss.detach(), torch.autograd.grad(loss, leaf))


def admit(case: PixelCase) -> Admitted[PixelStep]:
    """Let every contender compute the case once.

    Raises:
        SystemExit: Ours runs and is wrong: then nothing is timed at all.
    """
    admitted = Admitted[PixelStep]({}, {})
    for name in pixel_names(case):
        try:
            step = pixel_contender(case, name)
            answer = step()
            agree(case, name, answer)
            admitted.steps[name] = step
        except AssertionError as error:
            if name not in (LOOP, LEAN):
                raise SystemExit(f"{error}; nothing was timed") from error
            admitted.refused[name] = f"wrong: {error}"
        except Exception as error:  # a rival may fail in any way of its own; the table says how
            admitted.refused[name] = reason(error)
    return admitted
