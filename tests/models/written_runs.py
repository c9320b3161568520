# SPDX-License-Identifier: Apache-2.0
"""Run folders that no training wrote: scores and curves of one's choice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secl_models.inference.evaluations import Evaluation, save_evaluations
from secl_models.inference.metrics import CaseScores, StructureScore
from secl_models.options.schema import load_preset, override, to_yaml
from secl_models.train.run_folder import CONFIG, HISTORY, SPLIT, SUMMARY, RunSummary, write_summary

STRUCTURES = ("ring", "core")
Scores = Mapping[tuple[str, str], Sequence[float | None]]  # patient and case -> Dice of each structure


def write_run(
    folder: Path,
    method: str = "supervised",
    seed: int = 0,
    scores: Scores | None = None,
    *,
    data: str = "hearts",
    steps: int = 20,
    unit: str = "mm",
    options: Iterable[str] = (),
    finished: bool = True,
) -> Path:
    """A folder as `secl train` and `secl evaluate` leave it, without checkpoints."""
    folder.mkdir(parents=True)
    config = override(load_preset("demo"), [f"train.method={method}", f"seed={seed}", "train.steps=20", *options])
    (folder / CONFIG).write_text(to_yaml(config))
    names = [case for _, case in scores or {}]
    (folder / SPLIT).write_text(json.dumps({"labeled": [f"{data}_l"], "unlabeled": [], "val": [], "test": names}))
    lines = [f"{step},{3 * step},{1 / step},{0.04 * step},{700 + step}" for step in range(5, steps + 1, 5)]
    (folder / HISTORY).write_text("\n".join(["step,seconds,loss,val_dice,memory_mib", *lines]) + "\n")
    if finished:
        summary = RunSummary(
            str(folder), method, config.labeled, seed, steps, 3.0 * steps, 3.0 * steps, 90.0, 0.8, steps, 0.8, 700.0,
            1000, (), {}, "abc", "cpu", data,
        )  # fmt: skip
        write_summary(folder / SUMMARY, summary)
    if scores is not None:
        cases = tuple(_case(*key, dice, unit) for key, dice in scores.items())
        save_evaluations([Evaluation("last", "test", cases, 1.0, steps)], folder, pair=True)
    return folder


def _case(patient: str, name: str, dice: Sequence[float | None], unit: str) -> CaseScores:
    return CaseScores(patient, name, tuple(_score(*pair, unit) for pair in zip(STRUCTURES, dice, strict=True)))


def _score(structure: str, dice: float | None, unit: str) -> StructureScore:
    if dice is None:
        return StructureScore(structure, None, None, None, unit, "absent")
    far = 10 * (1 - dice)
    return StructureScore(structure, dice, far, far / 4, unit, "both" if dice else "spurious")
