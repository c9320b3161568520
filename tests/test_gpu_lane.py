# SPDX-License-Identifier: Apache-2.0
"""That the shared tests meet the native CUDA kernels wherever these run, and each path of theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secl_ops import library
from tests import lanes
from tests.cases import separate
from tests.conftest import skip_or_fail
from tests.lanes import Fit
from tests.test_backends import run


@pytest.mark.parametrize(("name", "path"), lanes.ON_THE_GPU.items(), ids=list(lanes.ON_THE_GPU))
def test_the_shared_tests_have_met_the_kernels_of_this_gpu(name: str, path: str) -> None:
    reason = lanes.absence(path)
    if path == "hopper" and reason == lanes.NO_HOPPER:
        pytest.skip(reason)
    if reason:
        skip_or_fail("cuda", f"the kernels of {name} cannot run: {reason}")
    assert name in lanes.here()


def test_what_cannot_exist_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(capability: tuple[int, int] | None, *reasons: str, archs: tuple[str, ...] = ("80", "90a")) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(library, "cuda_objections", lambda _: list(reasons))
        monkeypatch.setattr(library, "cuda_archs", lambda: archs)
        return lanes.here()

    assert found((9, 0)) == ["native-cuda", "native-hopper"]
    assert found((9, 0), archs=("90",)) == ["native-cuda"]
    assert lanes.absence("hopper") == "this build has CUDA code for 90"
    assert found((8, 0)) == ["native-cuda"]
    assert lanes.absence("hopper") == lanes.NO_HOPPER
    assert found((9, 0), "this build has no CUDA kernels") == []
    assert lanes.absence("portable") == "this build has no CUDA kernels"
    assert set(found(None)) <= set(lanes.EMULATED)
    assert lanes.absence("portable") == "torch sees no CUDA device"


HOPPER = [name for name in lanes.here() if lanes.PATHS[name] == "hopper"]


@pytest.mark.parametrize("backend", HOPPER, indirect=True)
def test_the_kernels_of_hopper_are_those_that_run(
    backend: str, device: str, fitted: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, found = fitted(replace(separate(150, 290, 64), reduction="none")), []
    for path in ("hopper", "hopper", "portable"):
        monkeypatch.setenv("SECL_CUDA_PATH", path)
        found.append(run(call, backend, device)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])  # other tiles, other roundings
