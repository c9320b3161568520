# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written whole or not at all, read without running code, and checked entry by entry."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from secl_models.data.files import whole_file
from secl_models.data.preprocess import Preprocess
from secl_models.method.networks import TappedModule, build_network
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig, from_dict

FORMAT = 1
LAST, BEST = "last.pt", "best.pt"
_ENTRIES = ("format", "step", "teacher", "config", "preprocess", "classes", "channels")


@dataclass(frozen=True)
class LoadedModel:
    """A trained network as it stands in a checkpoint: the teacher's weights (or the student's), in evaluation mode."""

    network: TappedModule
    config: RunConfig
    preprocess: Preprocess
    classes: dict[int, str]  # label value in the files -> structure, in the order of the class indices 1..K
    channels: int  # image channels
    step: int  # optimiser steps done
    one_part: tuple[int, ...] | None = None  # class indices that were one part in every labelled training case

    @property
    def one_part_names(self) -> tuple[str, ...]:
        """Names of the structures that were one part in every labelled training case."""
        names = [self.classes[value] for value in sorted(self.classes)]
        return tuple(names[index - 1] for index in self.one_part or ())


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one, also after a power cut.

    Args:
        path: Target file; its folder exists.
        state: Tensors, numbers, strings, lists and dicts of these: nothing that needs code to load.

    Raises:
        OSError: The disk is full or the folder cannot be written; `path` is as it was, and nothing else is left.
    """
    with whole_file(path, durable=True) as stream:
        _serialize(state, stream)


def _serialize(state: Mapping[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(dict(state), stream)
    except RuntimeError as error:  # torch raises its own where the stream failed it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code that it may hold.

    Args:
        path: The file, or a run folder (then its last checkpoint).

    Returns:
        What `save` was given.

    Raises:
        InputError: Missing, truncated, or not a checkpoint of this program.
    """
    file = path / LAST if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            file,
            rule="an existing checkpoint or run folder",
            got="no such file",
            cure="train first, or name the folder given to `secl train --out`",
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            file,
            rule="a whole checkpoint",
            got=f"a file that torch cannot read ({_first_line(error)})",
            cure="use the run's other checkpoint (to resume from it, copy it over this one), or train again",
        ) from error
    missing = [name for name in _ENTRIES if not isinstance(state, dict) or name not in state]
    if missing or state["format"] != FORMAT:
        raise InputError(
            file,
            rule=f"a checkpoint of secl, format {FORMAT}",
            got=f"no entry {', '.join(missing)}" if missing else f"format {state['format']}",
            cure="name a file that `secl train` of this version wrote",
        )
    return dict(state)


def digest(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint, or of the last one of a run folder."""
    file = checkpoint / LAST if checkpoint.is_dir() else checkpoint
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: object) -> None:
    """Put weights into a module after comparing names and shapes, so that a mismatch reads as one sentence.

    Args:
        module: Target.
        state: Entries of its `state_dict`.
        what: The file at fault, for the message.

    Raises:
        InputError: Another network; the first three mismatching entries are named.
    """
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            what,
            rule="weights of this very network",
            got="; ".join(faults[:3]) + more,
            cure="use the configuration stored beside the checkpoint, or train again",
        )
    module.load_state_dict(state)


def load_model(path: Path, weights: str = "teacher") -> LoadedModel:
    """Load the network of a checkpoint for prediction.

    Args:
        path: A checkpoint file, or a run folder (then its last checkpoint).
        weights: Whose: "teacher" or "student".

    Returns:
        The network without its projection heads, and everything needed to feed it.

    Raises:
        InputError: Missing, truncated, or of another network.
    """
    state = load(Path(path))
    if weights not in state:
        cure = "name a checkpoint that `secl train` wrote"
        raise InputError(path, rule=f"a checkpoint with the {weights}'s weights", got="none", cure=cure)
    config = from_dict(state["config"])
    classes = {int(value): str(name) for value, name in state["classes"].items()}
    network = build_network(config.network, config.data.dims, int(state["channels"]), len(classes))
    prefix = "network."
    own = {name.removeprefix(prefix): value for name, value in state[weights].items() if name.startswith(prefix)}
    load_weights(network, own, path)
    return LoadedModel(
        network.requires_grad_(False).eval(),
        config,
        Preprocess.from_dict(state["preprocess"]),
        classes,
        int(state["channels"]),
        int(state["step"]),
        None if state.get("one_part") is None else tuple(state["one_part"]),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
