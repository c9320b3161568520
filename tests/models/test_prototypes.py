# SPDX-License-Identifier: Apache-2.0
"""The second prediction by prototypes: its formula written out, how the prototypes move, and how they begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secl_models.method.networks import LinearHead
from secl_models.method.processes import Processes
from secl_models.method.prototypes import PrototypeTerm, cluster
from secl_models.method.step import StepContext
from secl_models.options.recipes import PrototypeConfig
from secl_models.options.schema import RunConfig, TrainConfig
from tests.models.test_objective import CLASSES, CONTRAST, NETWORK, context_of, make

WIDTH = NETWORK.channels[0]
EVERY = 256  # pixels of an image: each is drawn


def term_and_context(**options: Any) -> tuple[PrototypeTerm, StepContext, LinearHead]:
    """A term, and a step whose map near the output is a leaf; the head is no identity any more."""
    objective, student, teacher = make("prototypes")
    context = context_of("prototypes", student, teacher)
    options = {"per_class": EVERY, "decay": 0.6, **options}
    config = RunConfig(
        network=NETWORK, contrast=CONTRAST, prototype=PrototypeConfig(**options), train=TrainConfig(method="prototypes")
    )
    last = context.student.last.detach().clone().requires_grad_()
    context = replace(context, student=context.student._replace(last=last))
    head = LinearHead(WIDTH)
    with torch.no_grad():
        head.layer.weight.add_(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)) / 4)
    context = objective._with_guess(context)
    return PrototypeTerm(config, CLASSES + 1, WIDTH, Processes()), context, head


def seen_by_hand(context: StepContext, confidence: float) -> Tensor:
    """Pixel by pixel: the truth where a mixture shows a labelled image, else the teacher's class where it is sure."""
    assert context.mixture is not None
    seen = torch.full_like(context.label, -1)
    probability = context.teacher.logits.softmax(1)
    for image, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(16), torch.arange(16)).tolist():
        if context.mixture.inside[image, row, column]:
            seen[image, row, column] = context.label[image, row, column]
            continue
        chance = probability[context.mixture.partner[image], :, row, column]
        if chance.max() >= confidence:
            seen[image, row, column] = chance.argmax()
    return seen


