# SPDX-License-Identifier: Apache-2.0
"""A trained network for use elsewhere: ONNX, all that surrounds it as JSON, and a runner without torch and secl."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import secl_ops
from secl_models.data.files import partial_path, write_bytes, write_text
from secl_models.data.folders import note_written, remove_written, strangers, written
from secl_models.data.labels import value_type
from secl_models.data.preprocess import ROBUST
from secl_models.inference.graph import INPUT, OUTPUT, difference, require_packages, trace, write_onnx
from secl_models.inference.parts import parts_to_keep
from secl_models.inference.predict import flip_axes
from secl_models.inference.windows import OVERLAP
from secl_models.method.checkpoint import LoadedModel, digest, load_model
from secl_models.options.errors import InputError, writing
from secl_models.options.events import NOTE, tell
from secl_models.options.parts import NONE
from secl_models.options.spacing import AUTO

FORMAT = 1
NETWORK, SURROUNDINGS, RUNNER, PROGRAM = "model.onnx", "model.json", "run.py", "model.pt2"
FILES = (NETWORK, SURROUNDINGS, RUNNER, PROGRAM)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Holds the files.
        files: Their names.
        difference: Largest difference from torch's logits on random images, as a share of the largest logit.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float


def export(
    checkpoint: Path,
    out: Path,
    *,
    overwrite: bool = False,
    flips: str = "",
    largest_component: str = NONE,
    spacing_from: str = AUTO,
    program: bool = False,
) -> Exported:
    """Write the network that `predict` uses, and what it does around it, into a new folder.

    `python run.py FOLDER in.nii.gz out.nii.gz` of that folder then does what `predict` does with the same options.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        out: The folder; its files appear together or not at all.
        overwrite: Replace an earlier export there.
        flips: As for `predict`.
        largest_component: As for `predict`.
        spacing_from: As for `predict`.
        program: Also write the `torch.export` program, for `torch.export.load`.

    Returns:
        What was written.

    Raises:
        InputError: A package of the extra `export` is missing; no checkpoint; the folder holds something; the
            network cannot be exported, or gives other logits than in torch; the disk is full.
    """
    require_packages()
    model = load_model(checkpoint)
    views, parts, out = flip_axes(flips, model), parts_to_keep(largest_component, model), out.resolve()
    spacing_from = model.config.data.spacing_from if spacing_from == AUTO else spacing_from
    _require_free(out, overwrite)
    traced = trace(model, checkpoint)
    partial = partial_path(out)
    try:
        with writing(out, "call it again"):
            partial.mkdir(parents=True)
            write_onnx(traced, partial / NETWORK, checkpoint)
            apart = difference(model, partial / NETWORK, checkpoint)
            about = surroundings(model, digest(checkpoint), views, parts, spacing_from)
            write_text(partial / SURROUNDINGS, json.dumps(about, indent=1) + "\n")
            shutil.copyfile(Path(__file__).with_name("runner.py"), partial / RUNNER)
            if program:
                torch.export.save(traced, stream := io.BytesIO())
                write_bytes(partial / PROGRAM, stream.getvalue())
            names = tuple(name for name in FILES if (partial / name).is_file())
            note_written(partial, *names)
            if out.is_dir():
                remove_written(out)
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sentence = f"{NETWORK} agrees with torch to {apart:.1g} of the largest logit."
    tell("export", sentence, level=NOTE, difference=apart, out=str(out))
    return Exported(out, names, apart)


def surroundings(
    model: LoadedModel, checkpoint: str, flips: Sequence[int], parts: Sequence[int], spacing_from: str
) -> dict[str, Any]:
    """All that `predict` does around the network, in plain values.

    Args:
        model: The network and what it was trained on.
        checkpoint: SHA-256 of the file.
        flips: Axes of the network's orientation over whose flips logits are averaged.
        parts: Class indices of which the largest part is kept.
        spacing_from: Where the voxel sides of an image come from.
    """
    preprocess, data = model.preprocess, model.config.data
    names = {0: "background", **dict(sorted(model.classes.items()))}
    return {
        "format": FORMAT,
        "secl": secl_ops.__version__,
        "checkpoint": {"sha256": checkpoint, "step": model.step, "method": model.config.train.method},
        "network": {"name": model.config.network.name, "input": INPUT, "output": OUTPUT},
        "dims": data.dims,
        "channels": model.channels,
        "labels": [{"value": value, "name": name} for value, name in names.items()],  # by class index
        "dtype": np.dtype(value_type(max(names))).name,
        **{name: value for name, value in preprocess.to_dict().items() if name != "dims"},
        "spacing_from": spacing_from,
        "percentiles": list(ROBUST),
        "patch": list(data.patch),
        "overlap": OVERLAP[data.dims],
        "views": [list(view) for count in range(len(flips) + 1) for view in itertools.combinations(flips, count)],
        "largest_component": list(parts),
    }


def _require_free(out: Path, overwrite: bool) -> None:
    """A folder that is new or empty, or of an earlier export that is to be replaced; nobody stands in it."""
    if out == Path.cwd():
        rule, cure = "a folder that the export takes the place of", "name one inside it, such as --out model"
        raise InputError(out, rule=rule, got="the folder that this was called in", cure=cure)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    rule, cure = "a new or empty folder", "name another --out"
    if not out.is_dir():
        raise InputError(out, rule=rule, got="a file", cure=cure)
    ours = written(out)
    if SURROUNDINGS not in ours or not ours.keys() <= {*FILES}:
        raise InputError(out, rule=rule, got="files that no `secl export` wrote", cure=cure)
    if others := strangers(out):
        raise InputError(out, rule=rule, got=f"{others[0]}, which no `secl export` wrote", cure=cure)
    if not overwrite:
        raise InputError(out, rule=rule, got="an earlier export", cure=f"add --overwrite, or {cure}")
