# SPDX-License-Identifier: Apache-2.0
"""Weights that were trained before: read without running code, and put into a network by name and shape."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secl_models.options.errors import InputError

SUFFIX = ".safetensors"
# Names under which files keep weights beside other things; of several the first counts.
CONTAINERS = ("state_dict", "model_state_dict", "model", "network_weights", "teacher", "student")
SHOWN = 3  # names of a kind
_SHARE = 0.5  # of the file's names, from which a prefix is that of all, or a part of the network is what they name
_DEEPEST = 2  # modules that such a part may lie below, as "encoder.model." does
# Plain values beside the weights of nnU-Net, DINO and others, by the names that older and newer releases pickle.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace, np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]  # fmt: skip


@dataclass(frozen=True)
class Account:
    """What of a file went into a network.

    Attributes:
        source: The file, the entry of it, and how its names were changed, in words.
        tensors: Tensors that were taken, and all of the network.
        weights: The numbers in them, and all of the network.
        absent: Names in the network that the file lacks.
        reshaped: Names of another shape in the file, with both shapes.
        left: Names in the file that the network lacks.
    """

    source: str
    tensors: tuple[int, int]
    weights: tuple[int, int]
    absent: tuple[str, ...]
    reshaped: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        tensors, weights = (f"{taken:,} of {total:,}" for taken, total in (self.tensors, self.weights))
        lines = [f"Started from {self.source}: {tensors} tensors, {weights} weights."]
        kinds = {"Not in the file": self.absent, "Of another shape": self.reshaped, "Left over in it": self.left}
        return " ".join([*lines, *(f"{kind}: {_first(names)}." for kind, names in kinds.items() if names)])


def load_pretrained(module: nn.Module, path: Path) -> Account:
    """Put those weights of a file into a network that have a name and a shape of its own.

    A prefix that at least half of the file's names share, such as `module.`, is dropped where that makes more of them
    match; weights of one part alone, such as an encoder, go into the part in which at least half of their names are.

    Args:
        module: The network; what the file lacks stays as it is.
        path: As for `read_weights`.

    Returns:
        What was taken and what was not.

    Raises:
        InputError: As for `read_weights`, or nothing matches.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "weights.pth"
        >>> torch.save({"state_dict": {"module.0.weight": torch.ones(2, 2), "module.9.bias": torch.ones(2)}}, file)
        >>> account = load_pretrained(nn.Sequential(nn.Linear(2, 2)), file)
        >>> account.tensors, account.absent, account.left
        ((1, 2), ('0.bias',), ('module.9.bias',))
    """
    found, container = read_weights(path)
    own: dict[str, Tensor] = module.state_dict()
    dropped, part = _alignment(found, own)
    pairs = {target: name for name in found if (target := _renamed(name, dropped, part)) in own}
    taken = {target: name for target, name in pairs.items() if own[target].shape == found[name].shape}
    first = _first_names(own)
    served = {first[target] for target in taken}
    reshaped = tuple(
        f"{target} {tuple(found[name].shape)} in the file, {tuple(own[target].shape)} in the network"
        for target, name in pairs.items()
        if first[target] not in served and target == first[target]
    )
    if not taken:
        raise _nothing_matches(path, found, own, reshaped)
    with torch.no_grad():
        for target, name in taken.items():
            own[target].copy_(found[name])  # into the network, of whose tensors these are views
    renamed = [f"`{container}`"] if container else []
    renamed += [f"names without `{dropped}`"] if dropped else []
    renamed += [f"as `{part}`"] if part else []
    told, each, theirs = {first[target] for target in pairs}, dict.fromkeys(first.values()), _first_names(found)
    used = {theirs[name] for name in pairs.values()}
    return Account(
        f"{path} ({', '.join(renamed)})" if renamed else str(path),
        (len(served), len(each)),
        (sum(own[name].numel() for name in served), sum(own[name].numel() for name in each)),
        tuple(name for name in each if name not in told),
        reshaped,
        tuple(name for name in dict.fromkeys(theirs.values()) if name not in used),
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and the entries that they lie under, such as `state_dict`.

    Args:
        path: `.safetensors`, or a file of `torch.save`; of a checkpoint of secl the teacher counts.

    Raises:
        InputError: No such file, one that needs code to be read, or one without tensors.
    """
    _require_file(path)
    try:
        if path.suffix == SUFFIX:
            from safetensors.torch import load_file

            values: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_PLAIN):
                values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            path,
            rule="weights that can be read without running code: .safetensors, or tensors of torch.save",
            got=_reason(error),
            cure="download it again, or save its weights alone: torch.save(model.state_dict(), FILE)",
        ) from error
    entries: list[str] = []
    while entry := next((name for name in CONTAINERS if isinstance(_entry(values, name), Mapping)), None):
        entries.append(entry)
        values = values[entry]
    named = values.items() if isinstance(values, Mapping) else ()
    found = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not found:
        known = ", ".join(list(map(str, values))[:8]) if isinstance(values, Mapping) else type(values).__name__
        cure = "save its weights alone: torch.save(model.state_dict(), FILE)"
        rule = f"tensors by name, also under {', '.join(CONTAINERS)}"
        raise InputError(path, rule=rule, got=known or "nothing", cure=cure)
    return found, ".".join(entries)


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights.

    Raises:
        InputError: No such file.
    """
    _require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        cure = "name a .pt, .pth or .safetensors file; of a run of secl its last.pt or best.pt"
        raise InputError(path, rule="an existing file of weights", got=got, cure=cure)


def _reason(error: Exception) -> str:
    """What torch says of a file that it does not read, without its advice to run the code in it."""
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return f"an object of {found[1]}, which only code can make"
    if "Weights only load failed" in str(error):
        return "a file that torch.save did not write"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _entry(values: object, name: str) -> object:
    return values.get(name) if isinstance(values, Mapping) else None


def _first_names(own: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each name the first of the same tensor: MONAI's DynUNet lists its layers twice."""
    known: dict[object, str] = {}
    return {name: known.setdefault((value.data_ptr() or name, value.shape), name) for name, value in own.items()}


