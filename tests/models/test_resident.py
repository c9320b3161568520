# SPDX-License-Identifier: Apache-2.0
"""Batches: functions of (seed, step), every slice once an epoch, partners that fit, hidden labels hidden."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from secl_models.data.batch import Batch, partition
from secl_models.data.cases import Case
from secl_models.data.layouts import read_data_set
from secl_models.data.preprocess import resolve
from secl_models.data.resident import ResidentData
from secl_models.data.sampling import Partners, centred_starts, epoch_sequence, random_starts
from secl_models.data.splits import make_split
from secl_models.data.volumes import Volume, load_volume
from secl_models.options.errors import InputError
from secl_models.options.schema import ContrastConfig, DataConfig, NetworkConfig, RunConfig, load_preset

# A window of this width maps intensities one to one, so that a test can read off a voxel where it came from.
ROOT_12 = 12**0.5
WINDOW = (-1e6, 1e6)


def config_of(dims: int = 2, patch: tuple[int, ...] = (8, 8), foreground: float = 0.0, seed: int = 0) -> RunConfig:
    data = DataConfig(
        dims=dims, patch=patch, normalize="window", window=WINDOW, foreground=foreground, orientation=None
    )
    contrast = ContrastConfig(grid=(2,) * dims)
    return RunConfig(seed=seed, data=data, network=NetworkConfig("tests:none", (8, 16), (1,)), contrast=contrast)


def stored(image: torch.Tensor) -> torch.Tensor:
    """Intensities before the window's scaling, rounded to the whole numbers they were."""
    return (image * (WINDOW[1] - WINDOW[0]) / ROOT_12).round()


def volume_of(name: str, image: np.ndarray, label: np.ndarray | None = None) -> Volume:
    case = Case(name, name.split("_")[0], (Path(f"{name}.h5"),), None, None)
    return Volume(case, image.astype(np.float32), None if label is None else label.astype(np.int64), np.eye(4), None)


def numbered(name: str, shape: tuple[int, ...], first: int, *, with_label: bool = True) -> Volume:
    """Every voxel holds its own number, counted from `first`; its class follows from the number."""
    image = first + np.arange(np.prod(shape)).reshape(1, *shape)
    return volume_of(name, image, image[0] % 3 if with_label else None)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("image", "label", "position"))


def slices_of(batch: Batch) -> list[int]:
    """What fills each sample of a batch of constant slices."""
    return [int(value) for value in stored(batch.image).flatten(1).amax(1)]


def constant_slices(name: str, values: list[int], with_label: bool = True) -> Volume:
    image = np.broadcast_to(np.array(values), (1, 8, 8, len(values)))
    return volume_of(name, image, np.zeros((8, 8, len(values))) if with_label else None)


@pytest.fixture
def mixed() -> ResidentData:
    labeled = [numbered("a", (20, 13, 5), 1), numbered("b", (6, 30, 4), 2000)]
    unlabeled = [numbered(f"u{i}", (10, 9, 4 + i), 4000 + 1000 * i, with_label=bool(i % 2)) for i in range(4)]
    return ResidentData(labeled, unlabeled, config_of(foreground=0.5), "cpu")


def test_shapes_types_and_ranges(mixed: ResidentData) -> None:
    for batch, count in zip(mixed.batch(3, labeled=5, unlabeled=7), (5, 7), strict=True):
        assert batch.image.shape == (count, 1, 8, 8)
        assert batch.image.dtype == torch.float32
        assert batch.image.is_contiguous()
        assert batch.label.shape == (count, 8, 8)
        assert batch.label.dtype == torch.int64
        assert batch.position.dtype == torch.float32
        assert bool(((batch.position >= 0) & (batch.position < 1)).all())


