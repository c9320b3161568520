# SPDX-License-Identifier: Apache-2.0
"""What is refused: every option declared once, every Python-side check, and the flags an op schema carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

DENOMINATORS = ("negatives", "all")
REDUCTIONS = ("mean", "sum", "none")
STRATEGIES = ("uniform", "stratified", "hard")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BACKENDS = ("auto", "reference", "native", "triton")
WEIGHTED_KEYS = "info_nce with key_weights"  # of kernels, and of a speed, that are not those of "info_nce"


class Flag(IntFlag):
    """Bits of the `flags` argument of the contrast ops; `csrc/params.h` repeats them and a test ties the two."""

    NEGATIVES = 1  # the denominator holds negatives only; otherwise every comparable key
    SELF = 2  # the keys are the anchors and pair (i, i) is not comparable
    UNIT = 4  # every row has norm 1 or 0, so |similarity| <= scale
    ANCHOR_GRADIENT = 8
    KEY_GRADIENT = 16
    SCAN = 32  # the log-sum-exp alone and, under ANCHOR_GRADIENT, its gradient; no loss, no positives
    ORDERED = 64  # the rows of each side lie class by class already: a kernel need not sort them


class Pairs(NamedTuple):
    """Which pairs are comparable, positive and negative, in O(N + M) numbers.

    Pair (i, j) is comparable when both labels are >= 0, `exclude[i] != j` and the groups agree; a comparable pair of
    equal labels is positive when `j >= positive_start`, one of unequal labels is negative when `j < negative_stop`.
    """

    anchor_labels: Tensor  # [N] int32
    key_labels: Tensor  # [M] int32
    anchor_groups: Tensor | None  # [N] int32
    key_groups: Tensor | None  # [M] int32
    exclude: Tensor | None  # [N] int64
    positive_start: int
    negative_stop: int
    key_weights: Tensor | None = None  # [M] float above 0: how many keys each counts as


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a name that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool; got {type(value).__name__}")


def check_places(rule: str, count: int) -> None:
    """Refuse more places than 32 bits count."""
    if count >= 2**31:
        raise ValueError(f"{rule} must stay below 2^31; got {count}; ask for fewer")


def check_positive_int(name: str, value: object) -> None:
    """Refuse anything but an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


