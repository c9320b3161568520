# SPDX-License-Identifier: Apache-2.0
"""Segment one image or a folder of images with a trained checkpoint, on the images' own grids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from secl_models.checkpoint import LoadedModel, load_model
from secl_models.data.cases import Case, DataSet
from secl_models.data.volumes import (
    H5_SUFFIX,
    NIFTI_SUFFIXES,
    count_channels,
    file_stem,
    load_volume,
    save_segmentation,
)
from secl_models.device import choose_device
from secl_models.errors import InputError
from secl_models.inference import predict_volume

SUFFIXES = (*NIFTI_SUFFIXES, H5_SUFFIX)
_CHANNEL = re.compile(r"(?P<case>.+)_\d{4}")  # nnU-Net: a file per channel, case_0000, case_0001


def predict(
    checkpoint: Path,
    source: Path,
    out: Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a segmentation for every image: the image's grid and affine, the training set's label values.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        source: An image (`.nii.gz`, `.nii` or `.h5`), or a folder of images.
        out: The segmentation (`.nii.gz` or `.nii`) for one image; else a folder that gets one file per image.
        overwrite: Replace segmentations that exist.
        device: Where the network runs: auto, cpu, cuda or cuda:<number>.
        progress: Called after each image with the number written and the number to write.

    Returns:
        The files written, in the order of the images.

    Raises:
        InputError: No image, an image that cannot be read or has another number of channels than the network,
            or an existing segmentation without `overwrite`. Nothing is written unless every target is free
            and every image has the right channels.
    """
    target_device = choose_device(device)
    model = load_model(checkpoint)
    cases = find_images(source, model.channels)
    targets = _targets(cases, source, out)
    if not overwrite:
        _refuse_existing(targets)
    for case in cases:
        _require_channels(case, model)
    model.network.to(target_device)
    modality = tuple(f"channel {index}" for index in range(model.channels))
    data = DataSet(root=source, layout="csv", classes=model.classes, modality=modality, cases=tuple(cases))
    for done, (case, target) in enumerate(zip(cases, targets, strict=True), start=1):
        _segment(model, data, case, target)
        if progress is not None:
            progress(done, len(cases))
    return targets


def find_images(source: Path, channels: int) -> list[Case]:
    """The images of a file or a folder, channels of one case put together.

    Args:
        source: An image or a folder of images.
        channels: Image channels of the network; with more than one, files `case_0000`, `case_0001`, ... of a
            folder are the channels of `case`.

    Returns:
        One case per image, sorted by name.

    Raises:
        InputError: Nothing there, or no image in the folder.
    """
    if source.is_dir():
        names = sorted(file.name for file in source.iterdir())
        files = [source / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    elif source.is_file():
        files = [source]
    else:
        raise InputError(
            source, rule="an image or a folder of images", got="nothing at this path", cure="correct --input"
        )
    if not files:
        raise InputError(
            source,
            rule=f"a folder with images ({', '.join(SUFFIXES)})",
            got="none",
            cure="name the folder that holds the images themselves",
        )
    groups: dict[str, list[Path]] = {}
    for file in files:
        split = _CHANNEL.fullmatch(file_stem(file)) if channels > 1 and source.is_dir() else None
        groups.setdefault(split["case"] if split else file_stem(file), []).append(file)
    return [Case(name, name, tuple(images), None, None) for name, images in groups.items()]


def _targets(cases: Sequence[Case], source: Path, out: Path) -> list[Path]:
    if source.is_dir():
        if out.name.endswith(SUFFIXES) or out.is_file():
            raise InputError(
                "--out",
                rule="a folder, since --input is a folder",
                got=out,
                cure="name a folder; each image gets a file of its name",
            )
        return [out / f"{case.name}.nii.gz" for case in cases]
    if out.name.endswith(NIFTI_SUFFIXES):
        target = out
    elif out.is_dir() or not out.suffix:
        target = out / f"{cases[0].name}.nii.gz"
    else:
        raise InputError(
            "--out",
            rule="a name ending in .nii.gz or .nii, or a folder",
            got=out,
            cure="end the name in .nii.gz",
        )
    if target.resolve() == source.resolve():
        raise InputError("--out", rule="another file than --input", got=out, cure="name another file")
    return [target]


def _refuse_existing(targets: Sequence[Path]) -> None:
    existing = [target for target in targets if target.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise InputError(
            existing[0],
            rule="a segmentation is not overwritten",
            got=f"an existing file{more}",
            cure="choose another --out, or add --overwrite",
        )


def _require_channels(case: Case, model: LoadedModel) -> None:
    found = count_channels(case.image)
    if found != model.channels:
        raise InputError(
            case.image[0],
            rule=f"the network takes {model.channels} image channel(s)",
            got=f"{found} channel(s)",
            cure="give the training's channels in its order: one 4-D file, or a folder of CASE_0000, CASE_0001, ...",
        )


def _segment(model: LoadedModel, data: DataSet, case: Case, target: Path) -> None:
    volume = load_volume(case, data)
    probabilities = predict_volume(model.network, model.preprocess, model.config, volume)
    save_segmentation(target, probabilities.argmax(0).cpu().numpy(), like=volume, classes=model.classes)
