# SPDX-License-Identifier: Apache-2.0
"""Segment one image or a folder of images with a trained checkpoint, on the images' own grids."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secl_models.data.cases import Case, DataSet
from secl_models.data.folders import held, note_written, refuse_unlisted, refuse_writing_over, remove_partial, written
from secl_models.data.formats import NIFTI_SUFFIXES, file_stem, suffix_of
from secl_models.data.orientation import cut_across, directions, untold
from secl_models.data.probabilities import ProbabilityFile
from secl_models.data.stack import load_series
from secl_models.data.volumes import Volume, count_channels, load_volume
from secl_models.inference.calibrations import Calibration, calibration_of
from secl_models.inference.images import images_of, targets_of
from secl_models.inference.outputs import save
from secl_models.inference.parts import parts_to_keep
from secl_models.inference.predictions import Record, Settings, read_record, to_do
from secl_models.inference.uncertainty import Doubt, save_doubt, uncertainty_paths
from secl_models.inference.windows import Slab, put, segment_volume
from secl_models.method.checkpoint import LoadedModel, digest, load_model
from secl_models.method.device import choose_device
from secl_models.method.largest_part import keep_largest
from secl_models.options.errors import InputError, WriteError, fitting, writing
from secl_models.options.events import Pace, tell
from secl_models.options.parts import NONE
from secl_models.options.spacing import AUTO

GO_ON = "call it again: what was finished stays"
TRAINED = "trained"  # the flips that training used


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
    series: str | None = None,
    uncertainty: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Write a segmentation for every image: the image's grid and affine, the training set's label values.

    An image is turned the way the training images lay, by its affine, and its segmentation is turned back. Of a
    folder, an image that cannot be segmented does not stop the others, and a later call goes on with what is missing.
    Memory: up to 24 bytes per voxel and channel of one image at a time (float64 files; 16 for int16), and a dozen
    times the probabilities of one slab, not of the volume.

    Args:
        checkpoint: A checkpoint file or a run folder (then its last checkpoint).
        source: An image (`.nii.gz`, `.nii` or `.h5`), a folder of images, a DICOM series (its folder, or a multi-frame
            file), or a folder of such folders.
        out: The segmentation for one image: `.nii.gz` or `.nii`, `.seg.nrrd` for 3D Slicer, `.dcm` of a DICOM series;
            else a folder that gets one file per image, and `predict.json`, which says what was segmented with what.
        overwrite: Replace segmentations that exist; never an image, and of a folder only what `predict` wrote.
        device: Where the network runs: auto, cpu, cuda, or cuda: and a number.
        flips: Axes along which logits are averaged over flips, such as `0,1`, or `trained`: those of training.
        probabilities: Also write `<name>_probabilities.nii.gz`, see `probabilities_path`.
        largest_component: Keep the largest connected part of all structures, of those that are one part in every
            labelled training case (`auto`), or of none, see `keep_largest`.
        spacing_from: `data.spacing_from` of the images; "auto": that of the training.
        series: UID, number or description of the DICOM series that is meant; None: the only one.
        uncertainty: Also write `<name>_uncertainty.nii.gz`, the entropy of every voxel, and `<name>_uncertainty.json`,
            the Dice that is expected of every structure; the checkpoint must be calibrated, see `calibrate`.
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
    images = images_of(source, model.channels, series)
    cases = images.cases
    targets = dict(zip(cases, targets_of(images, source, out), strict=True))
    spacing_from = model.config.data.spacing_from if spacing_from == AUTO else spacing_from
    calibration = calibration_of(checkpoint) if uncertainty else None
    temperature = None if calibration is None else calibration.temperature
    settings = Settings(digest(checkpoint), axes, probabilities, largest_component, spacing_from, temperature)
    work = _Work(model, settings, source, parts_to_keep(largest_component, model), calibration)
    files = [file for target in targets.values() for file in work.files(target)]
    refuse_writing_over((image for case in cases for image in case.image), *files)
    _refuse_shared(files)
    if images.single:
        if not overwrite:
            _refuse_existing(files)
        model.network.to(target_device)
        sentence = f"segmenting {cases[0].what} on {target_device}"
        tell("start", sentence, device=str(target_device), checkpoint=str(checkpoint))
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
        found = _segment_folder(work, targets, todo, record, out, progress)
    return replace(found, failures=(*images.failures, *found.failures))


@dataclass(frozen=True)
class _Work:
    """What is done to each image."""

    model: LoadedModel
    settings: Settings
    source: Path
    one_part: Collection[int]  # structures of which the largest part is kept
    calibration: Calibration | None  # None: no uncertainty is asked for
    told: set[str] = field(default_factory=set)  # what is said once

    def files(self, target: Path) -> list[Path]:
        """All that is written for one image."""
        beside = [probabilities_path(target)] if self.settings.probabilities else []
        doubt = [] if self.settings.temperature is None else uncertainty_paths(target)
        return [target, *beside, *doubt]

    def segment(self, case: Case, target: Path, *, listed: bool = False) -> Path:
        """Write the segmentation of one image; `listed`: put it onto the list of its folder, once there will be one."""
        model = self.model
        _require_channels(case, model)
        modality = tuple(f"channel {index}" for index in range(model.channels))
        settings = self.settings
        data = DataSet(self.source, "csv", model.classes, modality, (case,), settings.spacing_from)
        volume = load_series(case) if case.series else load_volume(case, data)
        if model.config.data.dims == 2 and cut_across(model.preprocess.orientation, volume):
            sentence = f"{case.what}: its slices lie across those of the training images, or more than 45 degrees off"
            tell("note", sentence, level=logging.WARNING, case=case.name)
        if untold(model.preprocess.orientation, volume) and "axes" not in self.told:
            self.told.add("axes")
            tell("note", _untold(case, volume), level=logging.WARNING, case=case.name)
        with writing(target, GO_ON):
            if listed:
                note_written(target.parent, *(file.name for file in self.files(target)))
            beside = probabilities_path(target) if settings.probabilities else None
            known = self.calibration
            doubt = None if known is None else Doubt(model, volume, known.temperature, known.dice_error)
            label = _segment(model, volume, settings.flips, beside, doubt)
            keep_largest(label, self.one_part)
            if doubt is not None:
                save_doubt(doubt, label, target)
            save(target, label, volume, model.classes)
        return target


def _untold(case: Case, volume: Volume) -> str:
    """What is said of the first image that cannot be turned to those of the training."""
    told = "it does not say how its axes run (h5), and the training images did"
    if directions(volume) is not None:
        told = "training took its images as they were stored (h5, or data.orientation=null)"
    return (
        f"{case.what}: {told}, so that it is segmented as it is stored. Look at the result: "
        "an h5 file of SSL4MIS is a NIfTI image whose first two axes were exchanged."
    )


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
            with writing(out, GO_ON), fitting(case.what):
                written.append(work.segment(case, target, listed=True))
                record.add(out, case)
        except WriteError:
            raise
        except InputError as error:
            failures.append(error)
            tell("failure", str(error), level=logging.WARNING, case=case.name, image=str(case.what))
        else:
            seconds = time.perf_counter() - begin
            sentence = f"{done}/{total} {target} in {seconds:.1f} s, {pace.left(done)} left"
            tell("segmented", sentence, case=case.name, file=str(target), seconds=round(seconds, 3), done=done)
        if progress is not None:
            progress(done, total)
    open_before = set(todo)
    kept = tuple(target for case, target in targets.items() if case not in open_before)
    return Predictions(tuple(written), kept, tuple(failures))


def probabilities_path(target: Path) -> Path:
    """Where the probabilities belonging to a segmentation go: 4-D NIfTI, float32, background first.

    Args:
        target: The segmentation.

    Example:
        >>> probabilities_path(Path("seg.nii.gz")).name
        'seg_probabilities.nii.gz'
    """
    suffix = suffix_of(target) if suffix_of(target) in NIFTI_SUFFIXES else ".nii.gz"
    return target.with_name(f"{file_stem(target)}_probabilities{suffix}")


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
    found = 1 if case.series else count_channels(case.image)
    if found != model.channels:
        raise InputError(
            case.what,
            rule=f"the network takes {model.channels} image channel(s)",
            got=f"{found} channel(s)",
            cure="give the training's channels in its order: one 4-D file, or a folder of CASE_0000, CASE_0001, ...",
        )


def _segment(
    model: LoadedModel, volume: Volume, flips: tuple[int, ...], probabilities: Path | None, doubt: Doubt | None
) -> npt.NDArray[np.integer[Any]]:
    with ExitStack() as stack:
        observers = [] if doubt is None else [doubt.observe]
        if probabilities is not None:
            file = stack.enter_context(ProbabilityFile(probabilities, volume, len(model.classes) + 1))
            observers.append(
                lambda slab: put(file.array, slab.probabilities.numpy(), slab.where, model.preprocess, volume)
            )

        def observe(slab: Slab) -> None:
            for each in observers:
                each(slab)

        return segment_volume(model.network, model.preprocess, model.config, volume, flips, observe)
