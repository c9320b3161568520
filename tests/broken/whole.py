# SPDX-License-Identifier: Apache-2.0
"""A small folder in which everything is right: a data set, a table of it, scans, an evaluated run, a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from secl_models.data.layouts import read_data_set
from secl_models.data.splits import make_split
from secl_models.inference.evaluate import evaluate
from secl_models.options.schema import load_preset, override
from secl_models.study.rows import Point, Row, add_points, write_rows
from secl_models.train.run import train

OPTIONS = (
    "network.channels=[4,4,4]", "network.projection=4", "network.taps=[1]", "data.patch=[16,16]", "data.spacing=null",
    "contrast.grid=[2,2]", "contrast.queue=8", "contrast.per_class=4", "train.batch=2", "train.unlabeled_batch=2",
    "train.validate_every=1", "train.checkpoint_every=1", "train.warm_start=0.5", "train.steps=2", "train.threads=1",
)  # fmt: skip


def _scan(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([-1.5, -1.5, 8.0, 1.0]))
    image.to_filename(path)


def _data(root: Path) -> None:
    rows = ["image,label,patient,split"]
    for index in range(8):
        random = np.random.default_rng(index)
        x, y = np.meshgrid(range(16), range(16), indexing="ij")
        distance = np.hypot(x - 8 + random.uniform(-1, 1), y - 8)
        label = np.repeat(np.where(distance < 3, 2, np.where(distance < 6, 1, 0))[..., None], 2, 2).astype(np.uint8)
        image, suffix = (label * 100 + random.normal(200, 20, label.shape)).astype(np.int16), ".nii.gz"
        if index == 7:
            suffix = ".nii"
        _scan(root / "imagesTr" / f"case_{index:02d}{suffix}", image)
        if index < 6:
            _scan(root / "labelsTr" / f"case_{index:02d}.nii.gz", label)
        place = f"../labelsTr/case_{index:02d}.nii.gz" if index < 6 else ""
        rows.append(f"../imagesTr/case_{index:02d}{suffix},{place},p{index},")
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "ring", "2": "core"}}
    (root / "dataset.json").write_text(json.dumps(description))
    (root / "tables").mkdir()
    (root / "tables" / "table.csv").write_text("\n".join(rows) + "\n")


def make_whole(folder: Path) -> None:
    """Write `data`, `scans`, `run`, `study.csv` and `study_curves.csv` into an empty folder."""
    _data(folder / "data")
    for index in (1, 7):
        image = np.random.default_rng(index).normal(200, 20, (16, 20, 2)).astype(np.float32)
        _scan(folder / "scans" / f"new_{index}.nii.gz", image)
    config = override(load_preset("demo"), [*OPTIONS, "labeled=2"])
    data = read_data_set(folder / "data")
    train(config, data, make_split(data, 2, 0), folder / "run", progress=False)
    evaluate(folder / "run", data, progress=False)
    rows = [
        Row("d", 2, name, "steps", seed, 9, 6.0, 5.0, "last", 71.5, 2.0, 1.0, 9.0, "cpu", "", "a=71.5", "demo")
        for name in ("supervised", "secl") for seed in (0, 1)
    ]  # fmt: skip
    write_rows(folder / "study.csv", rows)
    points = [
        Point(row.data, 2, row.method, "steps", row.seed, "demo", step, 1.0, 1.0, 70.0, "a=93.0", "a=90.0", "")
        for row in rows for step in (1, 2)
    ]  # fmt: skip
    add_points(folder / "study_curves.csv", points)
