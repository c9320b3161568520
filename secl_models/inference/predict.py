# SPDX-License-Identifier: Apache-2.0
"""Segment one image or a folder of images with a trained checkpoint, on the images' own grids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.cases import Case, DataSet, as_trained
from secl_models.data.formats import (
    H5_SUFFIX,
    NIFTI_SUFFIXES,
    READ,
    file_stem,
    image_files,
    refuse_foreign,
    require_text,
    suffix_of,
)
from secl_models.data.probabilities import ProbabilityFile
from secl_models.data.volumes import Volume, count_channels, load_volume, save_segmentation
from secl_models.inference.windows import Slab, put, segment_volume
from secl_models.method.checkpoint import LoadedModel, load_model
from secl_models.method.device import choose_device
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError
from secl_models.options.spacing import AUTO

SUFFIXES = (*READ, H5_SUFFIX)
TRAINED = "trained"  # the flips that training used
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")  # nnU-Net: a file per channel, case_0000, case_0001


def predict(
    checkpoint: Path,
    source: Path,
    out: Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    flips: str = "",
    probabilities: bool = False,
    largest_component: bool = False,
    spacing_from: str = AUTO,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a segmentation for every image: the image's grid and affine, the training set's label values.

    An image is turned the way the training images lay, by its affine, and its segmentation is turned back. Memory:
    up to 24 bytes per voxel and channel of one image at a time (float64 files; 16 for int16), and a dozen times the
    probabilities of one slab, not of the volume.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        source: An image (`.nii.gz`, `.nii` or `.h5`), or a folder of images.
        out: The segmentation (`.nii.gz` or `.nii`) for one image; else a folder that gets one file per image.
        overwrite: Replace segmentations that exist.
        device: Where the network runs: auto, cpu, cuda, or cuda: and a number.
        flips: Axes along which logits are averaged over flips, such as `0,1`, or `trained`: those of training.
        probabilities: Also write `<name>_probabilities.nii.gz`, see `probabilities_path`.
        largest_component: Keep the largest connected part of each structure, see `keep_largest`.
        spacing_from: `data.spacing_from` of the images; "auto": that of the training.
        progress: Called after each image with the number written and the number to write.

    Returns:
        The segmentations written, in the order of the images.

    Raises:
        InputError: No image, an image that cannot be read or has another number of channels than the network,
            an axis that cannot be flipped, or an existing file without `overwrite`. Nothing is written unless every
            target is free and every image has the right channels.
    """
    target_device = choose_device(device)
    model = load_model(checkpoint)
    axes = flip_axes(flips, model)
    cases = find_images(source, model.channels)
    targets = _targets(cases, source, out)
    if not overwrite:
        _refuse_existing([*targets, *(map(probabilities_path, targets) if probabilities else ())])
    for case in cases:
        _require_channels(case, model)
    model.network.to(target_device)
    modality = tuple(f"channel {index}" for index in range(model.channels))
    data = DataSet(
        root=source,
        layout="csv",
        classes=model.classes,
        modality=modality,
        cases=tuple(cases),
        spacing_from=spacing_from,
    )
    data = as_trained(data, model.config.data.spacing_from)
    for done, (case, target) in enumerate(zip(cases, targets, strict=True), start=1):
        label = _segment(model, load_volume(case, data), axes, probabilities_path(target) if probabilities else None)
        if largest_component:
            keep_largest(label)
        save_segmentation(target, label, like=case.image[0], classes=model.classes)
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
        files = image_files(source, SUFFIXES)
        if not files:
            refuse_foreign(source, files)
    elif source.is_file():
        require_text(source)
        files = [source]
    else:
        raise InputError(
            source, rule="an image or a folder of images", got="nothing at this path", cure="correct --input"
        )
    if not files:
        raise InputError(
            source,
            rule="a folder with images (.nii.gz, .nii, .img with .hdr, .h5)",
            got="none",
            cure="name the folder that holds the images themselves",
        )
    groups: dict[str, list[Path]] = {}
    numbers: dict[str, list[str]] = {}
    for file in files:
        split = _CHANNEL.fullmatch(file_stem(file)) if channels > 1 and source.is_dir() else None
        name = split["case"] if split else file_stem(file)
        groups.setdefault(name, []).append(file)
        numbers.setdefault(name, []).append(split["number"] if split else "")
    for name, images in groups.items():
        _require_one_file_each(source / name, images, numbers[name])
    return [Case(name, name, tuple(images), None, None) for name, images in groups.items()]


def _require_one_file_each(case: Path, images: Sequence[Path], numbers: Sequence[str]) -> None:
    """One file for a case, or its channels `_0000`, `_0001`, ... without a gap."""
    if len(images) == 1 or list(numbers) == [f"{number:04}" for number in range(len(images))]:
        return
    raise InputError(
        case,
        rule="a case is one file, or one file for each channel: CASE_0000, CASE_0001, ...",
        got=", ".join(image.name for image in images),
        cure="move all but one of them to another folder, or number the channels from 0000",
    )


def probabilities_path(target: Path) -> Path:
    """Where the probabilities belonging to a segmentation go: 4-D NIfTI, float32, background first.

    Args:
        target: The segmentation.

    Example:
        >>> probabilities_path(Path("seg.nii.gz")).name
        'seg_probabilities.nii.gz'
    """
    return target.with_name(f"{file_stem(target)}_probabilities{suffix_of(target)}")


def flip_axes(text: str, model: LoadedModel) -> tuple[int, ...]:
    """The axes that `--flips` names.

    Args:
        text: Numbers between commas, `trained`, or nothing.
        model: Knows how many axes there are and which were flipped in training.

    Raises:
        InputError: An axis that does not exist or is named twice, or `trained` where training did not flip.
    """
    if not text:
        return ()
    trained = model.config.augment.flip
    if text == TRAINED and trained:
        return trained
    known = [str(axis) for axis in range(model.config.data.dims)]
    named = [part.strip() for part in text.split(",")]
    if any(part not in known for part in named) or len(set(named)) < len(named):
        listed = ", ".join(known)
        raise InputError(
            "--flips",
            rule=f"different axes among {listed}, or `{TRAINED}` for those flipped in training",
            got=f"{text}; training flipped {', '.join(map(str, trained)) or 'none'}",
            cure="name axes along which a mirrored image is as likely, such as 0,1, or leave --flips out",
        )
    return tuple(map(int, named))


def _targets(cases: Sequence[Case], source: Path, out: Path) -> list[Path]:
    if source.is_dir():
        if suffix_of(out) in SUFFIXES or out.is_file():
            raise InputError(
                "--out",
                rule="a folder, since --input is a folder",
                got=out,
                cure="name a folder; each image gets a file of its name",
            )
        return [out / f"{case.name}.nii.gz" for case in cases]
    if suffix_of(out) in NIFTI_SUFFIXES:
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


def _segment(
    model: LoadedModel, volume: Volume, flips: tuple[int, ...], probabilities: Path | None
) -> npt.NDArray[np.integer[Any]]:
    with ExitStack() as stack:
        observe = None
        if probabilities is not None:
            file = stack.enter_context(ProbabilityFile(probabilities, volume.case.image[0], len(model.classes) + 1))

            def observe(slab: Slab) -> None:
                put(file.array, slab.probabilities.numpy(), slab.where, model.preprocess, volume)

        return segment_volume(model.network, model.preprocess, model.config, volume, flips, observe)
