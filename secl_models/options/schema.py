# SPDX-License-Identifier: Apache-2.0
"""Every option of a run, declared once: frozen dataclasses that check themselves; presets fill them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from secl_models.options import spacing as spacing_rule
from secl_models.options.checks import refuse, require_axes, require_choice, require_positive, require_range
from secl_models.options.errors import InputError
from secl_models.options.methods import DEFAULT, METHODS
from secl_models.options.plain import dotted_names, from_plain, refuse_unknown, to_plain
from secl_models.options.recipes import CentroidConfig, DisagreementConfig, PrototypeConfig
from secl_models.options.smp import SMP
from secl_ops.spec import BACKENDS, DENOMINATORS, STRATEGIES

PRESETS = Path(__file__).resolve().parent / "presets"

NORMALIZE = ("auto", "volume", "slice", "window")
# What yaml raises beside its own: no file, a date that there is not, a nest of brackets, a tag without its value.
NO_VALUE = (OSError, ValueError, RecursionError, AttributeError, TypeError)
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class DataConfig:
    """How images become network input.

    `data.preprocess.resolve` chooses an empty `spacing` or `patch` and what `"auto"` means from the labelled
    volumes.
    """

    dims: int = 2  # 2: slices along the last axis; 3: patches
    size: tuple[int, ...] | None = (
        None  # every slice is resized to this grid (SSL4MIS protocol); None: `spacing` decides
    )
    spacing: tuple[float, ...] | None = None  # mm; in-plane (2-D) or full (3-D) target spacing; None: the files' own
    # What counts where the affine and pixdim of a NIfTI header disagree; auto: such a file is refused.
    spacing_from: str = spacing_rule.AUTO
    patch: tuple[int, ...] = (128, 128)  # voxels of the resampled grid that one sample shows
    window: tuple[float, float] | None = None  # CT: clip to these Hounsfield units first
    normalize: str = "auto"  # zero mean and unit variance over a volume, over each slice, or fixed by the window
    foreground: float = 0.0  # share of labelled samples centred on a labelled voxel
    # Directions of three axes, like which every volume is turned; []: as most labelled volumes lie; null: as stored.
    orientation: tuple[float, ...] | None = ()

    def __post_init__(self) -> None:
        require_choice("data.dims", self.dims, (2, 3))
        require_choice(spacing_rule.KEY, self.spacing_from, spacing_rule.CHOICES)
        require_choice("data.normalize", self.normalize, NORMALIZE)
        require_axes("data.patch", self.patch, self.dims, may_be_empty=True)
        if self.size is not None:
            require_axes("data.size", self.size, self.dims)
        if self.spacing is not None:
            require_axes("data.spacing", self.spacing, self.dims, may_be_empty=True)
        if self.size is not None and self.spacing is not None:
            refuse(
                "data.size",
                "a fixed size and a spacing exclude each other",
                (self.size, self.spacing),
                "set one to null",
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            refuse(
                "data.window",
                "two intensities, the lower first",
                self.window,
                "write [-160, 240] for soft tissue in CT",
            )
        if self.normalize == "window" and self.window is None:
            refuse("data.normalize", '"window" needs data.window', "null", "set data.window, such as [-160, 240]")
        require_range("data.foreground", self.foreground, 0, 1)
        if self.orientation is not None and len(self.orientation) not in (0, 9):
            rule = "null (as stored), [] (as most labelled volumes), or nine numbers: the directions of three axes"
            refuse("data.orientation", rule, self.orientation, "write [1,0,0, 0,1,0, 0,0,1] for RAS, for example")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images; geometry is shared by student and teacher, intensity is not."""

    flip: tuple[int, ...] = ()  # spatial axes that may be flipped: anatomy decides, so none by default
    rotate: float = 15.0  # degrees, in plane, +-
    scale: float = 0.15  # +- share
    shift: float = 0.05  # +- share of the patch
    contrast: float = 0.25  # +- share, strong view
    brightness: float = 0.25  # +- standard deviations, strong view
    noise: float = 0.1  # standard deviations, strong view
    gamma: float = 0.3  # +- in log2, strong view

    def __post_init__(self) -> None:
        if len(set(self.flip)) != len(self.flip):
            refuse("augment.flip", "each axis at most once", self.flip, "remove the repeated axis")
        require_range("augment.rotate", self.rotate, 0, 180)
        require_range("augment.scale", self.scale, 0, 0.9)
        require_range("augment.contrast", self.contrast, 0, 1)
        for name in ("shift", "brightness", "noise", "gamma"):
            require_range(f"augment.{name}", getattr(self, name), 0, math.inf)


