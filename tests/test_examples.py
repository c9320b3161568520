# SPDX-License-Identifier: Apache-2.0
"""The examples of `benchmarks/examples` train: contrast reaches the network through the tap, and falls."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

import secl_ops
from tests.conftest import REPOSITORY, skip_or_fail
from tests.originals import load_torchvision

EXAMPLES = REPOSITORY / "benchmarks" / "examples"
STEPS = 8
pytestmark = pytest.mark.filterwarnings("default")  # these packages warn of each other


def wanted(package: str) -> None:
    """Skip where the package that an example is for is not installed, by its name."""
    if importlib.util.find_spec(package) is None:
        skip_or_fail("originals", f"{package} is not installed; `make setup` or `make test-originals` brings it")
    if importlib.util.find_spec("torchvision") is not None:
        load_torchvision()


def parameters_behind(features: Tensor) -> list[Tensor]:
    """The leaves of the graph that a map ends."""
    found, seen, left = [], set(), [features.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            left += [before for before, _ in node.next_functions]
    return found


@pytest.fixture
def contrasts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The contrastive loss of each step, each of which gave the network a gradient through the tap."""
    losses: list[float] = []
    forward = secl_ops.PixelContrastLoss.forward

    def watched(self: secl_ops.PixelContrastLoss, features: Tensor, labels: Tensor) -> Tensor:
        loss = forward(self, features, labels)
        gradients = torch.autograd.grad(loss, parameters_behind(features), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(secl_ops.PixelContrastLoss, "forward", watched)
    return losses


@pytest.mark.parametrize(
    ("example", "needs", "given"),
    [
        ("with_lightning", "pytorch_lightning", ()),
        ("with_monai", "ignite", ()),
        *(("with_segmentation_models", "segmentation_models_pytorch", (name,)) for name in ("Unet", "DeepLabV3Plus")),
        *(("with_torchvision", "torchvision", (name,)) for name in ("fcn_resnet50", "deeplabv3_resnet50")),
    ],
)
def test_an_example_trains(example: str, needs: str, given: tuple[str, ...], contrasts: list[float]) -> None:
    wanted(needs)
    importlib.import_module(f"benchmarks.examples.{example}").main(STEPS, *given)
    assert len(contrasts) == STEPS
    assert contrasts[-1] < contrasts[0]


def test_the_bundle_trains(contrasts: list[float]) -> None:
    wanted("ignite")
    from monai.bundle import run

    run(config_file=str(EXAMPLES / "monai_bundle" / "train.yaml"), epochs=STEPS)
    assert len(contrasts) == STEPS
    assert contrasts[-1] < contrasts[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.*")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert "__pycache__" in path.parts or len(path.read_text().splitlines()) <= 60
