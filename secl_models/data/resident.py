# SPDX-License-Identifier: Apache-2.0
"""All training images on the device at once, and the batch of a step as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secl_models.data.batch import Batch, partition
from secl_models.data.labels import IGNORED, OPEN
from secl_models.data.preprocess import Preprocess
from secl_models.data.sampling import (
    WHOLE,
    Integers,
    Partners,
    Share,
    centred_starts,
    epoch_sequence,
    random_starts,
)
from secl_models.data.scans import scan_places
from secl_models.data.volumes import Volume
from secl_models.options.errors import InputError
from secl_models.options.schema import RunConfig

_CENTRES = 256  # labelled voxels remembered per item and class, for centring patches on them
_LABELED, _CENTRED, _UNLABELED, _PLACES, _PARTNERS, _ORDER = range(6)  # streams of randomness


class ResidentData:
    """Labelled and unlabelled volumes, preprocessed once and kept on the device.

    Every epoch shows each slice (2-D) or volume (3-D) once in a random order; the patch is cropped at random,
    or padded with zeros around the image where that is smaller. `data.foreground` of the labelled samples are
    centred on a labelled voxel, each class equally likely. Half of the unlabelled samples are partners:
    another scan in the same partition of relative slice position, a positive for region-aware contrast.

    Args:
        labeled: Volumes with labels.
        unlabeled: Volumes whose labels, if any, are never looked at; may be empty.
        config: Resolved: see `data.preprocess.resolve`.
        device: Where the data live: float32 on a CPU, float16 on a GPU.

    Raises:
        InputError: No labelled volume, one without a label, or volumes with different numbers of channels.
    """

    def __init__(
        self,
        labeled: Iterable[Volume],
        unlabeled: Iterable[Volume],
        config: RunConfig,
        device: torch.device | str,
    ) -> None:
        if not config.data.patch:
            raise ValueError("data.patch is still open: call resolve(config, data, labeled) first")
        self._seed, self._foreground = config.seed, config.data.foreground
        self._labeled = _Pool(labeled, config, torch.device(device), labeled=True)
        self._unlabeled = _Pool(unlabeled, config, torch.device(device), labeled=False)
        if not self._labeled.count:
            raise InputError("labelled cases", rule="one or more", got=0, cure="raise --labeled")
        if self._unlabeled.count and self._unlabeled.channels != self.channels:
            rule = f"unlabelled images have {self.channels} channels, as the labelled ones"
            cure = "give each case the same channels"
            raise InputError("unlabelled cases", rule=rule, got=self._unlabeled.channels, cure=cure)
        heights = torch.from_numpy(self._unlabeled.position)
        group = partition(heights, config.contrast.partitions).numpy()
        self._partners = Partners(group, self._unlabeled.scan)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self._labeled.channels

    @property
    def labeled_count(self) -> int:
        """Labelled slices (2-D) or volumes (3-D): samples of one epoch."""
        return self._labeled.count

    @property
    def unlabeled_count(self) -> int:
        """Unlabelled slices (2-D) or volumes (3-D)."""
        return self._unlabeled.count

    @property
    def unlabeled_sets(self) -> tuple[tuple[int, ...], ...]:
        """Sets of structures that labelled cases leave out; a voxel of label -2 - p is background or of the p-th."""
        return tuple(self._labeled.unlabeled_sets)

    def batch(self, step: int, labeled: int, unlabeled: int, share: Share = WHOLE) -> tuple[Batch, Batch]:
        """Draw the samples of one step: the same arguments always give the same samples.

        Args:
            step: Number of the step, from 0.
            labeled: Labelled samples of all processes; keep it fixed over a run, for epochs to be complete.
            unlabeled: Unlabelled samples, likewise; neighbours 2 i and 2 i + 1 are partners. The second batch
                is empty where there are no unlabelled data.
            share: The part that is cut here; all parts together are the samples of the step.

        Returns:
            The labelled and the unlabelled batch; the labels of the latter are 0 within its images, -1 outside.
        """
        return self._draw_labeled(step, labeled, share), self._draw_unlabeled(step, unlabeled, share)

    def _draw_labeled(self, step: int, count: int, share: Share) -> Batch:
        pool, population = self._labeled, self._labeled.with_structure
        random = np.random.default_rng((self._seed, _PLACES, step))
        # Centred samples before this step and with it: the share holds to one sample at any time.
        before, after = (int(steps * count * self._foreground) for steps in (step, step + 1))
        if not len(population):
            before = after = 0
        centred = epoch_sequence(self._seed, _CENTRED, before, after - before, population)
        anywhere = count - len(centred)
        free = epoch_sequence(self._seed, _LABELED, step * count - before, anywhere, np.arange(pool.count))
        centres = pool.structure_voxels(centred, random)
        starts = [
            centred_starts(pool.shape[centred], pool.patch, centres),
            random_starts(pool.shape[free], pool.patch, random),
        ]
        order = np.arange(count)
        if len(centred):  # in any order: a mixture goes by the place in the batch
            order = np.random.default_rng((self._seed, _ORDER, step)).permutation(count)
        own = order[share.of(count)]
        return pool.cut(np.concatenate([centred, free])[own], np.concatenate(starts)[own])

    def _draw_unlabeled(self, step: int, count: int, share: Share) -> Batch:
        pool = self._unlabeled
        if not pool.count:
            return self._labeled.cut(np.zeros(0, np.int64), np.zeros((0, pool.dims), np.int64))
        pairs = (count + 1) // 2
        random = np.random.default_rng((self._seed, _PARTNERS, step))
        leaders = epoch_sequence(self._seed, _UNLABELED, step * pairs, pairs, np.arange(pool.count))
        items = np.stack([leaders, self._partners.draw(leaders, random)], 1).reshape(-1)
        starts = random_starts(pool.shape[items], pool.patch, random)
        if pool.dims == 3:
            starts[1::2] = pool.moved_to_height(items[1::2], starts[1::2], pool.heights(items[::2], starts[::2]))
        own = share.of(count)
        return pool.cut(items[own], starts[own])


class _Pool:
    """Voxels of all items (slices or volumes) in one flat buffer, and tables that say where each item lies.

    Attributes:
        shape: Spatial shape of each item `[n, dims]`.
        scan: Number of each item's scan `[n]`, from 0.
        position: Relative position of each slice in its scan `[n]`; 0 for volumes, where the patch decides.
        with_structure: Items that hold a labelled voxel; found only where `data.foreground` asks for them.
        unlabeled_sets: Each set of structures that some volume does not label, in the order of the volumes.
    """

    def __init__(self, volumes: Iterable[Volume], config: RunConfig, device: torch.device, *, labeled: bool) -> None:
        self.dims, self.patch = config.data.dims, np.array(config.data.patch, np.int64)
        preprocess = Preprocess.from_config(config.data)
        names: list[str] = []
        shapes: list[tuple[int, ...]] = []
        images: list[Tensor] = []
        labels: list[Tensor] = []
        self.unlabeled_sets: list[tuple[int, ...]] = []
        for volume in volumes:
            image = self._in_runs(preprocess.image(volume))
            if images and len(image) != len(images[0]):
                rule = f"every image has as many channels as {names[0]}, {len(images[0])}"
                raise InputError(volume.case.name, rule=rule, got=len(image), cure="give each case the same channels")
            names.append(volume.case.name)
            shapes.append(tuple(image.shape[1:]))
            # Half precision halves the memory on a GPU; a CPU would convert every batch back.
            images.append(image.flatten(1).to(torch.float16 if device.type == "cuda" else torch.float32))
            if labeled:
                label = self._numbered(preprocess.label(volume), volume.case.unlabeled)
                labels.append(self._in_runs(label.unsqueeze(0)).flatten())
        self._index_items(np.array(shapes, np.int64).reshape(len(shapes), 3), names)
        self._image = torch.cat(images, 1).to(device) if images else torch.zeros(0, 0, device=device)  # [C, voxels]
        whole = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.uint8)
        self._label = whole.to(device) if labeled else None  # [voxels]
        self._index_structures(whole.numpy() if config.data.foreground else np.zeros(0, np.uint8))

    @property
    def count(self) -> int:
        return len(self._offset)

    @property
    def channels(self) -> int:
        return len(self._image)

    def cut(self, items: Integers, starts: Integers) -> Batch:
        """Patches of `items` `[B]` whose first voxels are `starts` `[B, dims]`, which may lie outside."""
        device = self._image.device
        table = np.concatenate([self._offset[items, None], self.shape[items], starts], 1)
        spread = _to_device(table, device).t().reshape(1 + 2 * self.dims, -1, *[1] * self.dims)
        place = torch.zeros((), dtype=torch.int64, device=device)
        inside = torch.ones((), dtype=torch.bool, device=device)
        for axis, length in enumerate(self.patch):
            view = [-1 if other == axis else 1 for other in range(self.dims)]
            voxel = spread[1 + self.dims + axis] + torch.arange(length, device=device).view(view)
            inside = inside & (voxel >= 0) & (voxel < spread[1 + axis])
            place = place * spread[1 + axis] + voxel
        place = torch.where(inside, place + spread[0], 0)  # [B, *patch]
        image = (self._image[:, place] * inside).transpose(0, 1).float().contiguous()
        label = torch.zeros_like(place) if self._label is None else self._label[place].to(torch.int64)
        label = torch.where(inside, label, IGNORED)
        return Batch(image, label, _to_device(self.heights(items, starts), device))

    def heights(self, items: Integers, starts: Integers) -> npt.NDArray[np.float32]:
        """Relative position `[B]` along the slice axis, of the slice or of the centre of a 3-D patch."""
        if self.dims == 2:
            return self.position[items]
        centre = (starts[:, 2] + self.patch[2] / 2) / self.shape[items, 2]
        last = np.nextafter(np.float32(1), np.float32(0))
        return np.asarray(np.minimum(centre.astype(np.float32), last), np.float32)

    def moved_to_height(self, items: Integers, starts: Integers, heights: npt.NDArray[np.float32]) -> Integers:
        """The starts `[B, 3]` moved along the slice axis, as near to `heights` `[B]` as the image allows."""
        wanted = np.round(heights * self.shape[items, 2] - self.patch[2] / 2).astype(np.int64)
        slack = self.shape[items, 2] - self.patch[2]
        moved = starts.copy()
        moved[:, 2] = np.where(slack >= 0, np.clip(wanted, 0, np.maximum(slack, 0)), starts[:, 2])
        return moved

    def structure_voxels(self, items: Integers, random: np.random.Generator) -> Integers:
        """One labelled voxel `[B, dims]` of each of `items`, every class of the item equally likely."""
        drawn = (random.random(len(items)) * self._voxel_count[items]).astype(np.int64)
        rest = self._voxels[self._voxel_first[items] + drawn]
        columns = []
        for axis in reversed(range(self.dims)):
            rest, column = np.divmod(rest, self.shape[items, axis])
            columns.append(column)
        return np.stack(columns[::-1], 1)

    def _numbered(self, label: Tensor, unlabeled: tuple[int, ...]) -> Tensor:
        """Open voxels with the number of the set that they may be of: -2 becomes -2 - p."""
        if not unlabeled:
            return label
        if unlabeled not in self.unlabeled_sets:
            self.unlabeled_sets.append(unlabeled)
        return torch.where(label == OPEN, OPEN - self.unlabeled_sets.index(unlabeled), label)

    def _in_runs(self, values: Tensor) -> Tensor:
        """2-D: `[C, H, W]` or `[C, H, W, S]` to `[C, S, H, W]`, so that a slice is one run of memory."""
        if self.dims == 3:
            return values
        return values.movedim(3, 1) if values.dim() == 4 else values.unsqueeze(1)

    def _index_items(self, shapes: Integers, names: list[str]) -> None:
        """Fill the tables from the shapes `[volumes, 3]` and names of all volumes in the buffer."""
        first = np.cumsum(shapes.prod(1)) - shapes.prod(1)
        scan, height, extent = scan_places(names)
        if self.dims == 3:
            self._offset, self.shape, self.scan = first, shapes, scan
            self.position = np.zeros(len(shapes), np.float32)
            return
        slices = shapes[:, 0]
        owner = np.repeat(np.arange(len(shapes)), slices)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(slices) - slices, slices)
        self.shape, self.scan = shapes[owner, 1:], scan[owner]
        self._offset = first[owner] + within * self.shape.prod(1)
        single = slices[owner] == 1  # a file of one slice: its name says how high it lies
        height, extent = (
            np.where(single, height[owner], within),
            np.where(single, extent[owner], slices[owner]),
        )
        self.position = ((height + 0.5) / extent).astype(np.float32)

    def _index_structures(self, label: npt.NDArray[Any]) -> None:
        """Remember labelled voxels of each item, as many of each class; an empty `label` remembers none."""
        kept: list[Integers] = []
        self._voxel_count = np.zeros(self.count, np.int64)
        for item, (offset, size) in enumerate(zip(self._offset, self.shape.prod(1), strict=True)):
            of_item = label[offset : offset + size]
            for value in np.unique(of_item[of_item > 0]):
                found = np.flatnonzero(of_item == value)
                kept.append(found[np.linspace(0, len(found) - 1, _CENTRES).astype(np.int64)])
                self._voxel_count[item] += _CENTRES
        self._voxels = np.concatenate(kept) if kept else np.zeros(0, np.int64)
        self._voxel_first = np.cumsum(self._voxel_count) - self._voxel_count
        self.with_structure = np.flatnonzero(self._voxel_count)


def _to_device(table: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A small table for a kernel, without waiting: only from pinned memory is a copy asynchronous."""
    host = torch.from_numpy(table)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
