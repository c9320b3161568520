# SPDX-License-Identifier: Apache-2.0
"""Methods side by side on the same cases: overlays, and the plane of their feature rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from secl_models.data.cases import DataSet, as_trained
from secl_models.data.files import whole_file
from secl_models.data.volumes import Volume
from secl_models.inference.evaluations import Evaluation, load_evaluation
from secl_models.inference.metrics import structure_names
from secl_models.inference.palette import colour
from secl_models.inference.windows import segment_volume
from secl_models.method.checkpoint import LAST, LoadedModel, load_model
from secl_models.options.errors import InputError
from secl_models.options.methods import BASELINE, short_name
from secl_models.report.extremes import chosen_volumes
from secl_models.report.features import principal_plane
from secl_models.report.pictures import contours, window
from secl_models.train.run_folder import SUMMARY, read_summary


@dataclass(frozen=True)
class _Method:
    name: str
    model: LoadedModel
    evaluation: Evaluation

    def dice(self, case: str) -> float:
        """Mean over the structures, in percent."""
        (found,) = (each for each in self.evaluation.cases if each.case == case)
        return 100 * float(np.mean([score.dice for score in found.scores if score.dice is not None]))


def draw_cases(runs: Sequence[Path], data: DataSet, out: Path, *, split: str = "test") -> list[Path]:
    """Draw the best, median and worst case of the last run under every run, and the planes of their feature rows.

    Args:
        runs: Evaluated run folders that share their split, one per method; the last chooses the cases.
        data: The data set that they were trained on.
        out: Folder, made where it is missing.
        split: `test` or `val`.

    Returns:
        The files written: overlays.png and plane.png.

    Raises:
        InputError: A folder holds no run that was evaluated on the split, or one scored on other cases.
    """
    methods = [_read(folder, split) for folder in runs]
    _require_same_cases(runs, methods)
    data = as_trained(data, methods[-1].model.config.data.spacing_from)
    chosen = chosen_volumes(methods[-1].evaluation, data, runs[-1], split)
    names = structure_names(data.classes)
    out.mkdir(parents=True, exist_ok=True)
    figures = {"overlays.png": _overlays(methods, chosen, names), "plane.png": _planes(methods, chosen, names)}
    for name, figure in figures.items():
        with whole_file(out / name) as stream:
            figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return [out / name for name in figures]


def _require_same_cases(runs: Sequence[Path], methods: Sequence[_Method]) -> None:
    scored = [{case.case for case in method.evaluation.cases} for method in methods]
    for folder, cases in zip(runs, scored, strict=True):
        if cases != scored[-1]:
            raise InputError(
                folder,
                rule=f"a run evaluated on the cases of {runs[-1]}",
                got=f"{len(cases ^ scored[-1])} cases that only one of them has",
                cure="name runs of one study with the same seed",
            )


def _read(folder: Path, split: str) -> _Method:
    evaluation = load_evaluation(folder, split) if folder.is_dir() else None
    if evaluation is None or not (folder / SUMMARY).is_file():
        raise InputError(
            folder,
            rule=f"a finished run that was evaluated on {split}",
            got="none",
            cure="keep the runs of a study with --keep-runs, or call `secl evaluate`",
        )
    method = str(read_summary(folder / SUMMARY)["method"])
    return _Method(short_name(method) if method == BASELINE else method, load_model(folder / LAST), evaluation)


def _overlays(methods: Sequence[_Method], chosen: Sequence[tuple[str, float, Volume]], names: Sequence[str]) -> Figure:
    columns = 1 + len(methods)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.8 * columns, 1.95 * len(chosen) + 0.5), layout="constrained")
        panels = figure.subplots(len(chosen), columns, squeeze=False)
        for line, (rank, _, volume) in zip(panels, chosen, strict=True):
            truth = _slices(np.asarray(volume.label))
            number = int((truth > 0).sum((0, 1)).argmax())
            _show(line[0], volume, truth, number)
            line[0].set_title("truth")
            line[0].set_ylabel(f"{rank.lower()}: {volume.case.name}", fontsize=7)
            for axes, method in zip(line[1:], methods, strict=True):
                found = segment_volume(method.model.network, method.model.preprocess, method.model.config, volume)
                _show(axes, volume, _slices(found.astype(np.int64)), number)
                axes.set_title(f"{method.name}  {method.dice(volume.case.name):.1f} %")
        _structures(figure, names)
    return figure


def _slices(label: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return label[..., None] if label.ndim == 2 else label


def _show(axes: Axes, volume: Volume, label: npt.NDArray[np.int64], number: int) -> None:
    """One slice around the structures of the truth, with the contours of a label map."""
    truth, image = _slices(np.asarray(volume.label)), np.asarray(volume.image[0])
    rows, columns = window(np.any(truth > 0, axis=2))
    view = (image[..., None] if image.ndim == 2 else image)[rows, columns, number]
    low, high = np.percentile(view, (1, 99.5))
    spacing = volume.spacing or (1.0, 1.0)
    axes.imshow(
        view.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=spacing[1] / spacing[0]
    )
    contours(axes, label[rows, columns, number].T, "solid")
    axes.set(xticks=[], yticks=[])


def _planes(methods: Sequence[_Method], chosen: Sequence[tuple[str, float, Volume]], names: Sequence[str]) -> Figure:
    volumes = [volume for _, _, volume in chosen]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(2.4 * len(methods), 2.9), layout="constrained")
        for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
            plane = principal_plane(method.model, volumes, len(names))
            axes.set(title=method.name, xticks=[], yticks=[])
            if plane is not None:
                points, index = plane
                order = np.random.default_rng(0).permutation(len(points))  # no class lies on top of the others
                axes.scatter(*points[order].T, s=5, c=[colour(each) for each in index[order]], alpha=0.7, linewidths=0)
        _structures(figure, ("background", *names), first=0)
    return figure


def _structures(figure: Figure, names: Sequence[str], first: int = 1) -> None:
    dots = [Line2D([], [], color=colour(index), lw=3) for index in range(first, first + len(names))]
    figure.legend(dots, list(names), loc="outside lower center", ncols=len(names), frameon=False)
