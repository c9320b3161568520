# SPDX-License-Identifier: Apache-2.0
"""The graph of a trained network: traced by torch, written as ONNX, and compared with the network itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from secl_models.method.checkpoint import LoadedModel
from secl_models.method.networks import TappedModule
from secl_models.options.errors import InputError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "image", "logits"
AGREES = 1e-3  # of the largest logit; sums in another order stay a hundred times below
_TRACED, _COMPARED = 2, 3  # images: a graph of two must hold for three


class Logits(nn.Module):
    """A network without the maps that are contrasted.

    Args:
        network: In evaluation mode.
    """

    def __init__(self, network: TappedModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Run it: [B, C, *patch] -> [B, K + 1, *patch]."""
        logits: Tensor = self.network(image).logits
        return logits


def require_packages() -> None:
    """Refuse to begin without the packages of the extra `export`.

    Raises:
        InputError: Names those that are missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        cure = "pip install 'secl[export]'"
        raise InputError("secl export", rule=f"needs {', '.join(PACKAGES)}", got=f"no {', '.join(missing)}", cure=cure)


def trace(model: LoadedModel, what: object) -> torch.export.ExportedProgram:
    """The graph of a network, for any number of windows of the size of its patch.

    Args:
        model: The network and the size of its windows.
        what: The file at fault, for the message.

    Raises:
        InputError: What the network does depends on the values of its image.
    """
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        with _quietly(), torch.no_grad():
            images = (_random_images(model, _TRACED),)
            return torch.export.export(Logits(model.network), images, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a network of one's own makes of being traced
        cure = "take what depends on the values of an image, such as `if x.mean() > 0`, out of the network's forward"
        raise _refusal(what, "a network that torch.export traces", error, cure) from error


def write_onnx(traced: torch.export.ExportedProgram, file: Path, what: object) -> None:
    """Write a graph as one ONNX file that `onnx.checker` passes.

    Args:
        traced: What `trace` gave.
        file: Target.
        what: The file at fault, for the message.

    Raises:
        InputError: ONNX lacks one of its operations.
        OSError: The file cannot be written.
    """
    import onnx

    try:
        with _quietly():
            found = torch.onnx.export(traced, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
            assert found is not None, "a call without a file name returns the graph"
            found.save(file, external_data=False)
            onnx.checker.check_model(file, full_check=True)
    except OSError:
        raise
    except Exception as error:  # the converter has no common type for what it cannot convert
        cure = "build the network of operations that ONNX has, or take the graph of --torch"
        raise _refusal(what, "a network that ONNX can hold", error, cure) from error


def difference(model: LoadedModel, file: Path, what: object) -> float:
    """How far ONNX Runtime and torch are apart on random images, as a share of the largest logit.

    Args:
        model: The network.
        file: The same as ONNX.
        what: The file at fault, for the message.

    Raises:
        InputError: Further than `AGREES`, or logits of another size than the image.
    """
    import onnxruntime

    images = _random_images(model, _COMPARED)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    with torch.no_grad():
        ours = model.network(images).logits
    shape = (_COMPARED, len(model.classes) + 1, *images.shape[2:])
    if not ours.shape == theirs.shape == shape:
        got = f"{tuple(ours.shape)}, and {tuple(theirs.shape)} in ONNX"
        cure = "let the network return one score a class for every voxel of its image"
        raise InputError(what, rule=f"logits of shape {shape}", got=got, cure=cure)
    apart = float((ours - theirs).abs().max() / ours.abs().max())
    if not apart <= AGREES:
        rule, got = f"logits in ONNX Runtime within {AGREES:g} of the largest of torch's", f"{apart:.2g} apart"
        raise InputError(what, rule=rule, got=got, cure=f"try other releases of {', '.join(PACKAGES)}")
    return apart


def _random_images(model: LoadedModel, count: int) -> Tensor:
    shape = (count, model.channels, *model.config.data.patch)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


def _refusal(what: object, rule: str, error: Exception, cure: str) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return InputError(what, rule=rule, got=lines[0][:200], cure=cure)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the converter says of packages that it could also convert."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)