def _first(names: Collection[str]) -> str:
    more = "; ..." if len(names) > SHOWN else ""
    return f"{len(names)} ({'; '.join(list(names)[:SHOWN])}{more})"


def _renamed(name: str, dropped: str, part: str) -> str:
    """The name in the network of a name in the file; none where it does not begin with what is dropped."""
    return part + name.removeprefix(dropped) if name.startswith(dropped) else ""


def _alignment(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, str]:
    """The prefix to drop from the file's names and the one to put before them, by which most weights match."""
    counts = Counter(prefix for name in found for prefix in _prefixes(name))
    shared = ["", *(prefix for prefix, count in counts.items() if count >= _SHARE * len(found))]
    parts = ["", *sorted({part for name in own for part in _prefixes(name) if part.count(".") <= _DEEPEST})]

    def matching(both: tuple[str, str]) -> tuple[int, int]:
        dropped, part = both
        targets = {target: name for name in found if (target := _renamed(name, dropped, part)) in own}
        alike = [target for target, name in targets.items() if own[target].shape == found[name].shape]
        if part and (not alike or len(targets) < _SHARE * len(found)):
            return 0, 0
        return sum(own[target].numel() for target in alike), len(targets)

    return max(((dropped, part) for part in parts for dropped in shared), key=matching)  # the first of equals


def _prefixes(name: str) -> Iterator[str]:
    """What stands before the dots of a name, each with its dot."""
    yield from (name[: place + 1] for place, letter in enumerate(name) if letter == ".")


def _nothing_matches(path: Path, found: Iterable[str], own: Collection[str], reshaped: Collection[str]) -> InputError:
    if reshaped:
        return InputError(
            path,
            rule="weights of which some have the shape of the network's",
            got=f"other shapes in {_first(reshaped)}",
            cure="choose the network that the weights are of, such as network.channels",
        )
    names = list(found)
    near = (f"{name} (nearest: {difflib.get_close_matches(name, own, 1, 0.0)[0]})" for name in names[:SHOWN])
    return InputError(
        path,
        rule="weights of which some have the name of the network's",
        got=f"{len(names)} others: {', '.join(near)}",
        cure="choose the network that the weights are of (network.name), or rename them",
    )
