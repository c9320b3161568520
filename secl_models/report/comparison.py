# SPDX-License-Identifier: Apache-2.0
"""Any runs side by side: one HTML file with their scores, their differences paired by case, and their curves."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secl_models.data.cases import DataSet, as_trained
from secl_models.data.files import write_text
from secl_models.data.folders import note_written
from secl_models.data.tables import write_table
from secl_models.data.volumes import load_volume
from secl_models.inference.evaluations import CHECKPOINTS, LARGEST
from secl_models.inference.metrics import DEFINITIONS, MEAN, StructureSummary, structure_names
from secl_models.inference.palette import COLOURS, colour
from secl_models.method.checkpoint import load_model
from secl_models.options.errors import InputError, writing
from secl_models.options.events import tell
from secl_models.report.comparison_rows import DifferenceRow, ScoreRow, difference_rows, differences_file, with_scores
from secl_models.report.comparison_targets import KIND, refuse_targets
from secl_models.report.elements import chart, legend, number, render, score_row
from secl_models.report.extremes import contoured, extreme_cases
from secl_models.report.groups import Group, Member, group_runs, read_members
from secl_models.report.pairing import MEASURES, Difference, Pairing, Side, pair_all
from secl_models.report.pictures import STYLES, interval_chart, line_chart
from secl_models.report.spread import Spread

AGAIN = "compare the runs again: what was written before stays"
_SHOWN = {"dice": "Dice points", "hd95": "HD95", "assd": "ASSD"}


def write_comparison(
    folders: Sequence[Path],
    out: Path,
    *,
    split: str = "test",
    checkpoint: str = "last",
    csv: Path | None = None,
    data: DataSet | None = None,
) -> list[Path]:
    """Write one page about any runs, each file at once.

    Args:
        folders: Run folders, of any methods, seeds and data sets, evaluated or not, finished or not.
        out: The HTML file.
        split: List of the evaluations that are compared, `test` or `val`.
        checkpoint: Whose scores: `last`, `best`, `last-largest` or `best-largest`.
        csv: File for the scores of every run; the differences go into a second one beside it.
        data: Data set of some of the runs, for pictures of their worst, median and best case.

    Returns:
        The files written.

    Raises:
        InputError: Another checkpoint, a folder holds no run, a file of a run was edited, a target holds anything but
            an earlier comparison, or the disk is full.
    """
    if checkpoint not in CHECKPOINTS:
        rule = f"one of {', '.join(CHECKPOINTS)}"
        raise InputError("--checkpoint", rule=rule, got=checkpoint, cure="choose one of these")
    tables = [] if csv is None else [csv, differences_file(csv)]
    members = read_members(folders, split, checkpoint)
    refuse_targets(folders, out, tables, data)
    _tell_unscored(members, split)
    groups = group_runs(members)
    pairings = pair_all([group.side() for group in groups])
    context = _context(groups, pairings, split, checkpoint)
    if data is not None:
        _add_pictures(context["extremes"], groups, data, checkpoint)
    page = render("comparison.html.j2", context)
    with writing(out, AGAIN):
        note_written(out.parent, out.name)
        write_text(out, page)
    if csv is not None:
        with writing(csv, AGAIN):
            for file in tables:
                note_written(file.parent, file.name)
            write_table(tables[0], ScoreRow, _score_rows(groups))
            write_table(tables[1], DifferenceRow, difference_rows(pairings))
    return [out, *tables]


def _tell_unscored(members: Sequence[Member], split: str) -> None:
    names = [member.name for member in members if member.evaluation is None]
    if names:
        sentence = f"Without scores on {split}, and listed only: {', '.join(names)}. `secl evaluate` makes them."
        tell("note", sentence, level=logging.WARNING, runs=names)


def _score_rows(groups: Sequence[Group]) -> Iterator[ScoreRow]:
    for group in groups:
        for member in group.members:
            minutes = None if member.seconds is None else member.seconds / 60
            run = ScoreRow(
                member.name, group.title, member.config.train.method, member.data, member.config.labeled,
                member.config.seed, member.steps, minutes, member.memory_mib,
            )  # fmt: skip
            yield from with_scores(run, member.evaluation)


def _context(groups: Sequence[Group], pairings: Sequence[Pairing], split: str, checkpoint: str) -> dict[str, Any]:
    runs = [member for group in groups for member in group.members]
    sets = list(dict.fromkeys(group.data for group in groups if group.data))
    place = f" on {sets[0]}" if len(sets) == 1 else f" on {len(sets)} data sets" if sets else ""
    heading = f"{_count(len(runs), 'run')}{place}"
    return {
        "kind": KIND,
        "title": f"SECL: {heading}",
        "heading": heading,
        "subtitle": f"{_count(len(groups), 'method')}; {checkpoint} checkpoint, scored on {split}",
        "split": split,
        "figures": _figures(groups, pairings),
        "key": _key(groups),
        "scores": _scores(groups),
        "over_seeds": any(len(group.evaluated) > 1 for group in groups),
        "each": _each(groups),
        "several_sets": len(sets) > 1,
        "runs": [_run(group, member) for group in groups for member in group.members],
        "machines": _said(runs, "machine"),
        "commits": _said(runs, "commit"),
        "notes": [(member.name, found) for member in runs if (found := " ".join(member.run.facts.get("notes", ())))],
        "pairings": [_pairing(pairing) for pairing in pairings if not pairing.obstacle],
        "obstacles": [(_versus(pairing), pairing.obstacle) for pairing in pairings if pairing.obstacle],
        "gains": _gains(pairings),
        "extremes": extreme_cases([group.side() for group in groups]),
        "charts": _curves(groups),
        "definitions": DEFINITIONS,
    }


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _said(runs: Sequence[Member], fact: str) -> str:
    return ", ".join(dict.fromkeys(str(found) for member in runs if (found := member.run.facts.get(fact)))) or "unknown"


def _figures(groups: Sequence[Group], pairings: Sequence[Pairing]) -> list[dict[str, str]]:
    paired = [found for pairing in pairings if (found := pairing.of("dice"))]
    clear = sum(_clear(found) for found in paired)
    shared = max((pairing.cases for pairing in pairings), default=0)
    figures = [
        ("pairs whose Dice differs", f"{clear}", f"of {len(paired)}"),
        ("cases paired at most", str(shared), ""),
        ("methods", str(len(groups)), ""),
        ("runs", str(sum(len(group.members) for group in groups)), ""),
        ("not evaluated", str(sum(len(group.members) - len(group.evaluated) for group in groups)), ""),
    ]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in figures]


def _clear(difference: Difference) -> bool:
    """Whether Student's interval leaves zero out."""
    ends = difference.patients.interval()
    return ends is not None and not ends[0] <= 0 <= ends[1]