@dataclass(frozen=True)
class NetworkConfig:
    """A MONAI network, the layer whose features are contrasted, and the projection head."""

    name: str = "unet"
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    taps: tuple[int, ...] = (2,)  # decoder levels, 0 = full resolution, 1 = stride 2, ...
    last: int = 0  # decoder level that prototypes and centroids live on
    projection: int = 128  # D, width of a contrasted row
    init: str | None = None  # file of weights that the network starts from, see `method.pretrained`
    init_digest: str = ""  # SHA-256 of that file, filled in by the run, which goes on with no other

    def __post_init__(self) -> None:
        own = ":" in self.name and not self.name.startswith(SMP)
        least = 1 if own else 3  # what MONAI's DynUNet takes
        if len(self.channels) < least or min(self.channels) < 1:
            rule = f"positive widths, at least {least} for {self.name}"
            refuse("network.channels", rule, self.channels, "write [16, 32, 64, 128]")
        levels = range(len(self.channels))
        if not self.taps or any(tap not in levels for tap in self.taps):
            rule = f"levels of network.channels, between 0 and {len(self.channels) - 1}"
            refuse("network.taps", rule, self.taps, "write [1] for the level of stride 2")
        require_range("network.last", self.last, 0, len(self.channels) - 1)
        require_range("network.projection", self.projection, 1, math.inf)

    @property
    def stride(self) -> int:
        """Voxels per element of the coarsest feature map: 2^(levels - 1); a decoder of smp lacks the coarsest level."""
        return 1 << (len(self.channels) - (not self.name.startswith(SMP)))


@dataclass(frozen=True)
class ContrastConfig:
    """The contrastive term (Zhao et al. 2021 and Chaitanya et al. 2020 name the defaults)."""

    weight: float | None = None  # of the region-aware and of the anatomical-aware term; null: what suits the method
    temperature: float = 0.1
    denominator: str = "negatives"
    per_class: int = 32  # pixels per class and image
    strategy: str = "auto"  # how anchors are drawn, half of them by "hard"; auto: what suits the method
    confidence: float = 0.95  # teacher probability above which an unlabelled pixel may be drawn
    queue: int = 256  # rows kept per class
    grid: tuple[int, ...] = (4, 4)  # region-aware: cells of the map
    partitions: int = 4  # region-aware: groups of relative slice position
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.weight is not None:
            require_range("contrast.weight", self.weight, 0, math.inf)
        require_positive("contrast.temperature", self.temperature, 0.1)
        require_choice("contrast.denominator", self.denominator, DENOMINATORS)
        require_range("contrast.per_class", self.per_class, 1, 2**31 - 1)
        require_choice("contrast.strategy", self.strategy, ("auto", *STRATEGIES))
        require_range("contrast.confidence", self.confidence, 0, 1)
        require_range("contrast.queue", self.queue, 0, math.inf)
        require_axes("contrast.grid", self.grid, len(self.grid))
        require_range("contrast.partitions", self.partitions, 1, 2**31 - 1)
        require_choice("contrast.backend", self.backend, BACKENDS)

    def weight_of(self, method: str) -> float:
        """The weight under a method."""
        return METHODS[method].weight if self.weight is None else self.weight

    def strategy_of(self, method: str) -> str:
        """How anchors are drawn under a method."""
        return METHODS[method].strategy if self.strategy == "auto" else self.strategy

    def settled(self, method: str) -> ContrastConfig:
        """With what is open as it suits a method; open still for one that does not hear it."""
        if not METHODS[method].contrasts:
            return self
        return replace(self, weight=self.weight_of(method), strategy=self.strategy_of(method))


