# SPDX-License-Identifier: Apache-2.0
"""Hard anchors against a bank of centroids: the formula written out, what enters the bank, and when it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from secl_models.method.centroids import CentroidTerm
from secl_models.method.label_maps import near_another
from secl_models.method.networks import ProjectionHead
from secl_models.method.processes import Processes
from secl_models.method.step import StepContext
from secl_models.options.recipes import CentroidConfig
from secl_models.options.schema import RunConfig, TrainConfig
from tests.models.test_objective import CLASSES, CONTRAST, NETWORK, context_of, make

WIDTH = NETWORK.channels[0]
EVERY = 256  # pixels of an image: each is drawn
PARTS = 2 * (CLASSES + 1)


def term_and_context(contrast: dict[str, Any] | None = None, **options: Any) -> tuple[CentroidTerm, StepContext]:
    """A term, and a step of blocky labels whose map near the output is a leaf."""
    _, student, teacher = make("centroids")
    context = context_of("centroids", student, teacher)
    config = RunConfig(
        network=NETWORK, contrast=replace(CONTRAST, per_class=EVERY, **(contrast or {})),
        centroid=CentroidConfig(**{"bank": 7, **options}), train=TrainConfig(method="centroids"),
    )  # fmt: skip
    blocks = torch.randint(0, CLASSES + 1, (6, 3, 3), generator=torch.Generator().manual_seed(3))
    blocks = blocks.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, :16, :16]
    label = torch.where(torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(4)) < 0.1, -1, blocks[:2])
    teacher_logits = 4.0 * torch.nn.functional.one_hot(blocks[2:], CLASSES + 1).movedim(-1, 1).float()
    teacher_logits[:, :, :4] /= 8.0  # unsure
    assert context.unmixed is not None
    logits = torch.randn(6, CLASSES + 1, 16, 16, generator=torch.Generator().manual_seed(6))
    last = context.unmixed.last.detach().clone().requires_grad_()
    unmixed = context.unmixed._replace(last=last, logits=logits)
    teacher_output = context.teacher._replace(logits=teacher_logits)
    context = replace(context, label=label, teacher=teacher_output, unmixed=unmixed)
    return CentroidTerm(config, CLASSES + 1, WIDTH, Processes()), context


def head() -> ProjectionHead:
    torch.manual_seed(9)
    return ProjectionHead(WIDTH, NETWORK.projection)


def parts_by_hand(context: StepContext, confidence: float) -> Tensor:
    """Class and part of every pixel from its eight neighbours."""
    probability, claimed = context.teacher.logits.softmax(1).max(1)
    label = torch.cat([context.label, claimed])
    sure = torch.cat([context.label >= 0, probability >= confidence])
    part = torch.full_like(label, -1)
    for image, row, column in (sure & (label >= 0)).nonzero().tolist():
        around = label[image, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        own = label[image, row, column]
        part[image, row, column] = own + (CLASSES + 1) * ((around != own) & (around >= 0)).any()
    return part


def centroids_by_hand(rows: Tensor, part: Tensor) -> list[list[Tensor]]:
    """Of each part, those of the images in turn, from projected rows [6, 16, 16, P]."""
    unit = rows / rows.norm(dim=-1, keepdim=True)
    return [
        [unit[image][part[image] == which].mean(0) for image in range(6) if (part[image] == which).any()]
        for which in range(PARTS)
    ]


def projected(module: ProjectionHead, last: Tensor) -> Tensor:
    rows: Tensor = module.layers(last.movedim(1, -1))
    return rows


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_term_and_its_gradients_are_the_formula(backend: str) -> None:
    """Every anchor against the bank of the step before, which takes this step's centroids before the backward pass."""
    term, context = term_and_context({"backend": backend}, unsure=0.6)
    module = head()
    assert context.unmixed is not None
    assert term(context, module).value.item() == 0.0
    found = term(replace(context, step=1), module)
    found.value.backward()
    double = head().double()
    last = context.unmixed.last.detach().double().requires_grad_()
    rows = projected(double, last)
    part = parts_by_hand(context, CONTRAST.confidence)
    bank = [torch.stack(each).detach() for each in centroids_by_hand(rows, part)]
    unsure = context.unmixed.logits.softmax(1).amax(1) <= 0.6
    value: Any = 0.0
    for place, (temperature, weight) in enumerate(((0.5, 1.0), (0.07, term.options.boundary))):
        losses = []
        for image, row, column in (unsure & (part >= 0) & (part // (CLASSES + 1) == place)).nonzero().tolist():
            own = int(part[image, row, column])
            anchor = rows[image, row, column]
            anchor = anchor / anchor.norm()
            others = [bank[which] for which in range(PARTS) if which % (CLASSES + 1) != own % (CLASSES + 1)]
            negative = normalize(torch.cat(others), dim=1) @ anchor / temperature
            positive = normalize(bank[own], dim=1) @ anchor / temperature
            losses.append(
                torch.stack([torch.logsumexp(torch.cat([p.view(1), negative]), 0) - p for p in positive]).mean()
            )
        assert len(losses) > 10
        value = value + weight * torch.stack(losses).mean()
    value.backward()
    # float32 at temperature 0.07
    assert abs(found.value.item() - value.item()) < 1e-5 * abs(value.item())
    pairs = [(context.unmixed.last, last), *zip(module.parameters(), double.parameters(), strict=True)]
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.abs().max() > 1e-4
        assert (ours.grad - theirs.grad).abs().max() < 1e-5 * max(1.0, theirs.grad.abs().max().item())


def test_the_bank_keeps_a_centroid_of_each_image_class_and_part() -> None:
    term, context = term_and_context()
    module = head()
    assert context.unmixed is not None
    term(context, module)
    expected = centroids_by_hand(projected(module, context.unmixed.last), parts_by_hand(context, CONTRAST.confidence))
    for which in range(PARTS):
        bank = term._banks()[which // (CLASSES + 1)]
        kept = bank.keys[bank.key_labels == which % (CLASSES + 1)]
        assert kept.shape[0] == len(expected[which]) > 0
        assert (kept - torch.stack(expected[which])).abs().max() < 1e-6
    term(replace(context, step=1), module)
    assert [bank.key_labels.ne(-1).sum() for bank in term._banks()] == [21, 21]  # seven of each class stay


def test_a_labelled_image_always_enters_and_an_unlabelled_one_where_the_teacher_is_sure() -> None:
    term, context = term_and_context({"confidence": 1.0})
    term(context, head())
    labelled = [parts_by_hand(context, 1.1)[:2].eq(which).flatten(1).any(1).sum().item() for which in range(PARTS)]
    assert [*term._banks()[0].written.tolist(), *term._banks()[1].written.tolist()] == labelled
    assert sum(labelled) > 0


def test_nothing_is_contrasted_before_every_bank_holds_something() -> None:
    term, context = term_and_context()
    module = head()
    assert context.unmixed is not None
    last = context.unmixed.last
    whole = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 16, 16)  # images of one class each have no boundary
    no_boundary = replace(context, label=whole, teacher=context.teacher._replace(logits=torch.zeros(4, 3, 16, 16)))
    for step in range(2):
        found = term(replace(no_boundary, step=step), module)
        assert found.value.item() == 0.0
        assert found.statistics["banks"].item() == pytest.approx((step > 0) * 2 / PARTS)
    found.value.backward()
    assert last.grad is not None
    assert not last.grad.any()
    term(context, module)
    assert term(replace(context, step=2), module).statistics["banks"].item() == 1.0
    assert term(replace(context, step=3), module).value.item() > 0.0


def test_only_pixels_that_the_student_is_unsure_of_learn() -> None:
    term, context = term_and_context(unsure=0.5)
    module = head()
    assert context.unmixed is not None
    term(context, module)
    found = term(replace(context, step=1), module)
    found.value.backward()
    assert context.unmixed.last.grad is not None
    learnt = context.unmixed.last.grad.any(1)
    unsure = context.unmixed.logits.softmax(1).amax(1) <= 0.5
    part = parts_by_hand(context, CONTRAST.confidence)
    assert torch.equal(learnt, unsure & (part >= 0))
    assert found.statistics["anchors"].item() == pytest.approx((unsure & (part >= 0)).float().mean().item())


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 5, 6, 4)])
@pytest.mark.parametrize("reach", [1, 2])
def test_a_boundary_is_what_another_class_lies_near_to(shape: tuple[int, ...], reach: int) -> None:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(shape, generator=generator) < 0.05).long()
    label[torch.rand(shape, generator=generator) < 0.2] = -1
    expected = torch.zeros(shape, dtype=torch.bool)
    for place in label.ge(0).nonzero().tolist():
        around = label[(place[0], *(slice(max(0, at - reach), at + reach + 1) for at in place[1:]))]
        expected[tuple(place)] = ((around >= 0) & (around != label[tuple(place)])).any()
    assert expected.any()
    assert torch.equal(near_another(label, reach), expected)


def test_without_the_unmixed_images_the_centroids_refuse() -> None:
    term, context = term_and_context()
    with pytest.raises(ValueError, match="unmixed images"):
        term(replace(context, unmixed=None), head())