def written_out(term: PrototypeTerm, context: StepContext, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
    """The term in float64 from its formula, with loops over classes, prototypes and pixels."""
    options = term.options
    mapped = torch.einsum("oc,bchw->bohw", weight, last) + bias.view(1, -1, 1, 1)
    unit = mapped / mapped.norm(dim=1, keepdim=True)
    rows = term.rows.double()
    score = torch.stack(
        [
            torch.stack([(unit * rows[c, k].view(1, -1, 1, 1)).sum(1) / options.temperature for k in range(3)])
            for c in range(CLASSES + 1)
        ]
    )  # [C, K, L, 16, 16]
    logits = score.amax(1).movedim(0, 1)

    def mixed_loss(label: Tensor) -> Tensor:
        known = label != -1
        chosen = logits.log_softmax(1).gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1)
        probability = logits.softmax(1)
        dice = [
            (2 * (probability[:, c] * (label == c))[known].sum() + 1)
            / (probability[:, c][known].sum() + (label == c).sum() + 1)
            for c in range(1, CLASSES + 1)
        ]
        return 0.5 * (-chosen[known].mean() + 1 - torch.stack(dice).mean())

    assert context.guess is not None
    second = mixed_loss(context.truth) + term.mixed_weight * mixed_loss(context.guess)
    seen = seen_by_hand(context, options.confidence)
    each = []
    for image, row, column in (seen > 0).nonzero().tolist():
        own = score[seen[image, row, column], :, image, row, column]
        each.append(torch.logsumexp(score[..., image, row, column].flatten(), 0) - own.max())
    return options.weight * second + options.contrast * torch.stack(each).mean()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_term_and_its_gradients_are_the_formula(backend: str) -> None:
    term, context, head = term_and_context(contrast=0.7)  # heavy, to be seen
    term.backend = backend
    found = term(context, head)
    found.value.backward()
    leaves = [
        leaf.detach().double().requires_grad_() for leaf in (head.layer.weight, head.layer.bias, context.student.last)
    ]
    expected = written_out(term, context, *leaves)
    expected.backward()
    assert abs(found.value.item() - expected.item()) < 1e-5
    for ours, theirs in zip((head.layer.weight, head.layer.bias, context.student.last), leaves, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.abs().max() > 1e-4
        assert (ours.grad - theirs.grad).abs().max() < 1e-5


def test_prototypes_begin_as_clusters_of_the_first_pixels_and_then_move_slowly() -> None:
    term, context, head = term_and_context()
    unit = torch.nn.functional.normalize(head(context.student.last).detach(), dim=1)
    seen = seen_by_hand(context, term.options.confidence)
    term(context, head)
    before = term.rows.clone()
    assert torch.allclose(before.norm(dim=2), torch.ones(CLASSES + 1, 3))
    for c in range(CLASSES + 1):
        rows = unit.movedim(1, -1)[seen == c]
        expected = cluster(rows.unsqueeze(0), torch.ones(1, len(rows), dtype=torch.bool), 3)[0]
        likeness = expected @ before[c].T
        # the same centres, whatever the order in which the draw lists the pixels
        assert (likeness.amax(1) > 0.999).all()
    term(replace(context, step=1), head)
    for c in range(CLASSES + 1):
        rows = unit.movedim(1, -1)[seen == c]
        nearest = (rows @ before[c].T).argmax(1)
        for k in range(3):
            own = rows[nearest == k]
            moved = before[c, k] if not len(own) else 0.6 * before[c, k] + 0.4 * own.mean(0)
            # float32 means of a hundred rows
            assert (term.rows[c, k] - moved / moved.norm()).abs().max() < 1e-5


def unsure(context: StepContext) -> StepContext:
    """The same step with a teacher that is sure of nothing."""
    return replace(context, teacher=context.teacher._replace(logits=context.teacher.logits / 100.0))


def test_only_sure_pixels_move_the_prototypes() -> None:
    term, context, head = term_and_context()
    context = unsure(replace(context, label=torch.full_like(context.label, -1)))
    assert term(context, head).value.isfinite()
    assert not term.rows.any()


def test_a_class_that_was_not_seen_has_a_logit_of_zero_and_no_key() -> None:
    term, context, head = term_and_context()
    context = unsure(replace(context, label=torch.where(context.label == 2, -1, context.label)))
    found = term(context, head)
    assert not term.rows[2].any()
    assert term.rows[:2].any(2).all()
    assert not term.logits(torch.ones(1, WIDTH, 2, 2))[:, 2].any()
    assert context.mixture is not None
    unit = torch.nn.functional.normalize(head(context.student.last), dim=1).movedim(1, -1)
    score = unit[context.mixture.inside & (context.label == 1)] @ term.rows[:2].flatten(0, 1).T / 0.1
    expected = (torch.logsumexp(score, 1) - score[:, 3:].amax(1)).mean()
    assert found.statistics["nearest"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_clusters_find_groups_and_need_enough_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(4)[:3]
    rows = torch.nn.functional.normalize(
        groups.repeat(5, 1) + 0.05 * torch.randn(15, 4, generator=generator), dim=1
    ).unsqueeze(0)
    there = torch.ones(1, 15, dtype=torch.bool)
    found = cluster(rows, there, 3)[0]
    assert sorted((found @ groups.T).argmax(1).tolist()) == [0, 1, 2]
    assert (found @ groups.T).amax(1).min() > 0.99
    there[0, 2:] = False
    assert not cluster(rows, there, 3).any()


def test_without_a_mixture_the_prototypes_refuse() -> None:
    term, context, head = term_and_context()
    with pytest.raises(ValueError, match="the prototypes need the mixture"):
        term(replace(context, guess=None), head)


def test_the_linear_head_begins_as_the_identity() -> None:
    maps = torch.randn(2, 5, 3, 4, 2)
    assert torch.equal(LinearHead(5)(maps), maps)