@dataclass(frozen=True)
class ContrastSpec:
    """The options of the loss; validates itself and packs to what an op schema carries."""

    temperature: float | Tensor = 0.1
    denominator: str = "negatives"
    normalize: bool = True
    reduction: str = "mean"
    backend: str = "auto"
    validate: bool = False

    def __post_init__(self) -> None:
        check_choice("denominator", self.denominator, DENOMINATORS)
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_choice("backend", self.backend, BACKENDS)
        check_bool("normalize", self.normalize)
        check_bool("validate", self.validate)
        self._check_temperature()

    def _check_temperature(self) -> None:
        if isinstance(self.temperature, Tensor):
            check_tensor("temperature", self.temperature)
            if self.temperature.numel() != 1 or self.temperature.dtype not in DTYPES:
                raise ValueError(
                    "temperature must be a float or a floating tensor of one element; got a tensor of shape "
                    f"{tuple(self.temperature.shape)} and dtype {self.temperature.dtype}"
                )
            if self.validate and not 0 < (value := float(self.temperature.detach())) < math.inf:
                raise ValueError(f"temperature must be finite and above 0; got {value}")
        elif isinstance(self.temperature, bool) or not isinstance(self.temperature, (int, float)):
            raise TypeError(
                "temperature must be a float or a one-element tensor; got " + type(self.temperature).__name__
            )
        elif not 0 < self.temperature <= torch.finfo(torch.float64).max:
            raise ValueError(f"temperature must be finite and above 0; got {self.temperature}")

    @property
    def learned(self) -> Tensor | None:
        """A temperature tensor, which is folded into the rows; None where the temperature is a number."""
        return self.temperature if isinstance(self.temperature, Tensor) else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The options that are tensors, by name."""
        return {} if self.learned is None else {"temperature": self.learned}

    @property
    def scale(self) -> float:
        """Factor on <a, k>: 1 / temperature, or 1 where a temperature tensor is folded into the rows."""
        return 1.0 if isinstance(self.temperature, Tensor) else 1.0 / float(self.temperature)

    def flags(
        self, *, shared: bool = False, anchors: bool = False, keys: bool = False, scan: bool = False,
        ordered: bool = False,
    ) -> int:  # fmt: skip
        """The `Flag` bits of a pass, as the plain number that an op schema carries and that torch.compile can trace.

        Args:
            shared: The keys are the anchors.
            anchors: Whether a gradient of the anchors is asked for.
            keys: The same of the keys.
            scan: See `Flag.SCAN`.
            ordered: See `Flag.ORDERED`.
        """
        unit = self.normalize and not isinstance(self.temperature, Tensor)
        return (
            Flag.NEGATIVES.value * (self.denominator == "negatives")
            | Flag.SELF.value * shared
            | Flag.UNIT.value * unit
            | Flag.ANCHOR_GRADIENT.value * anchors
            | Flag.KEY_GRADIENT.value * keys
            | Flag.SCAN.value * scan
            | Flag.ORDERED.value * ordered
        )


@dataclass(frozen=True)
class SampleSpec:
    """The options of the sampler; validates itself."""

    per_class: int
    num_classes: int
    ignore_index: int = -1
    strategy: str = "uniform"
    backend: str = "auto"
    validate: bool = False

    def __post_init__(self) -> None:
        check_bool("validate", self.validate)
        check_positive_int("per_class", self.per_class)
        check_positive_int("num_classes", self.num_classes)
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index must be an int; got {type(self.ignore_index).__name__}")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index must be an int64; got {self.ignore_index}")
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("backend", self.backend, BACKENDS)


def check_tensor(name: str, value: object) -> None:
    """Refuse anything but a tensor of numbers at strides: neither sparse nor nested."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else str(value.layout)
        raise TypeError(f"{name} must be dense (torch.strided); got {kind}; convert it, for example with .to_dense()")


def check_floating(name: str, values: Tensor) -> None:
    """Refuse a dtype that the operations do not compute in."""
    if values.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be floating (fp16, bf16, fp32, fp64); got {values.dtype}; cast it, for example with .float()"
        )


def check_rows(name: str, rows: Tensor, *, like: Tensor | None = None, like_name: str = "") -> None:
    """Refuse rows that are not floating [n, D], or that differ from `like` in width, dtype or device."""
    check_tensor(name, rows)
    if rows.ndim != 2:
        raise ValueError(f"{name} must have two dimensions [rows, width]; got shape {tuple(rows.shape)}")
    check_floating(name, rows)
    if rows.shape[1] < 1:
        raise ValueError(f"{name} must be at least one wide; got shape {tuple(rows.shape)}")
    if like is None:
        return
    if rows.shape[1] != like.shape[1]:
        raise ValueError(f"{name} and {like_name} must have the same width; got {rows.shape[1]} and {like.shape[1]}")
    if rows.dtype != like.dtype:
        raise TypeError(f"{name} and {like_name} must have one dtype; got {rows.dtype} and {like.dtype}; cast one")
    check_device(name, rows, like, like_name)