def _stroke(place: int) -> tuple[str, str]:
    """Colour and style of the lines of a group: no two of twenty-one look alike."""
    return COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]


def _key(groups: Sequence[Group]) -> list[dict[str, str]]:
    strokes = map(_stroke, range(len(groups)))
    return [
        {"name": group.title, "colour": shade, "style": style}
        for group, (shade, style) in zip(groups, strokes, strict=True)
    ]


def _structures(groups: Sequence[Group]) -> list[str]:
    names = list(dict.fromkeys(name for group in groups for name in group.side().structures))
    return [*names, MEAN] if names else []


def _shade(groups: Sequence[Group], structure: str) -> str:
    names = _structures(groups)
    return "" if structure == MEAN else colour(names.index(structure) + 1)


def _summary(member: Member, structure: str) -> StructureSummary | None:
    found = member.evaluation.summary if member.evaluation else []
    return next((summary for summary in found if summary.structure == structure), None)


def _scores(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """A row per method, by structure: means over runs, their spread over seeds."""
    tables = []
    for structure in _structures(groups):
        rows = []
        for group in groups:
            found = [summary for member in group.evaluated if (summary := _summary(member, structure))]
            if found:
                rows.append(_group_row(group, structure, _shade(groups, structure), found))
        tables.append(rows)
    return tables


def _group_row(group: Group, structure: str, shade: str, found: Sequence[StructureSummary]) -> dict[str, Any]:
    unit = "/".join(sorted({summary.unit for summary in found}))
    names = {"dice": "Dice %", "hd95": f"HD95 {unit}", "assd": f"ASSD {unit}"}
    measures = []
    for measure, scale in MEASURES.items():
        values = [scale * getattr(summary, measure)[0] for summary in found]
        spread = Spread.of([value for value in values if math.isfinite(value)])
        deviation = None if spread is None else spread.deviation
        measures.append((names[measure], math.nan if spread is None else spread.mean, deviation or math.nan))
    missed, invented = (sum(getattr(summary, name) for summary in found) for name in ("missed", "spurious"))
    counts = [("Runs", len(found)), ("Missed", missed), ("Invented", invented)]
    return score_row(structure, group.title, shade, measures, counts)


def _each(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """A row per run, by structure: means and spread over patients."""
    members = [member for group in groups for member in group.evaluated]
    return [
        [
            _run_row(member.name, summary, _shade(groups, structure))
            for member in members
            if (summary := _summary(member, structure))
        ]
        for structure in _structures(groups)
    ]


def _run_row(name: str, summary: StructureSummary, shade: str) -> dict[str, Any]:
    titles = ("Dice %", f"HD95 {summary.unit}", f"ASSD {summary.unit}")
    pairs = zip(titles, MEASURES.items(), strict=True)
    measures = [
        (title, *(scale * value for value in getattr(summary, measure))) for title, (measure, scale) in pairs
    ]  # fmt: skip
    counts = [("Patients", summary.patients), ("Missed", summary.missed), ("Invented", summary.spurious)]
    return score_row(summary.structure, name, shade, measures, counts)


def _run(group: Group, member: Member) -> dict[str, Any]:
    planned, total = member.config.train.steps, _summary(member, MEAN)
    state = [f"stopped at {member.steps} of {planned} steps"] if member.steps < planned else []
    state += ["not evaluated"] if total is None else []
    memory = math.nan if member.memory_mib is None else member.memory_mib / 1024
    numbers = {
        "Labelled": str(member.config.labeled),
        "Seed": str(member.config.seed),
        "Steps": str(member.steps),
        "Minutes": number(math.nan if member.seconds is None else member.seconds / 60),
        "GiB": number(memory),
        "Dice %": number(math.nan if total is None else 100 * total.dice[0]),
        "HD95": number(math.nan if total is None else total.hd95[0]),
        "ASSD": number(math.nan if total is None else total.assd[0]),
    }
    return {"name": member.name, "group": group.title, "data": member.data or "unknown", "state": "; ".join(state),
            "cells": list(numbers.items())}  # fmt: skip


def _versus(pairing: Pairing) -> str:
    return f"{pairing.first.title} minus {pairing.second.title}"


def _pairing(pairing: Pairing) -> dict[str, Any]:
    structures = list(dict.fromkeys(each.structure for each in pairing.differences))
    rows = [
        {
            "structure": structure,
            "cells": [_cell(measure, pairing.of(measure, structure)) for measure in MEASURES],
        }
        for structure in structures
    ]
    return {"title": _versus(pairing), "text": _basis(pairing), "rows": rows}


def _cell(measure: str, found: Difference | None) -> dict[str, Any]:
    name = _SHOWN[measure] + ("" if measure == "dice" or found is None else f" {found.unit}")
    if found is None:
        return {"name": name, "value": "-", "student": "", "resampled": "", "seeds": "", "clear": False}
    return {
        "name": name,
        "value": f"{found.patients.mean:+.1f}",
        "student": _ends(found.patients.interval()),
        "resampled": _ends(found.resampled),
        "seeds": found.seeds.text(sign=True) if found.seeds else "",
        "clear": _clear(found),
    }


def _ends(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.1f} to {ends[1]:+.1f}"


def _basis(pairing: Pairing) -> str:
    """What a pair rests on, in words."""
    told = [f"Paired on {_count(pairing.cases, 'case')} of {_count(pairing.patients, 'patient')}."]
    if any(pairing.alone):
        ours, theirs = pairing.alone
        told.append(f"Left out: {_count(ours, 'case')} of the first alone, {_count(theirs, 'case')} of the second.")
    if pairing.seeds:
        told.append(
            f"Seed{'s' if len(pairing.seeds) > 1 else ''} {', '.join(map(str, pairing.seeds))}, which both have."
        )
    else:
        told.append(f"No seed in common: {_seeds(pairing.first)} against {_seeds(pairing.second)}.")
    if pairing.unmatched:
        told.append(f"{_count(pairing.unmatched, 'score')} in no pair: invented by one, rightly absent in the other.")
    return " ".join(told)


def _seeds(side: Side) -> str:
    return ", ".join(str(run.seed) for run in side.runs)


def _gains(pairings: Sequence[Pairing]) -> dict[str, Any] | None:
    found = [(_versus(pairing), each) for pairing in pairings if (each := pairing.of("dice"))]
    if not found:
        return None
    rows = [(name, each.patients.mean, each.patients.interval()) for name, each in found]
    text = "Mean over patients of the paired difference of all structures, with Student's 95 % interval."
    return chart("Difference in Dice", text, interval_chart(rows, x="Dice points"))


def _add_pictures(tables: Sequence[dict[str, Any]], groups: Sequence[Group], data: DataSet, checkpoint: str) -> None:
    """Under each extreme case of a data set what the first run of every method makes of it."""
    cases = {case.name: case for case in data.cases}
    found = [
        table
        for table in tables
        if table["data"] in (data.name, "") and all(row["case"] in cases for row in table["rows"])
    ]
    if not found:
        names = ", ".join(table["data"] for table in tables if table["data"]) or "unknown"
        cure = "name the folder that they were trained on"
        raise InputError("--data", rule=f"the data set of runs that have scores: {names}", got=data.name, cure=cure)
    name = checkpoint.removesuffix(LARGEST)
    for table in found:
        own = [group for group in groups if group.title in table["groups"]]
        models = [load_model(group.evaluated[0].run.folder / f"{name}.pt") for group in own]
        for row in table["rows"]:
            volume = load_volume(cases[row["case"]], as_trained(data, models[0].config.data.spacing_from))
            row["pictures"] = [contoured(model, volume, largest=name != checkpoint) for model in models]
        table["legend"] = legend(structure_names(data.classes), COLOURS)


def _curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Loss and validation Dice of every run, over steps and over minutes."""
    losses = "What each run minimised: methods add terms of their own, so that levels compare within a method alone."
    kinds = (
        ("Training loss", "loss", "loss", 1.0, losses),
        ("Validation Dice", "val_dice", "Dice (%)", 100.0, "Moving-average network on the validation patients."),
    )
    charts = []
    for title, column, label, scale, text in kinds:
        for over, unit, factor in (("step", "step", 1.0), ("seconds", "minutes of training", 1 / 60)):
            lines, strokes = {}, []
            for place, group in enumerate(groups):
                for member in group.members:
                    points = [(factor * x, y) for x, y in member.run.curve(column, scale, over=over)]
                    if points:
                        lines[member.name] = points
                        strokes.append(_stroke(place))
            if lines:
                shades, styles = zip(*strokes, strict=True)
                svg = line_chart(lines, x=unit, y=label, colours=shades, styles=styles)
                charts.append(chart(f"{title} over {'steps' if over == 'step' else 'minutes'}", text, svg))
    return charts
