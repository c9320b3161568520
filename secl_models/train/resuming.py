# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is of the very run that is to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, from_dict, to_dict


def refuse_another_run(
    state: Mapping[str, Any], path: Path, config: RunConfig, classes: Mapping[int, str], cases: Mapping[str, list[str]]
) -> None:
    """Refuse a checkpoint of other options or data.

    Args:
        state: What the checkpoint holds.
        path: Its file, for the message.
        config: Options of the run.
        classes: Label value to structure.
        cases: Names in each part of the split.

    Raises:
        InputError: Names the options that differ, or says that the data do.
    """
    # An option that is younger than the checkpoint has its default there.
    differing = _differences(to_dict(from_dict(state["config"])), to_dict(config))
    if differing:
        raise InputError(
            path,
            rule="the configuration that the run was started with",
            got=f"other values of {differing}",
            cure="resume with the options stored in config.yaml, or name another --out",
        )
    if (state["classes"], state["cases"]) != (classes, cases):
        raise InputError(
            path,
            rule="the structures and cases that the run was started with",
            got="another data set, or cases added, removed or split otherwise",
            cure="restore the data folder, or name another --out",
        )


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Names of the options that differ; where a run may move to, such as the device, is free."""
    free = {"train.device", "train.threads", "train.checkpoint_every", "train.compile"}
    one, other = flat(stored), flat(asked)
    names = sorted((one.keys() | other.keys()) - free)
    return ", ".join(name for name in names if one.get(name) != other.get(name))
