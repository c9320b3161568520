# SPDX-License-Identifier: Apache-2.0
"""What a user should know about a run before it starts: nothing that stops it, all of it in the summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from secl_models.data.cases import Case
from secl_models.data.orientation import cut_across
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume
from secl_models.method.device import choose_device
from secl_models.method.origin import instructions
from secl_models.options.schema import RunConfig

BF16 = "bf16-mixed"
OF_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last on AArch64
FEW_PATIENTS = 2  # of whom the scores say little about others
NEAR_ZERO, LOSS = 0.05, 0.05  # Dice of a structure that was not learned; what is more than the noise of a validation


def notes_on(
    asked: RunConfig,
    config: RunConfig,
    labeled: Sequence[Volume],
    unlabeled: Sequence[Volume],
    validation: Sequence[Case],
    classes: Mapping[int, str],
) -> tuple[str, ...]:
    """Sentences on what the data lack.

    Args:
        asked: The configuration that came.
        config: The one that the run has.
        labeled: Labelled training volumes.
        unlabeled: Unlabelled ones.
        validation: Validation cases.
        classes: Label value to structure.
    """
    notes = []
    if config.train.method != asked.train.method:
        notes.append(f"There are no unlabelled cases: {asked.train.method} trains as supervised.")
    if not validation:
        notes.append("There are no validation cases: no best checkpoint is chosen.")
    if absent := _absent(labeled, classes):
        notes.append(
            f"No labelled case shows {', '.join(absent)}: it cannot be learned. "
            "Raise --labeled, or take another --seed, which draws other cases."
        )
    across = [v.case.name for v in (*labeled, *unlabeled) if cut_across(config.data.orientation, v)]
    if config.data.dims == 2 and across:
        notes.append(
            f"{len(across)} stacks, {across[0]} first, are cut across their thick slices: these lie more than 45 "
            "degrees off those of most images, or not along the last axis. data.orientation=null keeps their own."
        )
    if _emulates(config):
        notes.append(
            f"This processor has no bf16 instructions: train.precision={BF16} takes several times as long as 32-true."
        )
    small, images = _small(config, [*labeled, *unlabeled])
    if small:
        notes.append(
            f"{small} of {images} training images fill less than half of data.patch {list(config.data.patch)}; "
            "the rest is padding, where no class is ever taught. A smaller patch is faster."
        )
    if 0 < (patients := len({case.patient for case in validation})) <= FEW_PATIENTS:
        whom = "one patient alone" if patients == 1 else f"{patients} patients alone"
        notes.append(f"Validation is on {whom}: the checkpoint that is best there need not be on others.")
    return tuple(notes)


def unlearned(dice: Mapping[str, float], untaught: Mapping[str, float]) -> tuple[str, ...]:
    """Sentences on structures that the network has not learned, or has lost, when the training is over.

    Args:
        dice: Of each structure on the validation cases, in [0, 1]; NaN where none of them shows it.
        untaught: The same at the last validation before the teacher was listened to; empty without one.
    """
    notes = []
    if missed := [name for name, value in dice.items() if value < NEAR_ZERO]:
        notes.append(
            f"Dice below {100 * NEAR_ZERO:.0f} % of {', '.join(missed)} on the validation cases: not learned. "
            "Train longer, label more cases that show it, or see in the report whether a label is at fault."
        )
    before = {name: untaught.get(name, math.nan) for name in dice if name not in missed}
    if lost := [f"{name} ({100 * old:.1f} to {100 * dice[name]:.1f} %)" for name, old in before.items()
                if old - dice[name] >= LOSS]:  # fmt: skip
        notes.append(
            f"Dice fell under the teacher: {', '.join(lost)}. It may have learned from wrong pseudo-labels. Compare "
            "--method supervised; raise train.warm_start or contrast.confidence, or label cases that show it."
        )
    return tuple(notes)


def _emulates(config: RunConfig) -> bool:
    """Whether a CPU computes bf16 that its instructions do not know; where these are not known, it is not said."""
    here = instructions()
    on_cpu = choose_device(config.train.device).type == "cpu"
    return config.train.precision == BF16 and on_cpu and bool(here) and here.isdisjoint(OF_BF16)


def _absent(labeled: Iterable[Volume], classes: Mapping[int, str]) -> list[str]:
    shown: set[int] = set()
    for volume in labeled:
        shown.update(np.unique(np.asarray(volume.label)).tolist())
    return [classes[value] for index, value in enumerate(sorted(classes), start=1) if index not in shown]


def _small(config: RunConfig, volumes: Sequence[Volume]) -> tuple[int, int]:
    preprocess, dims = Preprocess.from_config(config.data), config.data.dims
    grids = np.array([preprocess.grid(volume)[:dims] for volume in volumes])
    patch = np.array(config.data.patch)
    return int((2 * np.minimum(grids, patch).prod(1) < patch.prod()).sum()), len(grids)
