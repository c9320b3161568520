# SPDX-License-Identifier: Apache-2.0
"""Segment one image or a folder of images with a trained checkpoint, on the images' own grids."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.cases import Case, DataSet
from secl_models.data.folders import held, note_written, refuse_unlisted, refuse_writing_over, remove_partial, written
from secl_models.data.formats import (
    H5_SUFFIX,
    NIFTI_SUFFIXES,
    READ,
    conversion,
    file_stem,
    foreign_files,
    image_files,
    refuse_foreign,
    require_text,
    suffix_of,
)
from secl_models.data.orientation import cut_across
from secl_models.data.probabilities import ProbabilityFile
from secl_models.data.volumes import Volume, count_channels, load_volume, save_segmentation
from secl_models.inference.parts import parts_to_keep
from secl_models.inference.predictions import Record, Settings, digest, read_record, to_do
from secl_models.inference.windows import Slab, put, segment_volume
from secl_models.method.checkpoint import LoadedModel, load_model
from secl_models.method.device import choose_device
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError, WriteError, fitting, writing
from secl_models.options.events import Pace, tell
from secl_models.options.parts import NONE
from secl_models.options.spacing import AUTO

SUFFIXES = (*READ, H5_SUFFIX)
GO_ON = "call it again: what was finished stays"
TRAINED = "trained"  # the flips that training used
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")  # nnU-Net: a file per channel, case_0000, case_0001


@dataclass(frozen=True)
class Predictions:
    """What came of the images.

    Attributes:
        written: Segmentations of this call, in the order of the images.
        kept: Segmentations of an earlier call with the same checkpoint and options.
        failures: Why the other images have none.
    """

    written: tuple[Path, ...]
    kept: tuple[Path, ...] = ()
    failures: tuple[InputError, ...] = ()


def predict(
    checkpoint: Path,
    source: Path,
    out: Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    flips: str = "",
    probabilities: bool = False,
    largest_component: str = NONE,
    spacing_from: str = AUTO,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Write a segmentation for every image: the image's grid and affine, the training set's label values.

    An image is turned the way the training images lay, by its affine, and its segmentation is turned back. Of a
    folder, an image that cannot be segmented does not stop the others, and a later call goes on with what is missing.
    Memory: up to 24 bytes per voxel and channel of one image at a time (float64 files; 16 for int16), and a dozen
    times the probabilities of one slab, not of the volume.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        source: An image (`.nii.gz`, `.nii` or `.h5`), or a folder of images.
        out: The segmentation (`.nii.gz` or `.nii`) for one image; else a folder that gets one file per image, and
            `predict.json`, which says what was segmented with what.
        overwrite: Replace segmentations that exist; never an image, and of a folder only what `predict` wrote.
        device: Where the network runs: auto, cpu, cuda, or cuda: and a number.
        flips: Axes along which logits are averaged over flips, such as `0,1`, or `trained`: those of training.
        probabilities: Also write `<name>_probabilities.nii.gz`, see `probabilities_path`.
        largest_component: Keep the largest connected part of all structures, of those that are one part in every
            labelled training case (`auto`), or of none, see `keep_largest`.
        spacing_from: `data.spacing_from` of the images; "auto": that of the training.
        progress: Called after each image with the number finished and the number of all.

    Returns:
        What was written, what was there, and the images of a folder that failed.

    Raises:
        InputError: No image; a single image that cannot be read or has another number of channels than the network;
            an axis that cannot be flipped; an existing file without `overwrite` that is not of an earlier call alike;
            a target that is an image; the disk is full. Nothing is written unless every target is free.
    """
    target_device = choose_device(device)
    model = load_model(checkpoint)
    axes = flip_axes(flips, model)
    cases = find_images(source, model.channels)
    if left := foreign_files(source, (image for case in cases for image in case.image)):
        names = ", ".join(path.name for path in left[:3]) + (", ..." if len(left) > 3 else "")
        sentence = f"Not read, {len(left)} files of other formats: {names}. To segment them, {conversion(left[0])}."
        tell("note", sentence, level=logging.WARNING, files=[str(path) for path in left])
    if model.channels == 1 and (channels := _look_like_channels(cases)):
        sentence = f"{channels} look like channels of one case; the network takes one, and each is segmented by itself."
        tell("note", sentence, level=logging.WARNING)
    targets = dict(zip(cases, _targets(cases, source, out), strict=True))
    spacing_from = model.config.data.spacing_from if spacing_from == AUTO else spacing_from
    settings = Settings(digest(checkpoint), axes, probabilities, largest_component, spacing_from)
    work = _Work(model, settings, source, parts_to_keep(largest_component, model))
    files = [file for target in targets.values() for file in work.files(target)]
    refuse_writing_over((image for case in cases for image in case.image), *files)
    _refuse_shared(files)
    if not source.is_dir():
        if not overwrite:
            _refuse_existing(files)
        model.network.to(target_device)
        tell("start", f"segmenting {source} on {target_device}", device=str(target_device), checkpoint=str(checkpoint))
        return Predictions((work.segment(cases[0], targets[cases[0]]),))
    with held(out, "secl predict"):
        if overwrite:
            refuse_unlisted(out, (file.name for file in files))
        earlier = None if overwrite else read_record(out)
        todo = cases if overwrite else to_do(targets, earlier, settings)
        remove_partial(out, written(out))
        model.network.to(target_device)
        record = earlier if earlier is not None and earlier.settings == settings else Record(settings)
        tell("start", f"segmenting {len(todo)} of {len(cases)} images of {source} into {out} on {target_device}",
             images=len(cases), todo=len(todo), device=str(target_device), checkpoint=str(checkpoint))  # fmt: skip
        return _segment_folder(work, targets, todo, record, out, progress)