def check_device(name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    """Refuse two tensors on different devices."""
    if value.device != like.device:
        raise ValueError(
            f"{name} and {like_name} must be on one device; got {value.device} and {like.device}; move one with .to()"
        )


def check_integers(name: str, values: Tensor, length: int, like: Tensor, like_name: str) -> None:
    """Refuse anything but `length` integers on the device of `like`."""
    check_tensor(name, values)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers; got {values.dtype}; cast it, for example with .long()")
    _check_length(name, values, length, like, like_name)


def check_per_row(name: str, values: Tensor, rows: Tensor, rows_name: str) -> None:
    """Refuse anything but one floating number beside each row."""
    check_tensor(name, values)
    check_floating(name, values)
    _check_length(name, values, rows.shape[0], rows, rows_name)


def _check_length(name: str, values: Tensor, length: int, like: Tensor, like_name: str) -> None:
    if values.ndim != 1 or values.shape[0] != length:
        raise ValueError(f"{name} must have shape [{length}], one per row of {like_name}; got {tuple(values.shape)}")
    check_device(name, values, like, like_name)


def check_together(present: dict[str, object]) -> None:
    """Refuse one of several arguments that only make sense together."""
    missing = [name for name, value in present.items() if value is None]
    if missing and len(missing) < len(present):
        given = [name for name in present if name not in missing]
        raise ValueError(
            f"{', '.join(given)} needs {', '.join(missing)} as well; pass {' and '.join(present)} together"
        )


def check_map(name: str, features: Tensor) -> None:
    """Refuse anything but a floating feature map of rank 3 (one spatial axis) to 5 (three)."""
    check_tensor(name, features)
    if features.ndim not in (3, 4, 5):
        raise ValueError(
            f"{name} must have shape [B, D, *spatial] with 1 to 3 spatial axes; got {tuple(features.shape)}"
        )
    check_floating(name, features)


def check_like_map(name: str, value: Tensor, features: Tensor) -> None:
    """Refuse a second map that differs from `features` in width, dtype or device."""
    check_map(name, value)
    if value.shape[1] != features.shape[1]:
        raise ValueError(f"{name} must be as wide as features, {features.shape[1]}; got {value.shape[1]}")
    if value.dtype != features.dtype:
        raise TypeError(f"{name} must have the dtype of features, {features.dtype}; got {value.dtype}; cast one")
    check_device(name, value, features, "features")


def check_label_map(name: str, labels: Tensor) -> None:
    """Refuse anything but an integer label map [B, *spatial]."""
    check_tensor(name, labels)
    if labels.ndim not in (2, 3, 4):
        raise ValueError(f"{name} must have shape [B, *spatial] with 1 to 3 spatial axes; got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers; got {labels.dtype}; cast it, for example with .long()")


def check_like_labels(name: str, value: Tensor, labels: Tensor, dtype: torch.dtype | None) -> None:
    """Refuse anything but a map of the labels' shape, of this dtype or (None) of any floating one."""
    check_tensor(name, value)
    if value.dtype != dtype if dtype is not None else not value.is_floating_point():
        raise TypeError(f"{name} must be {dtype or 'floating'}; got {value.dtype}")
    if value.shape != labels.shape:
        raise ValueError(f"{name} must have the shape of labels, {tuple(labels.shape)}; got {tuple(value.shape)}")
    check_device(name, value, labels, "labels")


def check_drawn_from(labels: Tensor, eligible: Tensor | None, scores: Tensor | None) -> None:
    """Refuse maps beside the labels that do not say something about each pixel of theirs."""
    if eligible is not None:
        check_like_labels("eligible", eligible, labels, torch.bool)
    if scores is not None:
        check_like_labels("scores", scores, labels, None)


def check_head(name: str, head: object) -> None:
    """Refuse anything but a module that projects rows, or None."""
    if head is not None and not isinstance(head, torch.nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module that maps rows [n, D] to [n, P], or None; got {type(head).__name__}"
        )


def check_projection(name: str, found: object, rows: Tensor) -> None:
    """Refuse what a head made of rows [n, D], unless it is floating [n, P] beside them."""
    call = f"{name}(rows)"
    if not isinstance(found, Tensor):
        raise TypeError(f"{call} must be a torch.Tensor; got {type(found).__name__}; return the projected rows alone")
    check_tensor(call, found)
    if found.ndim != 2 or found.shape[0] != rows.shape[0] or found.shape[1] < 1:
        raise ValueError(
            f"{call} must have shape [{rows.shape[0]}, P], one row for each of {tuple(rows.shape)}; got "
            f"{tuple(found.shape)}; let {name} map rows [n, D] to [n, P]"
        )
    check_floating(call, found)
    check_device(call, found, rows, "its rows")


def check_grid(grid: Sequence[int], features: Tensor) -> None:
    """Refuse a grid that does not fit the map."""
    spatial = tuple(features.shape[2:])
    if not isinstance(grid, Sequence):
        raise TypeError(f"grid must be a sequence, one number per spatial axis; got {type(grid).__name__}")
    if len(grid) != len(spatial):
        raise ValueError(f"grid must have one number per spatial axis of features, {len(spatial)}; got {tuple(grid)}")
    for cells, size in zip(grid, spatial, strict=True):
        check_positive_int("grid", cells)
        if cells > size:
            raise ValueError(f"grid must not be finer than the map {spatial}; got {tuple(grid)}; name fewer cells")


def check_gather(normalize: object, dtype: object, unique: object) -> None:
    """Refuse options of `gather_pixels` that are no such options."""
    for name, value in (("normalize", normalize), ("unique", unique)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool; got {type(value).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype must be None or floating (fp16, bf16, fp32, fp64); got {dtype}")


def check_index(index: Tensor, features: Tensor, *, unique: bool, validate: bool) -> None:
    """Refuse an index that is not int64 [n]; its values are checked only under `validate`, since that synchronises."""
    check_tensor("index", index)
    if index.dtype != torch.int64 or index.ndim != 1:
        raise TypeError(f"index must be int64 of shape [n]; got {index.dtype} of shape {tuple(index.shape)}")
    check_device("index", index, features, "features")
    if validate and index.numel():
        pixels = features.shape[0] * math.prod(features.shape[2:])
        low, high = _extremes(index)
        if low < -1 or high >= pixels:
            raise ValueError(f"index must lie in -1..{pixels - 1} (B * prod(spatial) - 1); got {low}..{high}")
        drawn = index[index >= 0].sort().values
        twice = drawn[1:][drawn[1:] == drawn[:-1]]
        if unique and twice.numel():
            raise ValueError(
                f"index must name no pixel twice under unique=True; got {int(twice[0])} twice; pass unique=False"
            )


def _extremes(values: Tensor) -> tuple[int, int]:
    low, high = values.long().aminmax()  # torch has no minimum of unsigned integers wider than a byte
    return int(low), int(high)


def check_exclude_range(exclude: Tensor, keys: int) -> None:
    """Refuse an excluded key that does not exist; synchronises."""
    if exclude.numel():
        low, high = _extremes(exclude)
        if low < -1 or high >= keys:
            raise ValueError(f"exclude must lie in -1..{keys - 1}; got {low}..{high}")


def check_group_range(name: str, groups: Tensor) -> None:
    """Refuse groups that are no int32; synchronises."""
    if groups.numel():
        low, high = _extremes(groups)
        if low < -(2**31) or high > 2**31 - 1:
            raise ValueError(f"{name} must lie in -2147483648..2147483647; got {low}..{high}")


def check_label_range(name: str, labels: Tensor) -> None:
    """Refuse labels outside -1..2^31 - 1; synchronises."""
    if labels.numel():
        low, high = _extremes(labels)
        if low < -1 or high > 2**31 - 1:
            raise ValueError(f"{name} must lie in -1..2147483647, -1 meaning ignored; got {low}..{high}")


def check_classes(name: str, labels: Tensor, eligible: Tensor | None, options: SampleSpec) -> None:
    """Refuse labels of eligible pixels that are neither a class nor ignored; synchronises."""
    values, counts = (labels if eligible is None else labels[eligible]).long().unique(return_counts=True)
    wrong = (values != options.ignore_index) & ((values < 0) | (values >= options.num_classes))
    if bool(wrong.any()):
        found = [f"{value} ({count} pixels)" for value, count in torch.stack([values, counts], 1)[wrong].tolist()]
        raise ValueError(
            f"{name} must lie in 0..{options.num_classes - 1} (num_classes - 1) or be ignore_index, "
            f"{options.ignore_index}; got {', '.join(found[:8])}{', ...' if found[8:] else ''}; set num_classes or "
            "ignore_index to fit, or leave those pixels out by eligible"
        )