def test_a_batch_depends_on_seed_and_step_only() -> None:
    labeled, unlabeled = [numbered("a", (20, 13, 5), 1)], [numbered("b", (20, 13, 5), 2000)]
    first, second = (ResidentData(labeled, unlabeled, config_of(foreground=0.5), "cpu") for _ in range(2))
    for step in (7, 3, 1000):  # in any order, and whatever was drawn before
        first.batch(step + 1, 8, 8)
        assert all(map(same, first.batch(step, 8, 8), second.batch(step, 8, 8)))
    other = ResidentData(labeled, unlabeled, config_of(foreground=0.5, seed=1), "cpu")
    assert not any(map(same, first.batch(3, 8, 8), other.batch(3, 8, 8)))
    assert not any(map(same, first.batch(3, 8, 8), first.batch(4, 8, 8)))


def test_labels_lie_on_their_voxels_and_padding_is_ignored(mixed: ResidentData) -> None:
    for step in range(20):
        batch, _ = mixed.batch(step, 8, 0)
        number = stored(batch.image).squeeze(1).long()
        padding = number == 0
        assert bool((batch.label[padding] == -1).all())
        assert torch.equal(batch.label[~padding], number[~padding] % 3)


def test_a_patch_is_a_window_of_one_slice(mixed: ResidentData) -> None:
    """Rows of volume a (20, 13, 5) differ by 13 * 5, columns by 5."""
    seen = set()
    for step in range(30):
        batch, _ = mixed.batch(step, 4, 0)
        for image in stored(batch.image)[:, 0]:
            if image.max() <= 20 * 13 * 5:
                assert set((image[1:] - image[:-1]).unique().tolist()) == {65}
                assert set((image[:, 1:] - image[:, :-1]).unique().tolist()) == {5}
                seen.add(int(image[0, 0]))
    assert len(seen) > 30  # crops at random places
    rows = {(number - 1) // 65 for number in seen}
    assert min(rows) == 0
    assert max(rows) == 12


def test_a_smaller_image_is_centred_with_the_odd_row_behind() -> None:
    data = ResidentData([volume_of("a", np.ones((1, 3, 6, 1)), np.ones((3, 6, 1)))], [], config_of(), "cpu")
    batch, _ = data.batch(0, 1, 0)
    expected = torch.full((8, 8), -1)
    expected[2:5, 1:7] = 1
    assert torch.equal(batch.label[0], expected)
    assert torch.equal(stored(batch.image)[0, 0].long() - 1, torch.where(expected == 1, 0, -1))


def test_every_slice_comes_once_an_epoch_in_changing_order() -> None:
    labeled = [constant_slices("a", [1, 2, 3, 4, 5]), constant_slices("b", [6, 7])]
    unlabeled = [constant_slices("u", [11, 12, 13, 14, 15, 16, 17], with_label=False)]
    data = ResidentData(labeled, unlabeled, config_of(), "cpu")
    assert (data.labeled_count, data.unlabeled_count, data.channels) == (7, 7, 1)
    batches = [data.batch(step, labeled=3, unlabeled=6) for step in range(14)]
    drawn = [value for batch, _ in batches for value in slices_of(batch)]
    leaders = [value for _, batch in batches for value in slices_of(batch)[::2]]
    for values, expected in ((drawn, range(1, 8)), (leaders, range(11, 18))):
        epochs = [values[start : start + 7] for start in range(0, 42, 7)]
        assert all(sorted(epoch) == list(expected) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_epochs_stay_whole_beside_centred_samples() -> None:
    image = np.broadcast_to(np.arange(1, 8), (8, 8, 7))
    data = ResidentData([volume_of("a", image[None], image < 3)], [], config_of(foreground=0.5), "cpu")
    batches = [slices_of(data.batch(step, 4, 0)[0]) for step in range(7)]
    assert all({1, 2} <= set(values) for values in batches)  # the two slices with a structure
    assert Counter(value for values in batches for value in values) == {1: 9, 2: 9, **dict.fromkeys(range(3, 8), 2)}


def test_centred_samples_take_any_place_in_a_batch() -> None:
    """For the place says what a mixture shows of a sample."""
    image = np.broadcast_to(np.arange(1, 9), (8, 8, 8))
    data = ResidentData([volume_of("a", image[None], image < 2)], [], config_of(foreground=0.5), "cpu")
    first = [slices_of(data.batch(step, 2, 0)[0])[0] == 1 for step in range(200)]
    assert 0.4 < np.mean(first) < 0.7  # of the free samples too one in eight is that slice


def test_positions_are_relative_slice_centres() -> None:
    data = ResidentData([constant_slices("a", [1, 2, 3, 4])], [], config_of(), "cpu")
    batch, _ = data.batch(0, 4, 0)
    assert {value: float(p) for value, p in zip(slices_of(batch), batch.position, strict=True)} == {
        1: 0.125, 2: 0.375, 3: 0.625, 4: 0.875,
    }  # fmt: skip


def test_files_of_one_slice_are_put_back_into_their_scans() -> None:
    names = ["patient002_frame01_slice_10", "patient002_frame01_slice_9", "patient001_frame01_slice_1",
             "patient001_frame01_slice_2", "patient002_frame01_slice_11", "lonely"]  # fmt: skip
    volumes = [volume_of(name, np.full((1, 8, 8), i + 1), np.zeros((8, 8))) for i, name in enumerate(names)]
    batch, _ = ResidentData(volumes, [], config_of(), "cpu").batch(0, 6, 0)
    found = {names[v - 1]: float(p) for v, p in zip(slices_of(batch), batch.position, strict=True)}
    assert found["patient002_frame01_slice_9"] == float(torch.tensor(1 / 6, dtype=torch.float32))
    assert found["patient002_frame01_slice_10"] == 0.5
    assert found["patient001_frame01_slice_1"] == 0.25
    assert found["patient001_frame01_slice_2"] == 0.75
    assert found["lonely"] == 0.5


def test_partners_share_the_partition_and_come_from_another_scan() -> None:
    unlabeled = [constant_slices(f"u{i}", list(range(10 * i + 1, 10 * i + 1 + n)), with_label=False)
                 for i, n in enumerate((4, 7, 9, 5))]  # fmt: skip
    data = ResidentData([constant_slices("a", [1])], unlabeled, config_of(), "cpu")
    met = Counter()  # type: ignore[var-annotated]
    for step in range(100):
        _, batch = data.batch(step, 1, 8)
        groups, scan = partition(batch.position, 4), [(value - 1) // 10 for value in slices_of(batch)]
        assert torch.equal(groups[::2], groups[1::2])
        met.update(zip(scan[::2], scan[1::2], strict=True))
    assert set(met) == set(permutations(range(4), 2))  # every ordered pair of the four scans


def test_a_single_scan_and_odd_counts_still_work() -> None:
    data = ResidentData([constant_slices("a", [1])], [constant_slices("u", [5])], config_of(), "cpu")
    first, second = data.batch(0, 3, 5)
    assert slices_of(first) == [1, 1, 1]
    assert slices_of(second) == [5, 5, 5, 5, 5]
    two = ResidentData([constant_slices("a", [1])], [constant_slices("u", [5, 6])], config_of(), "cpu")
    assert len(two.batch(0, 1, 7)[1].image) == 7


def test_without_unlabelled_data_the_second_batch_is_empty() -> None:
    data = ResidentData([constant_slices("a", [1, 2])], [], config_of(), "cpu")
    _, batch = data.batch(0, 2, 8)
    assert batch.image.shape == (0, 1, 8, 8)
    assert batch.label.shape == (0, 8, 8)
    assert len(batch.position) == 0
    assert len(data.batch(0, 2, 0)[1].image) == 0


def test_labels_of_unlabelled_cases_are_never_handed_out(mixed: ResidentData) -> None:
    for step in range(10):
        assert set(mixed.batch(step, 2, 8)[1].label.unique().tolist()) <= {-1, 0}


def test_an_unlabelled_image_says_where_it_is_padding() -> None:
    unlabeled = [volume_of("u", np.ones((1, 3, 6, 1)))]
    data = ResidentData([constant_slices("a", [1])], unlabeled, config_of(), "cpu")
    expected = torch.full((8, 8), -1)
    expected[2:5, 1:7] = 0
    assert torch.equal(data.batch(0, 1, 1)[1].label[0], expected)


@pytest.mark.parametrize("share", [0.0, 0.33, 1.0])
def test_the_share_of_centred_samples_is_exact_and_each_class_is_as_likely(share: float) -> None:
    label = np.zeros((64, 64, 6), np.int64)
    label[5:25, 10:30, 2], label[60, 60, 2] = 1, 2  # class 2 is one voxel, in a corner
    data = ResidentData([volume_of("a", label[None], label)], [], config_of(patch=(16, 16), foreground=share), "cpu")
    samples = [label for step in range(200) for label in data.batch(step, 4, 0)[0].label]
    with_two = sum(bool((label == 2).any()) for label in samples)
    with_one = sum(bool(label[8, 8] == 1) for label in samples)
    if share:
        centred = share * 800
        assert 0.4 * centred < with_two < 0.6 * centred + 0.05 * 800  # binomial, 5 standard deviations at the least
        assert 0.4 * centred < with_one < 0.6 * centred + 0.05 * 800
    else:
        assert with_two < 40


def test_centring_where_nothing_is_labelled_falls_back_to_anywhere() -> None:
    data = ResidentData([constant_slices("a", [1, 2, 3])], [], config_of(foreground=1.0), "cpu")
    assert sorted(slices_of(data.batch(0, 3, 0)[0])) == [1, 2, 3]


def test_three_dimensional_patches_know_their_height_and_partners_follow() -> None:
    config = config_of(dims=3, patch=(8, 8, 8), foreground=0.5)
    labeled = [numbered("a", (12, 10, 40), 1)]
    unlabeled = [numbered(f"u{i}", (9, 8, n), 10000 * (i + 1)) for i, n in enumerate((40, 60, 33))]
    data = ResidentData(labeled, unlabeled, config, "cpu")
    for step in range(20):
        first, second = data.batch(step, 3, 6)
        assert first.image.shape == (3, 1, 8, 8, 8)
        corner = stored(first.image)[:, 0, 0, 0, 0]
        assert torch.equal(first.position, ((corner - 1) % 40 + 4) / 40)
        assert torch.equal(stored(first.image)[:, 0].long() % 3, first.label)
        scan = stored(second.image)[:, 0, 0, 0, 0] // 10000
        assert bool((scan[::2] != scan[1::2]).all())
        apart = (second.position[::2] - second.position[1::2]).abs()
        assert apart.max() <= 4 / 33  # half a patch, where the end of the smaller scan is in the way


def test_a_volume_thinner_than_the_patch_is_padded_in_three_dimensions() -> None:
    config = config_of(dims=3, patch=(8, 8, 8))
    data = ResidentData([numbered("a", (8, 8, 4), 1)], [numbered(n, (8, 8, 4), 1) for n in "bc"], config, "cpu")
    first, second = data.batch(0, 1, 2)
    assert (first.label >= 0).sum() == 8 * 8 * 4
    assert bool((first.label[..., 2:6] >= 0).all())
    assert second.position.tolist() == [0.5, 0.5]


def test_channels_stay_apart() -> None:
    image = np.stack([np.full((8, 8, 2), 3), np.full((8, 8, 2), 900)])
    batch, _ = ResidentData([volume_of("a", image, np.zeros((8, 8, 2)))], [], config_of(), "cpu").batch(0, 2, 0)
    assert stored(batch.image).amax((0, 2, 3)).tolist() == stored(batch.image).amin((0, 2, 3)).tolist() == [3, 900]


def test_bad_data_are_named() -> None:
    good, unlabelled = constant_slices("a", [1]), constant_slices("b", [1], with_label=False)
    two_channels = volume_of("c", np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1)))
    with pytest.raises(InputError, match="labelled cases: one or more; got 0"):
        ResidentData([], [good], config_of(), "cpu")
    with pytest.raises(InputError, match="b: a labelled case has a label"):
        ResidentData([good, unlabelled], [], config_of(), "cpu")
    with pytest.raises(InputError, match="c: every image has as many channels as a, 1; got 2"):
        ResidentData([good, two_channels], [], config_of(), "cpu")
    with pytest.raises(InputError, match=r"unlabelled cases: unlabelled images have 1 channels.*; got 2"):
        ResidentData([good], [two_channels], config_of(), "cpu")
    with pytest.raises(ValueError, match="call resolve"):
        ResidentData([good], [], replace(config_of(), data=replace(config_of().data, patch=())), "cpu")


def test_partitions_cover_zero_to_one_evenly() -> None:
    position = (torch.arange(12) + 0.5) / 12
    assert partition(position, 4).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_an_epoch_sequence_reads_the_same_in_any_pieces() -> None:
    items = np.array([3, 5, 7, 9])
    whole = epoch_sequence(0, 2, 0, 40, items)
    pieces = [epoch_sequence(0, 2, first, 5, items) for first in range(0, 40, 5)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert all(sorted(whole[start : start + 4]) == [3, 5, 7, 9] for start in range(0, 40, 4))
    assert not np.array_equal(whole, epoch_sequence(0, 3, 0, 40, items))


def test_random_starts_reach_every_place_and_no_further() -> None:
    shapes, patch = np.tile([[10, 8, 5]], (3000, 1)), np.array([8, 8, 8])
    starts = random_starts(shapes, patch, np.random.default_rng(0))
    assert np.unique(starts[:, 0]).tolist() == [0, 1, 2]
    assert np.unique(starts[:, 1]).tolist() == [0]
    assert np.unique(starts[:, 2]).tolist() == [-1]
    centred = centred_starts(shapes[:3], patch, np.array([[0, 4, 1], [5, 4, 1], [9, 4, 1]]))
    assert centred.tolist() == [[0, 0, -1], [1, 0, -1], [2, 0, -1]]


def test_partners_are_drawn_evenly() -> None:
    partners = Partners(group=np.zeros(6, np.int64), scan=np.array([0, 1, 0, 2, 1, 0]))
    drawn = Counter(partners.draw(np.full(9000, 2), np.random.default_rng(0)).tolist())
    assert sorted(drawn) == [1, 3, 4]
    assert all(abs(count - 3000) < 5 * 45 for count in drawn.values())  # five standard deviations
    alone = Partners(group=np.array([0, 0, 1]), scan=np.array([0, 0, 0]))
    assert alone.draw(np.array([0, 1, 2]), np.random.default_rng(0)).tolist() == [1, 0, 2]


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct", "acdc"])
def test_real_data_fill_batches(name: str, real_data: Path) -> None:
    config, data = load_preset(name), read_data_set(real_data / name)
    split = make_split(data, config.labeled, seed=0)
    labeled = [load_volume(case, data) for case in split.labeled]
    unlabeled = [load_volume(case, data) for case in split.unlabeled[:40]]
    resident = ResidentData(labeled, unlabeled, resolve(config, data, labeled), "cpu")
    first, second = resident.batch(0, 8, 8)
    assert first.label.max() <= len(data.classes)
    assert bool((first.label > 0).any())
    assert bool(first.image.isfinite().all())
    assert bool(second.image.isfinite().all())
    assert first.image.std() > 0.2


def test_a_batch_takes_less_than_three_milliseconds() -> None:
    labeled = [numbered(f"a{i}", (36, 50, 35), 1) for i in range(4)]
    unlabeled = [numbered(f"u{i}", (36, 50, 35), 1, with_label=False) for i in range(20)]
    data = ResidentData(labeled, unlabeled, config_of(patch=(48, 64)), "cpu")
    seconds = []
    for step in range(40):
        start = time.process_time()
        data.batch(step, 8, 8)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 3e-3  # of processor time, the fastest of many: other programs only add
