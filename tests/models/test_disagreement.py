# SPDX-License-Identifier: Apache-2.0
"""The pull where student and teacher differ in confidence: the formula written out, the gate and the perturbed view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secl_models.method.disagreement import DisagreementTerm, lowest_mean
from secl_models.method.learner import _require_droppable
from secl_models.method.networks import TappedModule, build_network
from secl_models.method.processes import Processes
from secl_models.method.step import StepContext
from secl_models.options.errors import InputError
from secl_models.options.recipes import DisagreementConfig
from secl_models.options.schema import NetworkConfig, RunConfig, TrainConfig
from tests.models.test_objective import CLASSES, CONTRAST, NETWORK, context_of, make

WIDTH = NETWORK.channels[0]
EVERY = 256  # pixels of an image: each is drawn


def term_and_context(backend: str = "reference", **options: Any) -> tuple[DisagreementTerm, StepContext]:
    """A term, and a step whose map near the output is a leaf."""
    _, student, teacher = make("disagreement")
    context = context_of("disagreement", student, teacher)
    config = RunConfig(
        network=NETWORK, contrast=replace(CONTRAST, per_class=EVERY, backend=backend),
        disagreement=DisagreementConfig(**options), train=TrainConfig(method="disagreement"),
    )  # fmt: skip
    assert context.unmixed is not None
    generator = torch.Generator().manual_seed(6)
    logits, keys = (2.0 * torch.randn(6, CLASSES + 1, 16, 16, generator=generator) for _ in range(2))
    last = context.unmixed.last.detach().clone().requires_grad_()
    unmixed = context.unmixed._replace(last=last, logits=logits)
    context = replace(context, unmixed=unmixed, teacher=context.teacher._replace(logits=keys))
    return DisagreementTerm(config, CLASSES + 1, WIDTH, Processes()), context


def pulled_by_hand(context: StepContext, share: float) -> list[tuple[int, int, int, int]]:
    """Image, row, column and class of every pixel that is pulled."""
    assert context.unmixed is not None
    ours, theirs = (logits.double().softmax(1) for logits in (context.unmixed.logits, context.teacher.logits))
    confidence = sorted(torch.cat([ours.amax(1).flatten(), theirs.amax(1).flatten()]).tolist())
    lowest = confidence[: int(share * len(confidence))]
    border = sum(lowest) / len(lowest)
    found = []
    for image, row, column in torch.cartesian_prod(torch.arange(6), torch.arange(16), torch.arange(16)).tolist():
        mine, other = ours[image, :, row, column], theirs[image, :, row, column]
        if (mine.max() > border) == (other.max() > border):
            continue
        claimed = int((mine if mine.max() > border else other).argmax())
        known = int(context.label[image, row, column]) if image < context.labeled else claimed
        if known >= 0:
            found.append((image, row, column, known))
    return found


def written_out(context: StepContext) -> tuple[Tensor, Tensor]:
    """The term in float64 with loops over pixels, and the map that it is a function of."""
    assert context.unmixed is not None
    theirs = context.teacher.last.double()
    unit = theirs / theirs.norm(dim=1, keepdim=True)
    chance, claimed = context.teacher.logits.softmax(1).max(1)
    sure = torch.where(chance >= CONTRAST.confidence, claimed, -1)
    label = torch.cat([context.label, sure[2:]])
    prototypes = {c: unit.movedim(1, -1)[label == c].mean(0) for c in range(CLASSES + 1) if (label == c).any()}
    last = context.unmixed.last.detach().double().requires_grad_()
    losses = []
    for image, row, column, own in pulled_by_hand(context, 0.8):
        if own in prototypes:
            pixel = last[image, :, row, column]
            cosine = torch.stack([torch.cosine_similarity(pixel, each, 0) for each in prototypes.values()])
            near = torch.cosine_similarity(pixel, prototypes[own], 0)
            losses.append(torch.logsumexp(cosine, 0) - near + 1 - near)
    assert len(losses) > 100
    return torch.stack(losses).mean(), last


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_term_and_its_gradients_are_the_formula(backend: str) -> None:
    term, context = term_and_context(backend)
    found = term(context, nn.Identity())
    found.value.backward()
    expected, last = written_out(context)
    expected.backward()
    assert abs(found.value.item() - expected.item()) < 1e-5
    assert context.unmixed is not None
    assert context.unmixed.last.grad is not None
    assert last.grad is not None
    assert last.grad.abs().max() > 1e-4
    assert (context.unmixed.last.grad - last.grad).abs().max() < 1e-5


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_gate_opens_where_one_is_sure_and_the_other_is_not(share: float) -> None:
    term, context = term_and_context(share=share)
    found = term(context, nn.Identity())
    found.value.backward()
    assert context.unmixed is not None
    assert context.unmixed.last.grad is not None
    learnt = {tuple(place) for place in context.unmixed.last.grad.any(1).nonzero().tolist()}
    assert learnt == {place[:3] for place in pulled_by_hand(context, share)}
    assert found.statistics["anchors"].item() == pytest.approx(len(learnt) / (6 * 256))


def test_networks_that_agree_pull_nothing() -> None:
    term, context = term_and_context()
    assert context.unmixed is not None
    found = term(replace(context, teacher=context.teacher._replace(logits=context.unmixed.logits)), nn.Identity())
    found.value.backward()
    assert found.value.item() == 0.0
    assert context.unmixed.last.grad is not None
    assert not context.unmixed.last.grad.any()


def test_a_class_without_a_prototype_pulls_nothing() -> None:
    term, context = term_and_context()
    label = torch.where(context.label == 2, -1, context.label)
    unsure = context.teacher.logits.clone()
    unsure[2:, 2] = -9.0  # the teacher never claims structure 2; the student does
    context = replace(context, label=label, teacher=context.teacher._replace(logits=unsure))
    assert any(own == 2 for *_, own in pulled_by_hand(context, 0.8))
    assert abs(term(context, nn.Identity()).value.item() - written_out(context)[0].item()) < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_the_lowest_mean_is_that_of_sorted_numbers(share: float) -> None:
    values = torch.randint(0, 20, (7, 11), generator=torch.Generator().manual_seed(0)).float()
    expected = values.flatten().sort().values[: max(1, int(share * 77))].mean()
    assert lowest_mean(values, share).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_both_views_the_pull_refuses() -> None:
    term, context = term_and_context()
    for missing in (replace(context, unmixed=None), replace(context, taught=0)):
        with pytest.raises(ValueError, match="both networks' views"):
            term(missing, nn.Identity())


def test_a_perturbed_pass_scales_the_channels_of_the_encoder_once() -> None:
    config = NetworkConfig(channels=(4, 8, 16), taps=(2,))
    network = build_network(config, 2, 1, 1).eval()
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert network.dropped_channels == 28
    with torch.no_grad():
        plain = network(image)
        same = network(image, torch.ones(2, 28))
        kept = torch.ones(2, 28)
        kept[:, 12:] = 0.0
        kept[1] = 1.0
        lost = network(image, kept)
        again = network(image)
    assert torch.equal(plain.logits, same.logits)
    assert torch.equal(plain.logits, again.logits)
    assert not lost.features[0][0].any()
    assert torch.equal(lost.features[0][1], plain.features[0][1])
    assert not torch.equal(lost.logits[0], plain.logits[0])


def test_a_network_without_layers_to_drop_from_is_refused_by_the_methods_name() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match=r"network\.name: method disagreement needs a network that names.*dropped="):
        _require_droppable(TappedModule(module, ["0"], [8]), "disagreement")
    _require_droppable(TappedModule(module, ["0"], [8]), "centroids")
    _require_droppable(TappedModule(module, ["0"], [8], dropped={"0": 8}), "disagreement")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def test_the_map_near_the_output_is_the_last_layer_or_the_one_named() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 2, 1))
    image = torch.zeros(1, 1, 4, 4)
    assert _shape(TappedModule(module, ["1", "0"], [5, 8])(image).last) == (1, 8, 4, 4)
    named = TappedModule(module, ["0"], [8], last=("1", 5))
    assert (_shape(named(image).last), named.last_channels) == ((1, 5, 4, 4), 5)
