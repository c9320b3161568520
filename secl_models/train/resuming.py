# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is of the very run that is to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from secl_models.method.pretrained import weights_digest
from secl_models.options.errors import InputError
from secl_models.options.schema import NetworkConfig, RunConfig, from_dict, load_preset, to_dict

# Where a run may move to, such as the device.
_MOVABLE = frozenset({"train.device", "train.threads", "train.checkpoint_every", "train.compile"})
_OF_THE_TEACHER = frozenset({"train.method", "train.unlabeled_batch", "train.ramp", "train.consistency"})
_OF_ALL = frozenset({"preset", "labeled", "seed", "data", "augment", "network", "train"})  # other sections are of terms


def movable(name: str) -> bool:
    """Whether an option may change while a run goes on."""
    return name in _MOVABLE


def unheard_before_the_teacher(name: str) -> bool:
    """Whether labels-only steps, and the scores of their validations, are the same whatever an option says."""
    if movable(name) or name in _OF_THE_TEACHER:
        return True
    # Validation counts the voxels of this confidence.
    return name.partition(".")[0] not in _OF_ALL and name != "contrast.confidence"


def identify(config: RunConfig, kept: Path | None) -> RunConfig:
    """The same options with the digest of the weights that the network starts from, by which runs are told apart.

    Args:
        config: Names their file, or none.
        kept: The options of the run that goes on, if one does: the weights are in it, and their file may be gone.

    Raises:
        InputError: No such file, or not the one of the digest that the options give.
    """
    network = config.network
    if network.init is None:
        return replace(config, network=replace(network, init_digest=""))
    earlier = NetworkConfig()
    if kept is not None and kept.is_file():
        earlier = load_preset(kept).network
    if earlier.init == network.init and not Path(network.init).exists():
        digest = earlier.init_digest
    else:
        digest = weights_digest(Path(network.init))
    if network.init_digest not in ("", digest):
        got, cure = f"{digest[:12]}..., not {network.init_digest[:12]}...", "restore it, or set network.init_digest=''"
        raise InputError(network.init, rule="the file whose digest the options give", got=got, cure=cure)
    return replace(config, network=replace(network, init_digest=digest))


def refuse_another_run(
    state: Mapping[str, Any],
    path: Path,
    config: RunConfig,
    classes: Mapping[int, str],
    cases: Mapping[str, list[str]],
    free: Callable[[str], bool] = movable,
) -> None:
    """Refuse a checkpoint of other options or data.

    Args:
        state: What the checkpoint holds.
        path: Its file, for the message.
        config: Options of the run.
        classes: Label value to structure.
        cases: Names in each part of the split.
        free: Says by its dotted name whether an option may differ.

    Raises:
        InputError: Names the options that differ, or says that the data do.
    """
    # An option that is younger than the checkpoint has its default there.
    differing = _differences(to_dict(from_dict(state["config"])), to_dict(config), free)
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


def _differences(stored: dict[str, Any], asked: dict[str, Any], free: Callable[[str], bool]) -> str:
    """Names of the options that differ and may not."""
    one, other = flat(stored), flat(asked)
    return ", ".join(
        name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name) and not free(name)
    )