@dataclass(frozen=True)
class MixConfig:
    """Copy-paste between labelled and unlabelled images (Bai et al. 2023 name weight, side and confidence)."""

    weight: float = 0.5  # of the pseudo-labelled part; that of the labelled part is 1
    side: float = 2 / 3  # share of each side of the patch that the box covers
    confidence: float = 0.0  # teacher probability from which a pseudo-label counts
    whole: float = 0.5  # share of the student's images that are shown whole, half labelled and half unlabelled ones
    largest: bool = False  # keep only the largest part of each structure of a pseudo-labelled image

    def __post_init__(self) -> None:
        require_range("mix.weight", self.weight, 0, math.inf)
        if not 0 < self.side < 1:
            refuse("mix.side", "above 0 and below 1", self.side, "write 0.667")
        require_range("mix.confidence", self.confidence, 0, 1)
        require_range("mix.whole", self.whole, 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """Schedule, optimiser and bookkeeping."""

    method: str = DEFAULT
    steps: int = 1000
    batch: int = 8  # labelled images of a step, over all processes
    unlabeled_batch: int = 4
    lr: float = 5e-3
    weight_decay: float = 1e-4
    decay: float = 0.99  # of the moving average
    warm_start: float = 0.15  # share of the steps on labels only, before the teacher is listened to
    ramp: float = 0.1  # share of the steps over which the unlabelled terms grow
    consistency: float = 5.0  # mean-teacher weight
    validate_every: int = 200
    checkpoint_every: int = 200
    device: str = "auto"
    precision: str = "auto"  # auto: bf16-mixed on CUDA, 32-true on a CPU
    compile: bool = False
    threads: int = 0  # 0: torch decides

    def __post_init__(self) -> None:
        require_choice("train.method", self.method, METHODS)
        if METHODS[self.method].mixes:
            require_range(f"train.unlabeled_batch of {self.method}", self.unlabeled_batch, 1, math.inf)
        for name in ("steps", "batch", "validate_every", "checkpoint_every"):
            require_range(f"train.{name}", getattr(self, name), 1, math.inf)
        for name in ("unlabeled_batch", "weight_decay", "consistency", "threads"):
            require_range(f"train.{name}", getattr(self, name), 0, math.inf)
        require_positive("train.lr", self.lr, 0.005)
        for name in ("decay", "warm_start", "ramp"):
            require_range(f"train.{name}", getattr(self, name), 0, 1)
        require_choice("train.precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class RunConfig:
    """One run, whole; echoed into its folder and into every checkpoint."""

    preset: str = "default"
    labeled: int = 4  # labelled cases
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    prototype: PrototypeConfig = field(default_factory=PrototypeConfig)
    centroid: CentroidConfig = field(default_factory=CentroidConfig)
    disagreement: DisagreementConfig = field(default_factory=DisagreementConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require_range("labeled", self.labeled, 1, math.inf)
        require_range("seed", self.seed, 0, math.inf)
        dims, stride, patch = self.data.dims, self.network.stride, self.data.patch
        if any(length % stride for length in patch) or (patch and max(patch) == stride):
            levels = len(self.network.channels)
            rule = f"multiples of {stride}, the stride of {levels} levels, and not {stride} on every axis"
            nearest = [stride * max(2, round(length / stride)) for length in patch]
            refuse("data.patch", rule, patch, f"write {nearest} or fewer network.channels")
        if any(axis not in range(dims) for axis in self.augment.flip):
            refuse(
                "augment.flip",
                f"axes between 0 and {dims - 1}",
                self.augment.flip,
                "name spatial axes, without the channel",
            )
        if len(self.contrast.grid) != dims:
            refuse(
                "contrast.grid",
                f"{dims} counts, one for each spatial axis",
                self.contrast.grid,
                f"write {[4] * dims}",
            )
        self._require_contrast(METHODS[self.train.method].terms)

    def _require_contrast(self, terms: tuple[str, ...]) -> None:
        """Refuse a grid that is finer than the coarsest map it is pooled from, and a half of one anchor."""
        most = [length // 2 ** max(self.network.taps) for length in self.data.patch]
        if "region" in terms and any(cells > length for cells, length in zip(self.contrast.grid, most, strict=False)):
            rule = f"no finer than the map of network.taps {list(self.network.taps)}, {most}"
            refuse("contrast.grid", rule, self.contrast.grid, "write a coarser grid, or lower levels into network.taps")
        hard = "anatomical" in terms and self.contrast.strategy_of(self.train.method) == "hard"
        if hard and self.contrast.per_class < 2:
            refuse("contrast.per_class", "at least 2, half of which are hard anchors", 1, "or strategy=uniform")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_preset(name_or_path: str | Path, *, extending: tuple[str, ...] = ()) -> RunConfig:
    """Read a preset by name, or any yaml file by path, such as the `config.yaml` of a finished run.

    A preset may name another one that it `extends`, and then holds only what differs. In the file of a finished run all
    is settled: the contrast as suited its method, also for a run of another method from the same file.

    Args:
        name_or_path: The preset.
        extending: Presets that are read because each extends the next, down to this one.

    Raises:
        InputError: No such preset, broken yaml, an unknown key, or a value of the wrong type or range.

    Example:
        >>> load_preset("default").preset
        'default'
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{name_or_path}.yaml"
    if not _is_file(path):
        refuse(
            f"preset {name_or_path}",
            f"one of {', '.join(preset_names())}, or the path of a yaml file",
            "no such preset",
            "name one of these",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, *NO_VALUE) as error:
        reason = " ".join(str(error).split())
        raise InputError(path, rule="readable yaml", got=reason, cure="correct the file there") from error
    if not isinstance(values, Mapping):
        refuse(str(path), "a yaml mapping of options", type(values).__name__, "write lines such as `seed: 0`")
    return from_dict(_extended({"preset": path.stem, **values}, (*extending, str(path))))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _extended(values: Mapping[str, Any], chain: tuple[str, ...]) -> dict[str, Any]:
    """Options over those of the preset that they extend, if they name one."""
    own = {key: value for key, value in values.items() if key != "extends"}
    if "extends" not in values:
        return own
    base = values["extends"]
    if not isinstance(base, str) or len(chain) > len(set(chain)):
        refuse(f"{chain[-1]}: extends", "the name of another preset", base, "name one that does not extend this one")
    under = to_dict(load_preset(base, extending=chain))
    for key, value in own.items():
        section = under.get(key)
        under[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, Mapping) else value
    return under


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Replace options by dotted assignments, all together, values written as yaml.

    Raises:
        InputError: No `=`, an unknown key, or a value of the wrong type or range.

    Example:
        >>> override(RunConfig(), ["train.steps=200", "network.channels=[8,16,32]"]).network.channels
        (8, 16, 32)
    """
    values = to_dict(config)
    known = dotted_names(RunConfig)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            refuse(assignment, "key=value", "no =", "write train.steps=200, for example")
        if key not in known:
            refuse_unknown(key, known)
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, *NO_VALUE) as error:
            raise InputError(
                key, rule="a value in yaml", got=text, cure="write 3, 0.5, true, null or [1, 2]"
            ) from error
        *sections, name = key.split(".")
        (values[sections[0]] if sections else values)[name] = value
    return from_dict(values)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """All options as nested plain dictionaries, with lists for tuples: for yaml, json and checkpoints."""
    return to_plain(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The exact inverse of `to_dict`; options that are absent keep their defaults.

    Raises:
        InputError: An unknown key, or a value of the wrong type or range.
    """
    return from_plain(RunConfig, values)


def to_yaml(config: RunConfig) -> str:
    """All options as yaml text that `load_preset` reads back to an equal configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=110)
