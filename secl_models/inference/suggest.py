# SPDX-License-Identifier: Apache-2.0
"""Which patients to label next, spread over what images look like: typical ones, or those that networks disagree on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.croppad.array import ResizeWithPadOrCrop
from sklearn.cluster import KMeans
from torch import Tensor, nn

from secl_models.data.cases import Case, DataSet, as_trained
from secl_models.data.splits import load_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.evaluate import require_classes
from secl_models.inference.windows import predict_slabs, put
from secl_models.method.checkpoint import LoadedModel, load_model
from secl_models.method.output import Output
from secl_models.options.errors import InputError, fitting

DOUBT, TYPICAL = "doubt", "typical"
WAYS = (DOUBT, TYPICAL)
FEWEST = 3  # candidates for each patient that is asked for, among which looks decide
MOST_SLICES = 16  # of a volume that are looked at for its looks


@dataclass(frozen=True)
class Look:
    """One case without a label, as the networks see it.

    Attributes:
        case: The case.
        disagreement: Mean Jensen-Shannon divergence, nats, over the voxels that some network calls a structure.
        features: Mean of the first tapped map over the middle of the image, [C].
        plane: Slice along the last axis that holds most of the disagreement; 0 for an image of one slice.
        found: Class indices of the structures that some network sees.
    """

    case: Case
    disagreement: float
    features: npt.NDArray[np.float32]
    plane: int
    found: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Candidate:
    """A patient who could be labelled.

    Attributes:
        patient: Name.
        looks: Of each case.
        disagreement: Mean over the cases.
        missing: Class indices of the structures that every labelled patient has and no network sees in this one.
        group: Of alike images; None where the doubt is too small to be looked at.
        suggested: Whether to label this patient.
    """

    patient: str
    looks: tuple[Look, ...]
    disagreement: float
    missing: tuple[int, ...] = ()
    group: int | None = None
    suggested: bool = False


class Divergence(NamedTuple):
    """What the votes on one volume come to.

    Attributes:
        apart: Jensen-Shannon divergence, nats, [*spatial].
        claimed: Whether a network calls the voxel a structure, [*spatial].
        found: Class indices of the structures that some network sees.
    """

    apart: npt.NDArray[np.float32]
    claimed: npt.NDArray[np.bool_]
    found: frozenset[int]


@dataclass(frozen=True)
class Committee:
    """The networks of a checkpoint, which vote: student and teacher, each over every flip of training.

    Attributes:
        student: Last weights.
        teacher: Their moving average.
    """

    student: LoadedModel
    teacher: LoadedModel

    @property
    def votes(self) -> int:
        """How many answers there are to each image."""
        return 2 * (1 + len(self.teacher.config.augment.flip))

    @classmethod
    def of(cls, checkpoint: Path, device: torch.device) -> Committee:
        """Load both.

        Raises:
            InputError: No checkpoint, or one without the student's weights.
        """
        models = [load_model(checkpoint, weights) for weights in ("student", "teacher")]
        for model in models:
            model.network.to(device)
        return cls(*models)

    def look(self, volume: Volume) -> Look:
        """What the networks make of one volume."""
        apart, claimed, found = self.divergence(volume)
        weight = np.where(claimed, apart, 0.0)
        spread = float(weight.sum() / max(1, claimed.sum()))
        plane = int(weight.sum((0, 1)).argmax()) if weight.ndim == 3 else 0
        return Look(volume.case, spread, _features(self.teacher, volume), plane, found)

    def divergence(self, volume: Volume) -> Divergence:
        """How far the votes are apart, and what they see.

        Args:
            volume: Image [C, *spatial].
        """
        shape = volume.image.shape[1:]
        apart, claimed = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        found: set[int] = set()
        voters = [
            Flipped(model.network, axis)
            for model in (self.student, self.teacher)
            for axis in (None, *model.config.augment.flip)
        ]
        votes = [predict_slabs(voter, self.teacher.preprocess, self.teacher.config, volume) for voter in voters]
        for slabs in zip(*votes, strict=True):
            probabilities = torch.stack([slab.probabilities for slab in slabs])  # [votes, K + 1, *slab]
            classes = probabilities.argmax(1)
            found.update(classes.unique().tolist())
            values = jensen_shannon(probabilities).numpy(), (classes > 0).any(0).numpy()
            for target, value in zip((apart, claimed), values, strict=True):
                put(target, value, slabs[0].where, self.teacher.preprocess, volume)
        return Divergence(apart, claimed, frozenset(found - {0}))


class Flipped(nn.Module):
    """A network that sees its images mirrored along one axis, or as they are, and answers as they were."""

    def __init__(self, network: nn.Module, axis: int | None) -> None:
        super().__init__()
        self.network, self.axes = network, () if axis is None else (2 + axis,)

    def forward(self, x: Tensor) -> Output:
        """Logits of [B, C, *spatial] alone."""
        logits = self.network(x.flip(self.axes)).logits.flip(self.axes)
        return Output(logits, (), logits)


def jensen_shannon(probabilities: Tensor) -> Tensor:
    """H(mean of the votes) - mean of H(vote) with H(p) = - sum p log p: 0 where all agree, at most log(votes).

    Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 1991.

    Args:
        probabilities: [votes, K + 1, *spatial].

    Returns:
        [*spatial], nats.

    Example:
        >>> round(jensen_shannon(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])).item(), 4)  # log 2
        0.6931
    """
    mean_entropy: Tensor = torch.special.entr(probabilities).sum(1).mean(0)
    entropy_of_mean: Tensor = torch.special.entr(probabilities.mean(0)).sum(0)
    return (entropy_of_mean - mean_entropy).clamp_min(0)


def suggest(
    run: Path,
    data: DataSet,
    count: int,
    *,
    committee: Committee,
    by: str = DOUBT,
    seed: int = 0,
    among: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Rank the unlabelled patients of a run.

    Args:
        run: Run folder, or a checkpoint file in it.
        data: The data set that the run was trained on.
        count: Patients to suggest.
        committee: The networks of the run.
        by: One of `WAYS`, see `choose`.
        seed: Of the grouping.
        among: Patients who may be suggested; None: all without a label.
        progress: Called after each case with the number done and the number of all.

    Returns:
        All candidates, the suggested first, then those in whom most structures are missing, then by disagreement.

    Raises:
        InputError: No run, no unlabelled case, fewer unlabelled patients than asked for, or another way.
    """
    require_way(by)
    return choose(candidates(run, data, count, committee=committee, among=among, progress=progress), count, by, seed)


