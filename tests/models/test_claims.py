# SPDX-License-Identifier: Apache-2.0
"""What the teacher's classes teach: nothing outside of an image, and one class for a pixel in all terms of a step."""

from __future__ import annotations

from dataclasses import replace

import torch

from secl_models.method.disagreement import DisagreementTerm
from secl_models.method.joined import JoinedBatch
from secl_models.method.largest_part import largest_parts
from secl_models.method.processes import Processes
from secl_models.method.supervised import supervised_loss
from tests.models.test_objective import CLASSES, context_of, make, mixed_context


def test_what_lies_outside_of_an_unlabelled_image_teaches_nothing() -> None:
    """Nor does a part there, however large, take the place of the one in the image."""
    objective, student, teacher = make("secl+", confidence=0.0)
    objective.mix = replace(objective.mix, largest=True)
    context = mixed_context(student, teacher)
    mixture = context.mixture
    assert mixture is not None
    claimed = torch.zeros(4, 16, 16, dtype=torch.int64)
    claimed[:, 2:5, 2:5], claimed[:, 10:], shown = 1, 1, torch.ones(4, 16, 16, dtype=torch.bool)
    shown[:, 8:] = False
    logits = 20.0 * torch.nn.functional.one_hot(claimed, CLASSES + 1).movedim(-1, 1)
    context = replace(context, teacher=context.teacher._replace(logits=logits), shown=shown)
    label = torch.where(mixture.inside, -1, torch.where(shown, claimed, -1)[mixture.partner])
    _, logged = objective(context, student, teacher, 1.0)
    assert torch.equal(logged["mixed"], supervised_loss(context.student.logits.detach(), label))
    assert logged["coverage"] == 1  # of what there is
    assert torch.equal(objective._with_guess(context).claims(0.9), torch.where(shown, claimed, -1))
    shown[:] = False
    _, logged = objective(context, student, teacher, 1.0)
    assert logged["mixed"] == logged["coverage"] == 0


def test_an_unsure_row_does_not_cut_a_structure_in_two() -> None:
    objective, student, teacher = make("copy-paste")
    objective.mix = replace(objective.mix, largest=True, confidence=0.9)
    context = mixed_context(student, teacher)
    mixture = context.mixture
    assert mixture is not None
    logits = torch.zeros(4, CLASSES + 1, 16, 16)
    logits[:, 0], logits[:, 1, 2:12, 2:12] = 5.0, 20.0
    logits[:, 1, 6, 2:12] = 6.0  # 0.7
    context = replace(context, teacher=context.teacher._replace(logits=logits))
    shown = mixture.inside.logical_not()
    found = objective._with_guess(context).guess
    assert found is not None
    assert set(found[:, 2:12, 2:12][shown[:, 2:12, 2:12]].unique().tolist()) == {-1, 1}


def test_no_anchor_claims_what_the_mixed_loss_teaches_as_background() -> None:
    objective, student, teacher = make("secl+", confidence=0.0)
    context = mixed_context(student, teacher)
    objective.mix = replace(objective.mix, largest=True)
    claimed = context.teacher.logits.argmax(1)
    kept = largest_parts(claimed, CLASSES + 1)
    expected = torch.where(kept == claimed, claimed, -1)
    assert not torch.equal(expected, claimed)
    assert torch.equal(objective._with_guess(context).claims(0.0), expected)
    assert torch.equal(context.claims(0.0), claimed)  # nothing is mixed


def test_no_pixel_outside_of_an_unlabelled_image_is_pulled() -> None:
    objective, student, teacher = make("disagreement")
    context = context_of("disagreement", student, teacher)
    term, batch = objective.near_the_output["disagreement"], JoinedBatch(Processes(), 2, 6)
    assert isinstance(term, DisagreementTerm)
    everywhere = term._pulled(context, batch)
    shown = torch.zeros(4, 16, 16, dtype=torch.bool)
    shown[:, :8] = True
    found = term._pulled(replace(context, shown=shown), batch)
    assert (everywhere[2:, 8:] != -1).any()
    assert torch.equal(found, torch.where(torch.cat([torch.ones_like(shown[:2]), shown]), everywhere, -1))
