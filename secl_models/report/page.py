# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML file that needs nothing else, readable on a phone and in dark mode."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secl_models.data.cases import DataSet, as_trained
from secl_models.data.files import write_text
from secl_models.data.folders import note_written, refuse_unlisted
from secl_models.data.volumes import Volume
from secl_models.inference.evaluations import load_evaluation
from secl_models.inference.metrics import DEFINITIONS, MEAN, StructureSummary, structure_names
from secl_models.inference.palette import COLOURS, GREY, colour
from secl_models.method.checkpoint import LAST, LoadedModel, load_model
from secl_models.options.errors import InputError, writing
from secl_models.report.calibration_charts import calibration_charts
from secl_models.report.elements import chart, figure, legend, number, render, score_row
from secl_models.report.extremes import chosen_volumes, contoured
from secl_models.report.features import principal_plane
from secl_models.report.pictures import line_chart, patient_chart, plane_chart
from secl_models.report.runs import Run, read_run
from secl_models.train.run_folder import CONFIG, SUMMARY

LOSSES = (
    "loss", "supervised", "consistency", "region", "anatomical", "mixed", "prototype", "centroid", "disagreement",
)  # fmt: skip


def write_report(
    runs: Sequence[Path], data: DataSet, out: Path, *, split: str = "test", scores: Path | None = None
) -> Path:
    """Write the report of a run, with other runs as baselines.

    Args:
        runs: Run folders; the first is reported, the others appear in its table.
        data: The data set that the runs were trained on.
        out: The HTML file.
        split: `test` or `val`; runs that were not evaluated on it have no scores in the table.
        scores: Folder with the first run's evaluation, where that is not its own.

    Returns:
        `out`.

    Raises:
        InputError: The first folder holds no finished run, a file of a run was edited, `out` is a file that no report
            was written to before, or the disk is full.
    """
    refuse_unlisted(out.parent, [out.name])
    found = [read_run(folder, split) for folder in runs]
    if scores is not None:
        last, best = (load_evaluation(scores, split, name) for name in ("last", "best"))
        found[0] = replace(found[0], evaluation=last, best=best)
    main = found[0]
    if not main.facts:
        cure = "let `secl train` finish, or go on with --resume"
        raise InputError(main.folder, rule="a finished run", got=f"no {SUMMARY}", cure=cure)
    names = structure_names(data.classes)
    model = load_model(main.folder / LAST)
    data = as_trained(data, model.config.data.spacing_from)
    context = {
        **_head(main, data, split),
        **_scores(found, names),
        "overlays": [],
        "charts": [*_curves(main, names), *_patients(main, names)],
        "facts": _facts(main, data),
        "configuration": _text(main.folder / CONFIG),
        "legend": legend(names, COLOURS),
        "split": split,
    }
    if main.evaluation is not None:
        volumes = chosen_volumes(main.evaluation, data, main.folder, split)
        context["overlays"] = [_overlay(model, *item) for item in volumes]
        context["charts"] += calibration_charts(main.folder, names)
        context["charts"] += _plane(model, [volume for _, _, volume in volumes], names)
    page = render("report.html.j2", context)
    with writing(out, "write the report with the same command"):
        note_written(out.parent, out.name)
        write_text(out, page)
    return out


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _head(run: Run, data: DataSet, split: str) -> dict[str, Any]:
    heading = f"{run.method} on {data.name}"
    labeled = run.facts.get("labeled")
    plural = "" if labeled == 1 else "s"
    steps, seed = run.facts.get("steps"), run.facts.get("seed")
    subtitle = f"{labeled} labelled patient{plural}, {steps} steps, seed {seed}"
    figures = []
    if run.evaluation is not None:
        mean = run.evaluation.summary[-1]
        figures += [
            figure(f"mean Dice, {split}", 100 * mean.dice[0], "%"),
            figure("mean HD95", mean.hd95[0], mean.unit),
            figure("mean ASSD", mean.assd[0], mean.unit),
            {"name": "structures missed", "value": str(mean.missed), "unit": ""},
        ]
    seconds = float(run.facts.get("seconds", math.nan))
    short = seconds < 120
    figures.append(figure("training", seconds if short else seconds / 60, "s" if short else "min"))
    figures.append(figure("peak memory", float(run.facts.get("peak_memory_mib", math.nan)) / 1024, "GiB"))
    return {"title": f"SECL: {heading}", "heading": heading, "subtitle": subtitle, "figures": figures}