def candidates(
    run: Path,
    data: DataSet,
    count: int,
    *,
    committee: Committee,
    among: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Look at the unlabelled patients of a run, of whom `choose` then takes some; arguments and errors of `suggest`."""
    data = as_trained(data, committee.teacher.config.data.spacing_from)
    require_classes(committee.teacher, data, run)
    split = load_split((run if run.is_dir() else run.parent) / "split.json", data)
    labeled = {case.patient for case in split.labeled}  # of whom other images may have no label
    cases = [
        case for case in split.unlabeled if case.patient not in labeled and (among is None or case.patient in among)
    ]
    patients = list(dict.fromkeys(case.patient for case in cases))
    if not 1 <= count <= len(patients):
        rule = f"between 1 and the {len(patients)} patients of the run without a label"
        raise InputError("--count", rule=rule, got=count, cure="ask for fewer, or add images without a label")
    looks: dict[str, list[Look]] = {}
    for done, case in enumerate(cases, start=1):
        with fitting(case.image[0]):
            looks.setdefault(case.patient, []).append(committee.look(load_volume(case, data)))
        if progress is not None:
            progress(done, len(cases))
    expected = _in_every_patient(split.labeled, data)
    return [candidate_of(patient, found, expected) for patient, found in looks.items()]


def candidate_of(patient: str, looks: Sequence[Look], expected: Collection[int] = ()) -> Candidate:
    """A patient with the mean disagreement over the cases, and what is seen in none of them.

    Args:
        patient: Name.
        looks: Of each case.
        expected: Class indices of the structures that a patient has.
    """
    found = frozenset[int]().union(*(look.found for look in looks))
    disagreement = float(np.mean([look.disagreement for look in looks]))
    return Candidate(patient, tuple(looks), disagreement, tuple(sorted(set(expected) - found)))


def _in_every_patient(cases: Iterable[Case], data: DataSet) -> set[int]:
    """Class indices of the structures that all patients have whose labels say whether they do."""
    shown: dict[int, dict[str, bool]] = {index: {} for index in range(1, len(data.classes) + 1)}
    for case in cases:
        label = load_volume(case, data).label
        present = set() if label is None else set(np.unique(label).tolist())
        for index in shown.keys() - set(case.unlabeled):
            shown[index][case.patient] = shown[index].get(case.patient, False) or index in present
    return {index for index, patients in shown.items() if patients and all(patients.values())}


def require_way(by: str) -> None:
    """Refuse another way of choosing than those of `WAYS`.

    Args:
        by: Its name.

    Raises:
        InputError: It is another word.
    """
    if by not in WAYS:
        raise InputError("--by", rule=" or ".join(WAYS), got=by, cure="ask for one of them")


def choose(candidates: Sequence[Candidate], count: int, by: str = DOUBT, seed: int = 0) -> list[Candidate]:
    """One patient of each of `count` groups of looks: the most typical one, or the most doubtful one.

    The groups are those of k-means on pooled features, each brought to unit variance. `typical` takes the patient
    nearest to the mean of each group, as suits the first few labels (Hacohen et al., Active Learning on a Budget, ICML
    2022). `doubt` groups the half of the patients in most doubt. Networks that overlook a structure agree: where one
    is missing, the patient is more doubtful than any disagreement makes one.

    Args:
        candidates: Patients.
        count: How many to suggest, at most as many as there are.
        by: One of `WAYS`.
        seed: Of k-means.

    Returns:
        All of them, the suggested first, then by doubt.
    """
    ranked = sorted(candidates, key=lambda each: (-len(each.missing), -each.disagreement, each.patient))
    looked, clear = _halves(ranked, count) if by == DOUBT else (ranked, [])
    groups, distances = _groups(np.stack([_pooled(each) for each in looked]), count, seed)
    order = range(len(looked)) if by == DOUBT else np.argsort(distances, kind="stable").tolist()
    first = {groups[number]: number for number in reversed(order)}
    chosen = set(first.values())
    for number in order:  # fewer groups than asked for where images are alike
        if len(chosen) < count:
            chosen.add(number)
    marked = [
        replace(each, group=group, suggested=number in chosen)
        for number, (each, group) in enumerate(zip(looked, groups, strict=True))
    ]
    return sorted([*marked, *clear], key=lambda each: not each.suggested)


def _halves(ranked: Sequence[Candidate], count: int) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
    kept = min(len(ranked), max(FEWEST * count, (len(ranked) + 1) // 2))
    return ranked[:kept], ranked[kept:]


def _groups(
    features: npt.NDArray[np.float32], count: int, seed: int
) -> tuple[list[int], npt.NDArray[np.floating[Any]]]:
    """Number of the group of each row [n, C], at most `count` groups, and its distance from the mean of the group."""
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 0, spread, 1)
    different = min(count, len(np.unique(scaled, axis=0)))
    found = KMeans(different, n_init=10, random_state=seed).fit(scaled)
    return found.labels_.tolist(), np.linalg.norm(scaled - found.cluster_centers_[found.labels_], axis=1)


def _pooled(candidate: Candidate) -> npt.NDArray[np.float32]:
    pooled: npt.NDArray[np.float32] = np.mean([look.features for look in candidate.looks], axis=0, dtype=np.float32)
    return pooled


@torch.no_grad()
def _features(model: LoadedModel, volume: Volume) -> npt.NDArray[np.float32]:
    """Mean of the first tapped map, or of the logits where none is tapped, over the middle patch, [C]."""
    options, device = model.config.data, next(model.network.parameters()).device
    image = model.preprocess.image(volume)  # [C, *grid]
    if options.dims == 3:
        images = ResizeWithPadOrCrop(options.patch)(image).unsqueeze(0)
    else:
        image = image.unsqueeze(-1) if image.ndim == 3 else image
        shown = torch.linspace(0, image.shape[-1] - 1, min(image.shape[-1], MOST_SLICES)).long()
        images = ResizeWithPadOrCrop((*options.patch, len(shown)))(image[..., shown]).movedim(-1, 0)
    output = model.network(torch.as_tensor(images).to(device))
    pooled = (*output.features, output.logits)[0].float().movedim(1, -1).flatten(0, -2).mean(0)
    found: npt.NDArray[np.float32] = np.asarray(pooled.cpu(), np.float32)
    return found