@dataclass(frozen=True)
class _Work:
    """What is done to each image."""

    model: LoadedModel
    settings: Settings
    source: Path
    one_part: Collection[int]  # structures of which the largest part is kept

    def files(self, target: Path) -> list[Path]:
        """All that is written for one image."""
        return [target, probabilities_path(target)] if self.settings.probabilities else [target]

    def segment(self, case: Case, target: Path, *, listed: bool = False) -> Path:
        """Write the segmentation of one image; `listed`: put it onto the list of its folder, once there will be one."""
        model = self.model
        _require_channels(case, model)
        modality = tuple(f"channel {index}" for index in range(model.channels))
        settings = self.settings
        data = DataSet(self.source, "csv", model.classes, modality, (case,), settings.spacing_from)
        volume = load_volume(case, data)
        if model.config.data.dims == 2 and cut_across(model.preprocess.orientation, volume):
            sentence = (
                f"{case.image[0]}: its slices lie across those of the training images, or more than 45 degrees off"
            )
            tell("note", sentence, level=logging.WARNING, case=case.name)
        with writing(target, GO_ON):
            if listed:
                note_written(target.parent, *(file.name for file in self.files(target)))
            beside = probabilities_path(target) if settings.probabilities else None
            label = _segment(model, volume, settings.flips, beside)
            keep_largest(label, self.one_part)
            save_segmentation(target, label, like=case.image[0], classes=model.classes)
        return target


def _segment_folder(
    work: _Work,
    targets: Mapping[Case, Path],
    todo: Sequence[Case],
    record: Record,
    out: Path,
    progress: Callable[[int, int], None] | None,
) -> Predictions:
    """Segment the cases to do, and go on after each that fails."""
    written: list[Path] = []
    failures: list[InputError] = []
    before, total = len(targets) - len(todo), len(targets)
    pace = Pace(total, before)
    for done, case in enumerate(todo, start=before + 1):
        target, begin = targets[case], time.perf_counter()
        try:
            with writing(out, GO_ON), fitting(case.image[0]):
                written.append(work.segment(case, target, listed=True))
                record.add(out, case)
        except WriteError:
            raise
        except InputError as error:
            failures.append(error)
            tell("failure", str(error), level=logging.WARNING, case=case.name, image=str(case.image[0]))
        else:
            seconds = time.perf_counter() - begin
            sentence = f"{done}/{total} {target} in {seconds:.1f} s, {pace.left(done)} left"
            tell("segmented", sentence, case=case.name, file=str(target), seconds=round(seconds, 3), done=done)
        if progress is not None:
            progress(done, total)
    open_before = set(todo)
    kept = tuple(target for case, target in targets.items() if case not in open_before)
    return Predictions(tuple(written), kept, tuple(failures))


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


def _look_like_channels(cases: Sequence[Case]) -> str | None:
    """The first images that are called like nnU-Net's channels of one case, if all with its number are."""
    found: dict[str, list[str]] = {}
    for case in cases:
        split = _CHANNEL.fullmatch(case.name)
        if split and any(letter.isdigit() for letter in split["case"]):  # else 0000 is the number of the case
            found.setdefault(split["case"], []).append(split["number"])
    for name, numbers in found.items():
        if len(numbers) > 1 and numbers == [f"{number:04}" for number in range(len(numbers))]:
            return f"{name}_{numbers[0]} and {name}_{numbers[1]}"
    return None


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
        if out.resolve() == source.resolve():
            cure = "name another folder: the segmentations have the names of the images"
            raise InputError("--out", rule="another folder than --input", got=out, cure=cure)
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
    return [target]


def _refuse_shared(files: Sequence[Path]) -> None:
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        cure = "move one of the images to another folder, or leave --probabilities out"
        raise InputError(twice[0], rule="each image has files of its own", got="two with this one", cure=cure)


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