def _scores(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Rows of the table, grouped by structure: last and best of the first run, last of the baselines."""
    named = [pair for place, run in enumerate(runs) for pair in run.scored(both=place == 0)]
    scored = [(title, {row.structure: row for row in evaluation.summary}) for title, evaluation in named]
    groups = [
        [_row(title, summary[name], names) for title, summary in scored if name in summary] for name in (*names, MEAN)
    ]
    means = [summary[MEAN] for _, summary in scored]
    return {
        "rows": groups if scored else [],
        "methods": len(scored),
        "patients": means[0].patients if means else 0,
        "definitions": DEFINITIONS,
        "best": any(run.best for run in runs[:1]),
        "unit": means[0].unit if means else "",
    }


def _row(title: str, summary: StructureSummary, names: Sequence[str]) -> dict[str, Any]:
    unit, known = summary.unit, summary.structure in names
    shade = colour(names.index(summary.structure) + 1) if known else ""
    dice = 100 * summary.dice[0], 100 * summary.dice[1]
    measures = [("Dice %", *dice), (f"HD95 {unit}", *summary.hd95), (f"ASSD {unit}", *summary.assd)]
    counts = [("Missed", summary.missed), ("Invented", summary.spurious), ("Absent", summary.absent)]
    return score_row(summary.structure, title, shade, measures, counts)


def _curves(run: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    losses = {name: points for name in LOSSES if (points := run.curve(name))}
    if "supervised" in losses and losses.get("loss") == losses["supervised"]:
        del losses["supervised"]
    dice = {name: points for name in names if (points := run.curve(f"dice {name}", 100))}
    charts = []
    if losses:
        svg = line_chart(losses, x="step", y="loss", colours=(GREY, *COLOURS))
        text = "The loss is what was minimised; its terms are shown before their weights."
        charts.append(chart("Training loss", text, svg, legend(losses, (GREY, *COLOURS))))
    if dice:
        svg = line_chart(dice, x="step", y="Dice (%)")
        text = "Moving-average network on the validation patients."
        charts.append(chart("Validation Dice", text, svg, legend(dice, COLOURS)))
    return [*charts, *_pseudo_labels(run, names)]


def _pseudo_labels(run: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    """How far the teacher can be trusted, and what the contrast found to learn from."""
    charts = []
    texts = {
        "coverage": ("Pseudo-label coverage", "Share of a structure's true voxels that get a confident class, any."),
        "purity": ("Pseudo-label purity", "Share of the voxels confidently called a structure that are it."),
    }
    for kind, (title, text) in texts.items():
        lines = {name: points for name in names if (points := run.curve(f"{kind} {name}", 100))}
        if lines:
            svg = line_chart(lines, x="step", y=f"{kind} (%)", limits=(-3, 103))
            charts.append(chart(title, f"{text} Validation patients.", svg, legend(lines, COLOURS)))
    shares = {"anchors with a positive": "positives", "unlabelled pixels covered": "coverage", "cells used": "cells"}
    found = {title: points for title, column in shares.items() if (points := run.curve(column, 100))}
    if found:
        skipped = [count for _, count in run.curve("skipped")]
        note = f" On average {statistics.fmean(skipped):.1f} classes a step found no positive." if skipped else ""
        svg = line_chart(found, x="step", y="share (%)", limits=(-3, 103))
        charts.append(chart("What the contrast found", f"In the training batches.{note}", svg, legend(found, COLOURS)))
    return charts


def _patients(run: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    if run.evaluation is None:
        return []
    svg = patient_chart(run.evaluation.cases, names)
    return [chart("Dice of every case", "One dot per case; the bar is the mean of the cases.", svg)]


def _facts(run: Run, data: DataSet) -> list[tuple[str, str]]:
    facts = run.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    best = facts.get("best_dice")
    listed = {
        "Data": f"{data.layout} layout, {len(data.cases)} cases, {', '.join(data.modality)}",
        "Method": run.method,
        "Parameters": f"{facts.get('parameters', 0):,}",
        "Best validation Dice": "-" if best is None else f"{100 * best:.1f} % at step {facts.get('best_step')}",
        "Machine": facts.get("machine"),
        "Commit": facts.get("commit") or "not in a checkout",
        "Versions": versions,
        "Notes": "; ".join(facts.get("notes", ())) or "none",
    }
    return [(name, str(value)) for name, value in listed.items()]


def _overlay(model: LoadedModel, rank: str, dice: float, volume: Volume) -> dict[str, str]:
    return {"rank": rank, "dice": number(100 * dice), "case": volume.case.name, "png": contoured(model, volume)}


def _plane(model: LoadedModel, volumes: Sequence[Volume], names: Sequence[str]) -> list[dict[str, Any]]:
    plane = principal_plane(model, volumes, len(names))
    if plane is None:
        return []
    text = "Principal plane of normalised feature rows of the shown cases, coloured by true class."
    named = legend(("background", *names), [colour(index) for index in range(len(names) + 1)])
    return [chart("Feature rows", text, plane_chart(*plane, names), named)]
