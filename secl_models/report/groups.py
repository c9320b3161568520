# SPDX-License-Identifier: Apache-2.0
"""Runs that a comparison is of, and which of them are one method over several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secl_models.data.splits import read_names
from secl_models.inference.evaluations import Evaluation
from secl_models.options.errors import InputError
from secl_models.options.methods import BASELINE, METHODS
from secl_models.options.schema import ContrastConfig, RunConfig, load_preset, to_dict
from secl_models.report.pairing import Scored, Side
from secl_models.report.runs import Run, read_run
from secl_models.train.resuming import flat, movable
from secl_models.train.run_folder import CONFIG, SPLIT

_METHOD, _STEPS, _LABELED = "train.method", "train.steps", "labeled"
_FREE = frozenset({"preset", "seed", "train.validate_every"})
# Read off the labelled cases where they are left open, so that each seed may have its own.
_SETTLED = frozenset(f"data.{name}" for name in ("orientation", "spacing", "size", "patch", "normalize", "window"))
_MOST = 4  # options in a title
Options = Mapping[str, str]


@dataclass(frozen=True)
class Member:
    """A run of a comparison, and its options."""

    name: str
    run: Run
    config: RunConfig
    data: str  # name of the data set; empty where the run does not know it

    @property
    def evaluation(self) -> Evaluation | None:
        """Its scores, if it was evaluated."""
        return self.run.evaluation

    @property
    def steps(self) -> int:
        """Steps done."""
        last = self.run.rows[-1]["step"] if self.run.rows else 0
        return int(self.run.facts.get("steps", last))

    @property
    def seconds(self) -> float | None:
        """Of training, as far as it is known."""
        last = self.run.rows[-1].get("seconds") if self.run.rows else None
        found = self.run.facts.get("seconds", last)
        return float(found) if found else None

    @property
    def memory_mib(self) -> float | None:
        """Most that it held in one sitting."""
        seen = [number for _, number in self.run.curve("memory_mib")]
        return max(seen, default=self.run.facts.get("peak_memory_mib"))

    def options(self) -> Options:
        """What makes it another method than that of other runs, by dotted name."""
        found: dict[str, Any] = flat(to_dict(self.config))
        if self.evaluation is not None:
            found[_STEPS] = self.steps  # scores of a run that was stopped are those of a shorter one
        free = _FREE | self._of_the_method()
        return {name: str(value) for name, value in found.items() if not movable(name) and name not in free}

    def _of_the_method(self) -> set[str]:
        """Options of the contrast that are as they suit the method, or that it does not hear."""
        method, contrast = self.config.train.method, self.config.contrast
        if not METHODS[method].contrasts:
            return {"contrast.weight", "contrast.strategy"}
        settled, own = contrast.settled(method), ContrastConfig().settled(method)
        return {f"contrast.{name}" for name in ("weight", "strategy") if getattr(settled, name) == getattr(own, name)}


@dataclass(frozen=True)
class Group:
    """Runs of one method with equal options on one data set."""

    title: str
    members: tuple[Member, ...]

    @property
    def data(self) -> str:
        """Name of the data set, or nothing."""
        return self.members[0].data

    @property
    def evaluated(self) -> tuple[Member, ...]:
        """Those that have scores."""
        return tuple(member for member in self.members if member.evaluation is not None)

    def side(self) -> Side:
        """Its scores, to be paired with those of another."""
        found = ((member.config.seed, member.evaluation) for member in self.members)
        return Side(self.title, self.data, tuple(Scored(seed, scores) for seed, scores in found if scores is not None))


def read_members(folders: Sequence[Path], split: str, checkpoint: str) -> list[Member]:
    """The runs that are to be compared, each once.

    Args:
        folders: Run folders; the last parts of their paths name them, as many as tell them apart.
        split: List of the evaluations.
        checkpoint: Whose scores.

    Raises:
        InputError: A folder holds no run, or one whose files were edited.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    for folder in unique:
        if not (folder / CONFIG).is_file():
            got = f"a folder without {CONFIG}" if folder.is_dir() else "a file" if folder.exists() else "nothing there"
            cure = "name folders that `secl train --out` wrote"
            raise InputError(folder, rule="a run folder", got=got, cure=cure)
    runs = [read_run(folder, split, checkpoint) for folder in unique]
    return [
        Member(name, run, load_preset(run.folder / CONFIG), data)
        for name, run, data in zip(_names(unique), runs, _data_sets(runs), strict=True)
    ]


def _data_sets(runs: Sequence[Run]) -> list[str]:
    """The name of each data set; a run that does not know it has that of another one with the same cases."""
    known = {_listed(run): str(name) for run in runs if (name := run.facts.get("data"))}
    return [str(run.facts.get("data") or known.get(_listed(run), "")) for run in runs]


def _listed(run: Run) -> frozenset[str]:
    """Every case that training, validation and test were drawn from."""
    file = run.folder / SPLIT
    return frozenset(name for names in read_names(file).values() for name in names) if file.is_file() else frozenset()


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    count = 1
    while len({each[-count:] for each in parts}) < len(parts):
        count += 1
    return ["/".join(each[-count:]) for each in parts]


def group_runs(members: Sequence[Member]) -> list[Group]:
    """Runs of one data set whose options are equal, whatever their seed.

    Labels-only comes first, the others in the order of their first runs.

    Options that training reads off the labelled cases may differ between seeds; where runs of one seed differ in
    them, somebody has set them.

    Args:
        members: The runs.
    """
    drawn = _by(members, lambda options: {name: options[name] for name in options if name not in _SETTLED})
    found = []
    for together in drawn:
        seeds = [member.config.seed for member in together]
        found += [together] if len(set(seeds)) == len(seeds) else _by(together, lambda options: options)
    found.sort(key=lambda together: together[0].config.train.method != BASELINE)
    titles = _titles(found)
    return [Group(title, tuple(together)) for title, together in zip(titles, found, strict=True)]


def _by(members: Iterable[Member], choose: Any) -> list[list[Member]]:
    groups: dict[object, list[Member]] = {}
    for member in members:
        key = member.data, tuple(sorted(choose(member.options()).items()))
        groups.setdefault(key, []).append(member)
    return list(groups.values())


def _titles(groups: Sequence[Sequence[Member]]) -> list[str]:
    """The method, and what tells the group from the others of its data set."""
    several = len({members[0].data for members in groups if members[0].data}) > 1
    titles = []
    for members in groups:
        first = members[0]
        others = [each[0].options() for each in groups if each[0].data == first.data]
        place = f" on {first.data}" if several and first.data else ""
        titles.append(first.config.train.method + place + _differing(first.options(), others))
    return [_told_apart(titles, place, groups[place][0].name) for place in range(len(titles))]


def _differing(own: Options, others: Sequence[Options]) -> str:
    names = [name for name in own if name != _METHOD and any(other.get(name) != own[name] for other in others)]
    names = [name for name in names if name not in _SETTLED] or names  # what training settled, if nothing else tells
    words = {_LABELED: "{} labelled", _STEPS: "{} steps"}
    told = [words.get(name, f"{name}={{}}").format(own[name]) for name in names]
    more = [f"{len(told) - _MOST} more options"] if len(told) > _MOST else []
    return "".join(f", {part}" for part in [*told[:_MOST], *more])


def _told_apart(titles: Sequence[str], place: int, name: str) -> str:
    return titles[place] if titles.count(titles[place]) == 1 else f"{titles[place]} ({name})"
