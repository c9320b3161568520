# SPDX-License-Identifier: Apache-2.0
"""The teacher: a plain mean first, then a moving one; buffers too; never a gradient."""

from __future__ import annotations

import torch
from torch import nn

from secl_models.method.networks import ContrastModel, TappedModule
from secl_models.method.teacher import Teacher


def batch_norm_model() -> ContrastModel:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    return ContrastModel(TappedModule(layers, ["1"], [3]), 4)


def shift(model: ContrastModel, by: float) -> None:
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.add_(int(by) if not value.is_floating_point() else by)


def test_teacher_follows_the_recurrence_for_parameters_and_float_buffers() -> None:
    student = batch_norm_model()
    teacher = Teacher(student, decay=0.75)
    expected = {name: value.double() for name, value in student.state_dict().items()}
    for step, decay in enumerate([0.0, 0.5, 2 / 3, 0.75, 0.75]):
        shift(student, 1.0)
        teacher.update(student, step)
        for name, value in student.state_dict().items():
            keep = decay if value.is_floating_point() else 0.0
            expected[name] = keep * expected[name] + (1.0 - keep) * value.double()
    for name, value in teacher.state_dict().items():
        # float32 steps of a number of order 1 to 10 against float64
        assert (value.double() - expected[name]).abs().max() < 1e-5, name


def test_a_buffer_that_the_student_puts_anew_is_followed() -> None:
    student = batch_norm_model()
    teacher = Teacher(student, decay=0.0)
    for number in range(3):
        norm = student.network.module[1]  # type: ignore[index]
        norm.running_mean = torch.full((3,), float(number))
        teacher.update(student, number)
        assert torch.equal(teacher.model.network.module[1].running_mean, norm.running_mean)  # type: ignore[index]


def test_running_statistics_are_those_of_the_student_not_of_the_start() -> None:
    student = batch_norm_model()
    teacher = Teacher(student, decay=0.9)
    student(torch.randn(8, 1, 4, 4) + 5.0)
    teacher.update(student, 0)
    norm, own = student.network.module[1], teacher.model.network.module[1]  # type: ignore[index]
    assert torch.equal(own.running_mean, norm.running_mean)
    assert own.running_mean.any()
    assert int(own.num_batches_tracked) == 1


def test_teacher_runs_without_gradient_and_in_evaluation_mode() -> None:
    student = batch_norm_model()
    teacher = Teacher(student, decay=0.9)
    student.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    output = teacher(torch.randn(4, 1, 4, 4, requires_grad=True))
    assert not output.logits.requires_grad
    assert not output.features[0].requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_restored_teacher_goes_on_exactly() -> None:
    student = batch_norm_model()
    teacher, resumed = Teacher(student, decay=0.9), Teacher(student, decay=0.9)
    for step in range(3):
        shift(student, 0.5)
        teacher.update(student, step)
    resumed.load_state_dict({name: value.clone() for name, value in teacher.state_dict().items()})
    shift(student, 0.5)
    teacher.update(student, 3)
    resumed.update(student, 3)
    ours, theirs = teacher.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
