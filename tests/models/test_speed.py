# SPDX-License-Identifier: Apache-2.0
"""What makes a step fast on a CPU changes no result: the norm's kernel, memory that is kept, the compiled layout."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from torch import nn

from secl_models.method.device import keep_freed_memory
from secl_models.method.networks import build_network
from secl_models.method.norms import InstanceNorm, quicken_norms
from secl_models.options.schema import NetworkConfig
from tests.device_step import fake_cuda
from tests.models.ranks import finish, start

SHAPES = [(3, 8, 16, 12), (2, 5, 8, 6, 4)]


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_is_torch_s_with_its_gradients(shape: tuple[int, ...]) -> None:
    theirs = (nn.InstanceNorm2d if len(shape) == 4 else nn.InstanceNorm3d)(shape[1], affine=True).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = InstanceNorm(shape[1]).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for norm in (ours, theirs):
        y = norm(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, *norm.parameters()))))
    for our, their in zip(*found, strict=True):
        torch.testing.assert_close(our, their)


def test_elsewhere_than_on_a_cpu_it_is_torch_s_kernel() -> None:
    with fake_cuda() as (mode, _), torch.no_grad():
        x = torch.empty_strided((2, 4, 8, 8), (256, 64, 8, 1), device="cuda")
        norm = InstanceNorm(4)
        norm.weight, norm.bias = (nn.Parameter(torch.empty_strided((4,), (1,), device="cuda")) for _ in range(2))
        mode.launches.clear()
        norm(x)
        assert "native_group_norm" not in mode.launches


@pytest.mark.parametrize("dims", [2, 3])
def test_every_norm_of_the_network_is_quick_and_nothing_else_changed(dims: int) -> None:
    config = NetworkConfig(channels=(4, 8, 16))
    strides = [1, 2, 2]
    torch.manual_seed(0)
    plain = DynUNet(dims, 1, 3, [3] * 3, strides, strides[1:], filters=[4, 8, 16])
    torch.manual_seed(0)
    ours = build_network(config, dims, 1, 2)
    assert list(plain.state_dict()) == list(ours.module.state_dict())  # checkpoints of before are read
    assert all(torch.equal(value, ours.module.state_dict()[name]) for name, value in plain.state_dict().items())
    kinds = {type(part) for part in ours.modules()}
    assert InstanceNorm in kinds
    assert not kinds & {nn.InstanceNorm2d, nn.InstanceNorm3d}
    x = torch.randn(2, 1, *[16] * dims)
    torch.testing.assert_close(ours(x).logits, plain(x))


def test_norms_without_weights_or_with_running_statistics_stay() -> None:
    module = nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    quicken_norms(module)
    assert [type(part) for part in module] == [nn.InstanceNorm2d] * 2


def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            pieces = [torch.ones(1 << 19) for _ in range(4)]  # 2 MiB each
            del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def task() -> None:
        assert keep_freed_memory()
        faults()  # the first time pages are taken
        assert faults() < 100

    assert finish(start(task)) == 0
