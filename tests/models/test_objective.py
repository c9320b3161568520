# SPDX-License-Identifier: Apache-2.0
"""The terms: who is whose positive, what is ignored, where gradients go, and what each method switches on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import secl_ops
from secl_models.method.label_maps import draw_counts, pseudo_labels, region_labels, resize_labels
from secl_models.method.largest_part import largest_parts
from secl_models.method.mixing import draw_mixture
from secl_models.method.networks import ContrastModel, build_network
from secl_models.method.objective import Objective
from secl_models.method.output import Output
from secl_models.method.processes import Processes
from secl_models.method.step import STREAMS, StepContext, stream_seed
from secl_models.method.supervised import supervised_loss
from secl_models.options.methods import METHODS, TERMS
from secl_models.options.schema import ContrastConfig, NetworkConfig, RunConfig, TrainConfig

NETWORK = NetworkConfig(channels=(4, 8, 16), taps=(0, 1), projection=8)
CONTRAST = ContrastConfig(per_class=4, queue=6, grid=(2, 2), confidence=0.5, partitions=2, backend="reference")
CLASSES = 2


def make(method: str, **contrast: Any) -> tuple[Objective, ContrastModel, ContrastModel]:
    config = RunConfig(
        network=NETWORK,
        contrast=replace(CONTRAST, **contrast),
        train=TrainConfig(method=method),
    )
    torch.manual_seed(0)
    head = METHODS[method].head
    student, teacher = (ContrastModel(build_network(NETWORK, 2, 1, CLASSES), 8, head) for _ in range(2))
    return Objective(config, CLASSES), student, teacher.requires_grad_(False)


def make_context(student: ContrastModel, teacher: ContrastModel, step: int = 0) -> StepContext:
    generator = torch.Generator().manual_seed(1)
    weak = torch.randn(6, 1, 16, 16, generator=generator)
    label = torch.randint(-1, CLASSES + 1, (2, 16, 16), generator=generator)
    with torch.no_grad():
        keys = teacher(weak)
        # Untrained logits are too even for any confidence: sharpen them.
        keys = keys._replace(logits=keys.logits * 20.0)
    position = torch.tensor([0.1, 0.6, 0.1, 0.2, 0.7, 0.9])
    return StepContext(student(weak + 0.1), keys, weak, label, position, taught=2, step=step)


def mixed_context(student: ContrastModel, teacher: ContrastModel, *, taught: bool = False) -> StepContext:
    """The same, with a student that saw mixtures and, apart from them, the images themselves."""
    context = make_context(student, teacher)
    mixture = draw_mixture(2, 4, (16, 16), 2 / 3, torch.Generator().manual_seed(2))
    images = mixture.of(context.weak[:2], context.weak[2:])
    context = replace(context, student=student(images), mixture=mixture, unmixed=context.student)
    if taught:
        return context
    keys = context.teacher
    keys = Output(keys.logits[2:], tuple(maps[2:] for maps in keys.features), keys.last[2:])
    return replace(context, teacher=keys, weak=context.weak[2:], taught=0)


def scalar_loss(logits: Tensor, label: Tensor) -> float:
    """0.5 (cross-entropy + 1 - Dice), pixel by pixel in Python."""
    probability = logits.double().softmax(1).movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    truth = label.flatten().tolist()
    known = [(row, value) for row, value in zip(probability, truth, strict=True) if value >= 0]
    entropy = -sum(torch.tensor(row[value]).double().log().item() for row, value in known) / len(known)
    dice = []
    for index in range(1, logits.shape[1]):
        overlap = sum(row[index] for row, value in known if value == index)
        volume = sum(row[index] + (value == index) for row, value in known)
        dice.append((2 * overlap + 1) / (volume + 1))
    return float(0.5 * (entropy + 1 - sum(dice) / len(dice)))


def test_supervised_loss_is_its_definition_and_skips_ignored_pixels() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 5, 4, generator=generator)
    label = torch.randint(-1, 3, (2, 5, 4), generator=generator)
    # float32 sums of forty numbers of order one
    assert abs(supervised_loss(logits, label).item() - scalar_loss(logits, label)) < 1e-5
    changed = torch.where((label == -1).unsqueeze(1), torch.full_like(logits, 7.0) * logits, logits)
    assert torch.equal(supervised_loss(changed, label), supervised_loss(logits, label))


def test_all_ignored_is_zero_with_a_graph() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = supervised_loss(logits, torch.full((1, 4, 4), -1))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pseudo_labels_keep_only_the_confident() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[5.0, 0.1]], [[0.0, 0.0]]]).unsqueeze(0)  # [1, 3, 1, 2]
    assert pseudo_labels(logits, 0.9).tolist() == [[[1, -1]]]
    assert pseudo_labels(logits, 0.0).tolist() == [[[1, 1]]]


def test_labels_are_resized_by_nearest_neighbour_with_ignored_kept() -> None:
    label = torch.tensor([[[-1, -1, 2, 2], [-1, -1, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]]])
    assert resize_labels(label, (2, 2)).tolist() == [[[-1, 2], [0, 1]]]
    assert resize_labels(label, (4, 4)) is label


@pytest.mark.parametrize("per_class", [1, 4, 100])
def test_a_draw_takes_as_many_pixels_as_are_counted(per_class: int) -> None:
    label = torch.randint(-1, 4, (3, 6, 5), generator=torch.Generator().manual_seed(0))
    sample = secl_ops.sample_pixels(label, per_class, num_classes=5, seed=0)
    assert draw_counts(label, per_class, 5).tolist() == [int((sample.label == index).sum()) for index in range(5)]


def test_anchors_and_those_with_a_positive_are_counted() -> None:
    objective, *_ = make("secl-anatomical", per_class=2)
    labels, keys = torch.tensor([[0, 0, 0, 1], [0, -1, 2, 2]]), torch.tensor([[-1, 0, -1, -1], [-1, -1, -1, -1]])
    assert objective._counts(labels, keys, None).tolist() == [[3, 1, 2], [3, 0, 0]]
    queue = secl_ops.ClassQueue(3, 4, 1)
    queue.enqueue(torch.ones(1, 1), torch.tensor([2]))
    assert objective._counts(labels, keys, queue).tolist() == [[3, 1, 2], [3, 0, 2]]


def test_empty_cells_are_ignored() -> None:
    image = torch.full((1, 1, 8, 8), 123.4)
    image[..., :4, 4:] = torch.rand(4, 4)
    assert region_labels(image, (2, 2)).tolist() == [[-1, 1, -1, -1]]


def context_of(method: str, student: ContrastModel, teacher: ContrastModel) -> StepContext:
    """What the learner shows to this method."""
    if not METHODS[method].mixes:
        return make_context(student, teacher)
    return mixed_context(student, teacher, taught=METHODS[method].taught)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_logs_and_trains_exactly_its_terms(method: str) -> None:
    objective, student, teacher = make(method)
    context = context_of(method, student, teacher)
    total, logged = objective(context, student, teacher, 1.0)
    total.backward()
    assert TERMS.keys() & logged.keys() == set(METHODS[method].terms)
    expected = logged["supervised"]
    for name in METHODS[method].terms:
        expected = expected + objective.weights[name] * logged[name]
    assert torch.equal(total.detach(), expected)
    heads = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.heads.parameters()]
    assert all(heads) if {"region", "anatomical"} & set(METHODS[method].terms) else not any(heads)
    last = [parameter.grad is not None for parameter in student.last_head.parameters()]
    assert all(last) == (METHODS[method].head is not None) or not last
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_terms_of_a_method_ask_for_one_view_and_one_head() -> None:
    assert {name for method in METHODS.values() for name in method.terms} == TERMS.keys()
    for method in METHODS.values():
        terms = [TERMS[name] for name in method.terms]
        assert len({term.unmixed for term in terms} - {None}) <= 1
        assert len({term.head for term in terms} - {None}) <= 1


def test_mixtures_learn_truth_inside_and_the_teachers_classes_outside() -> None:
    """Both parts recomputed pixel by pixel; a pixel serves exactly one of them."""
    objective, student, teacher = make("secl+")
    context = mixed_context(student, teacher)
    assert context.mixture is not None
    truth, guess = torch.full_like(context.label, -1), torch.full_like(context.label, -1)
    claimed = context.teacher.logits.argmax(1)
    for image, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(16), torch.arange(16)).tolist():
        if context.mixture.inside[image, row, column]:
            truth[image, row, column] = context.label[image, row, column]
        else:
            guess[image, row, column] = claimed[context.mixture.partner[image], row, column]
    _, logged = objective(context, student, teacher, 1.0)
    # float32 sums of five hundred numbers of order one
    assert abs(logged["supervised"].item() - scalar_loss(context.student.logits.detach(), truth)) < 1e-5
    assert abs(logged["mixed"].item() - scalar_loss(context.student.logits.detach(), guess)) < 1e-5
    with pytest.raises(ValueError, match="mixture"):
        objective(make_context(student, teacher), student, teacher, 1.0)


def test_only_the_largest_part_of_a_pseudo_label_is_learnt_where_asked() -> None:
    objective, student, teacher = make("copy-paste")
    context = mixed_context(student, teacher)
    assert context.mixture is not None
    claimed = context.teacher.logits.argmax(1)
    kept = largest_parts(claimed, CLASSES + 1)
    assert not torch.equal(kept, claimed)
    for largest, pseudo in ((False, claimed), (True, kept)):
        objective.mix = replace(objective.mix, largest=largest)
        label = torch.where(context.mixture.inside, -1, pseudo[context.mixture.partner])
        _, logged = objective(context, student, teacher, 1.0)
        assert torch.equal(logged["mixed"], supervised_loss(context.student.logits.detach(), label))


def test_anchors_of_mixtures_carry_the_class_of_what_they_show() -> None:
    """One pixel of each class: moving the labels with the mixture is the only way to find these positives."""
    objective, student, teacher = make("secl+", per_class=256, queue=0, confidence=0.0)
    context = mixed_context(student, teacher)
    assert context.mixture is not None
    pseudo = context.teacher.logits.argmax(1)
    seen = context.mixture.of(context.label, pseudo)
    losses = []
    for tap, (ours, theirs) in enumerate(zip(context.student.features, context.teacher.features, strict=True)):
        rows, marks = [], []
        for maps, of, model in ((ours, seen, student), (theirs, pseudo, teacher)):
            small = resize_labels(of, tuple(maps.shape[2:])).flatten()
            known = small >= 0
            projected = model.heads[tap](maps.movedim(1, -1).flatten(0, 2)[known])
            rows.append(torch.nn.functional.normalize(projected.double(), dim=1))
            marks.append(small[known])
        score = rows[0] @ rows[1].T / CONTRAST.temperature
        same = marks[0].unsqueeze(1) == marks[1]
        negative = torch.logsumexp(score.masked_fill(same, -torch.inf), 1, keepdim=True)
        each = torch.nn.functional.softplus(negative - score) * same
        losses.append((each.sum(1) / same.sum(1)).mean())
    _, logged = objective(context, student, teacher, 1.0)
    # every known pixel is drawn, so the order of the draw does not matter; float32 against float64 at temperature 0.1
    assert abs(logged["anatomical"].item() - torch.stack(losses).mean().item()) < 1e-3


def test_ramp_zero_leaves_the_supervised_loss() -> None:
    objective, student, teacher = make("secl")
    total, logged = objective(make_context(student, teacher), student, teacher, 0.0)
    assert torch.equal(total.detach(), logged["supervised"])


def test_region_term_is_info_nce_over_cells_of_one_partition() -> None:
    """Recomputed with Python loops from the definition: same partition comparable, same cell positive."""
    objective, student, teacher = make("secl-region")
    context = make_context(student, teacher)
    group = [int(position * 2) for position in context.position.tolist()]
    losses = []
    for tap, (ours, theirs) in enumerate(zip(context.student.features, context.teacher.features, strict=True)):
        rows = []
        for maps, model in ((ours, student), (theirs, teacher)):
            half = maps.shape[2] // 2
            cells = maps.reshape(*maps.shape[:2], 2, half, 2, half).mean((3, 5))  # [B, C, 2, 2]
            projected = model.heads[tap](cells.flatten(2).transpose(1, 2).flatten(0, 1))
            rows.append(torch.nn.functional.normalize(projected.double(), dim=1))
        score = rows[0] @ rows[1].T / CONTRAST.temperature
        for i in range(24):
            same = [j for j in range(24) if group[j // 4] == group[i // 4]]
            negative = torch.logsumexp(score[i, [j for j in same if j % 4 != i % 4]], 0)
            positive = [torch.nn.functional.softplus(negative - score[i, j]) for j in same if j % 4 == i % 4]
            losses.append(torch.stack(positive).mean())
    _, logged = objective(context, student, teacher, 1.0)
    assert logged["cells"].item() == 1.0
    # float32 against float64 at temperature 0.1
    assert abs(logged["region"].item() - torch.stack(losses).mean().item()) < 1e-3


class Alone(Processes):
    """One process that takes the way of several."""

    several = True

    def total(self, part: Tensor) -> Tensor:
        return part

    def gather(self, rows: Tensor, leading: int, images: int, classes: int = 1) -> Tensor:
        return rows


@pytest.mark.parametrize("method", ["secl-anatomical", "secl+"])
@pytest.mark.parametrize(
    "options", [{"queue": 0}, {"queue": 5}, {"strategy": "hard"}, {"strategy": "stratified", "denominator": "all"}]
)
def test_the_way_of_several_processes_is_pixel_contrast(method: str, options: dict[str, Any]) -> None:
    """Of the same pixels: where both read a queue that the step before filled, the rows are the same too."""
    found = []
    for processes in (Processes(), Alone()):
        objective, student, teacher = make(method, **options)
        objective._processes = processes
        for step in range(2):
            context = replace((mixed_context if method == "secl+" else make_context)(student, teacher), step=step)
            total, logged = objective(context, student, teacher, 1.0)
        total.backward()
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        found.append((logged, gradients, list(objective.buffers())))
    (logged, gradients, queue), (others, theirs, rows) = found
    assert logged["positives"] > 0
    for name in logged.keys() - {"anatomical"}:
        assert torch.equal(logged[name], others[name]), name
    assert all(map(torch.equal, queue, rows))
    for one, other in zip([logged["anatomical"], *gradients], [others["anatomical"], *theirs], strict=True):
        # the mean is taken inside the loss, or of its parts outside: sums of a hundred float32 numbers in another order
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(
    ("method", "strategy", "weight"), [("secl+", "hard", 0.1), ("secl-anatomical", "uniform", 0.02)]
)
def test_what_an_option_leaves_open_is_what_suits_the_method(method: str, strategy: str, weight: float) -> None:
    totals = []
    for options in ({"strategy": "auto", "weight": None}, {"strategy": strategy, "weight": weight}):
        objective, student, teacher = make(method, **options)
        context = (mixed_context if method == "secl+" else make_context)(student, teacher)
        totals.append(objective(context, student, teacher, 1.0)[0])
    assert torch.equal(*totals)


def test_without_truth_and_confidence_nothing_is_drawn() -> None:
    objective, student, teacher = make("secl-anatomical", confidence=1.0, queue=0)
    context = make_context(student, teacher)
    context = replace(context, teacher=context.teacher._replace(logits=context.teacher.logits * 0.0))
    _, logged = objective(context, student, teacher, 1.0)
    assert logged["coverage"].item() == 0.0
    assert logged["anatomical"].item() > 0.0  # by the truth of the labelled images
    _, logged = objective(replace(context, label=torch.full_like(context.label, -1)), student, teacher, 1.0)
    assert logged["anatomical"].item() == 0.0


def test_precision_counts_confident_foreground_against_truth() -> None:
    objective, student, teacher = make("secl-anatomical")
    context = make_context(student, teacher)
    label = context.label
    logits = torch.nn.functional.one_hot(label.clamp_min(0), 3).movedim(-1, 1) * 50.0
    logits[0] = torch.tensor([0.0, 50.0, 0.0]).view(3, 1, 1)  # the first image is claimed as structure 1 everywhere
    taught = torch.cat([logits, context.teacher.logits[2:]])
    _, logged = objective(replace(context, teacher=context.teacher._replace(logits=taught)), student, teacher, 1.0)
    known = label >= 0
    right = int((label[0] == 1).sum()) + int((label[1] > 0).sum())
    claimed = int(known[0].sum()) + int((label[1] > 0).sum())
    assert torch.equal(logged["precision"], torch.tensor(right) / torch.tensor(claimed))


def test_queue_fills_with_teacher_rows_and_serves_as_keys() -> None:
    objective, student, teacher = make("secl-anatomical")
    assert len(objective.queues) == len(NETWORK.taps)
    context = make_context(student, teacher)
    _, first = objective(context, student, teacher, 1.0)
    labels = objective.queues[0].key_labels
    assert isinstance(labels, Tensor)
    assert sorted(set(labels.tolist())) == [0, 1, 2]
    _, second = objective(context, student, teacher, 1.0)
    assert not torch.equal(first["anatomical"], second["anatomical"])
    assert not make("secl-region")[0].queues
    assert not make("secl-anatomical", queue=0)[0].queues


def test_same_seed_and_step_give_the_same_loss_and_another_step_does_not() -> None:
    losses = []
    for step in (5, 5, 6):
        objective, student, teacher = make("secl-anatomical")
        losses.append(objective(make_context(student, teacher, step), student, teacher, 1.0)[1]["anatomical"])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_streams_steps_and_seeds_do_not_collide() -> None:
    drawn = {stream_seed(seed, step, stream) for seed in range(3) for step in range(50) for stream in STREAMS}
    assert len(drawn) == 3 * 50 * len(STREAMS)
    assert all(0 <= value < 2**63 for value in drawn)
