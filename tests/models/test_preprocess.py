# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: intensities are standardised, resampling moves nothing, predictions land on the input's grid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from secl_models.data.cases import Case, DataSet
from secl_models.data.layouts import read_data_set
from secl_models.data.preprocess import Preprocess, _resample_linear, resolve
from secl_models.data.volumes import Volume, load_volume
from secl_models.options.errors import InputError
from secl_models.options.schema import ContrastConfig, DataConfig, NetworkConfig, RunConfig, TrainConfig
from tests.budget import assert_within_budget

Floats = npt.NDArray[np.float32]
ROUNDING = 1e-4  # voxels or standard deviations: float32 over some ten thousand terms errs far less


def volume_of(
    image: Floats,
    label: npt.NDArray[np.int64] | None = None,
    spacing: tuple[float, ...] | None = None,
    name: str = "a",
) -> Volume:
    return Volume(Case(name, name, (Path(f"{name}.nii.gz"),), None, None), image, label, np.eye(4), spacing)


def preprocess_of(**options: object) -> Preprocess:
    return Preprocess.from_config(DataConfig(**{"normalize": "volume", "orientation": None, **options}))  # type: ignore[arg-type]


def data_of(*modality: str) -> DataSet:
    return DataSet(Path("set"), "decathlon", {1: "one"}, modality, ())


def centre_of_mass(values: torch.Tensor) -> npt.NDArray[np.float64]:
    """In units of the extent, so that grids of different size compare."""
    array = values.numpy().astype(np.float64)
    places = [(np.arange(n) + 0.5) / n for n in array.shape]
    return np.array(
        [
            (array * np.expand_dims(p, [a for a in range(array.ndim) if a != axis])).sum() / array.sum()
            for axis, p in enumerate(places)
        ]
    )


def test_each_channel_of_a_volume_is_standardised_on_its_own() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 20, 21, 22)).astype(np.float32) * np.array([3e5, 1.0]).reshape(2, 1, 1, 1).astype(
        np.float32
    )
    out = preprocess_of().image(volume_of(image + 1e5))
    assert out.dtype == torch.float32
    assert out.mean((1, 2, 3)).abs().max() < ROUNDING
    assert (out.std((1, 2, 3)) - 1).abs().max() < 10 * ROUNDING  # torch divides by n - 1


def test_one_absurd_voxel_does_not_squeeze_the_rest() -> None:
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    image[0, 3, 3, 3] = 1.7e6
    out = preprocess_of().image(volume_of(image))
    assert out.max() < 4  # the 99.5 percentile of a normal variable lies 2.6 standard deviations out
    assert out.std() > 0.9


def test_slice_normalisation_treats_a_volume_as_its_single_slices() -> None:
    image = np.random.default_rng(0).gamma(2, size=(1, 12, 14, 3)).astype(np.float32) * np.array(
        [1, 10, 100], np.float32
    )
    preprocess = preprocess_of(normalize="slice")
    whole = preprocess.image(volume_of(image))
    for index in range(3):
        assert torch.equal(whole[..., index], preprocess.image(volume_of(np.ascontiguousarray(image[..., index]))))


def test_a_constant_image_becomes_zero_and_not_nan() -> None:
    for value in (0.0, 7.0, 1.7e6):
        out = preprocess_of().image(volume_of(np.full((1, 8, 8, 3), value, np.float32)))
        assert torch.equal(out, torch.zeros(1, 8, 8, 3))


def test_a_window_is_the_same_map_for_every_scan() -> None:
    preprocess = preprocess_of(normalize="window", window=(-160.0, 240.0))
    hounsfield = np.array([-1000, -160, 40, 240, 3000], np.float32).reshape(1, 5, 1, 1)
    out = preprocess.image(volume_of(hounsfield)).flatten()
    assert out[0] == out[1] == -out[3] == -out[4]
    assert out[2] == 0
    assert abs(float(out[3]) - 3**0.5) < ROUNDING  # uniform, unit variance: ends at the root of 3


@pytest.mark.parametrize(("dims", "size", "grid"), [(2, (17, 40), (17, 40, 6)), (3, (17, 40, 9), (17, 40, 9))])
def test_a_fixed_size_leaves_the_slices_alone_only_in_two_dimensions(
    dims: int, size: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    volume = volume_of(np.random.default_rng(0).normal(size=(2, 30, 20, 6)).astype(np.float32))
    preprocess = preprocess_of(dims=dims, size=size, patch=())
    image = preprocess.image(volume)
    assert image.shape == (2, *grid) == (2, *preprocess.grid(volume))
    assert preprocess.restore(image, (30, 20, 6)).shape == (2, 30, 20, 6)


def test_spacing_resamples_to_the_same_extent_in_mm() -> None:
    volume = volume_of(np.zeros((1, 100, 80, 10), np.float32), spacing=(0.8, 1.2, 8.0))
    assert preprocess_of(spacing=(1.6, 0.6)).grid(volume) == (50, 160, 10)
    assert preprocess_of(dims=3, spacing=(1.6, 0.6, 4.0), patch=()).grid(volume) == (50, 160, 20)
    assert preprocess_of().grid(volume) == (100, 80, 10)


@pytest.mark.parametrize("grid", [(16, 16, 8), (24, 40, 8), (48, 31, 20), (97, 64, 5)])
def test_an_object_keeps_its_place_and_a_constant_stays(grid: tuple[int, int, int]) -> None:
    shape = (48, 40, 12)
    blob = np.zeros(shape, np.float32)
    blob[18:30, 8:24, 4:8] = 1  # off centre in one axis
    label = blob.astype(np.int64)
    preprocess = preprocess_of(dims=3, size=grid, patch=())
    back = preprocess.restore(torch.from_numpy(blob)[None], grid)
    there_and_back = preprocess.restore(back, shape)[0]
    placed = preprocess.label(volume_of(blob[None], label))
    expected = centre_of_mass(torch.from_numpy(blob))
    half_voxel = 0.5 / np.array(grid)
    for moved in (back[0], there_and_back, placed.float()):
        assert np.all(np.abs(centre_of_mass(moved) - expected) < half_voxel)
    constant = preprocess.restore(torch.full((1, *shape), 0.25), grid)
    assert (constant - 0.25).abs().max() < ROUNDING


@pytest.mark.parametrize("size", [(20, 20, 20), (53, 31, 47), (80, 120, 90)])
def test_coordinates_come_out_as_coordinates(size: tuple[int, int, int]) -> None:
    """An image of its own voxel centres must read the new voxel centres: aligned corners would stretch it."""
    shape = (40, 40, 40)
    centres = torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    moved = preprocess_of().restore(centres, size)
    expected = torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in size), indexing="ij"))
    inner = (slice(None), *(slice(n // 10, -(n // 10)) for n in size))  # the border repeats the last voxel
    voxels = (moved - expected) * torch.tensor(size).view(3, 1, 1, 1)
    assert voxels[inner].abs().max() < 0.1  # smoothing weights are sampled; aligned corners would be 0.4 off


def by_weights(values: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Each axis by the weights of a triangle that is as wide as the coarser of the two grids."""
    for axis, new in enumerate(grid, start=1):
        old = values.shape[axis]
        centres = (torch.arange(new, dtype=values.dtype)[:, None] + 0.5) * old / new
        distances = (torch.arange(old, dtype=values.dtype) + 0.5 - centres).abs()
        weights = (1 - distances / max(old / new, 1)).clamp_min(0)
        weights = weights / weights.sum(1, keepdim=True)
        values = torch.tensordot(values.movedim(axis, -1), weights.T, 1).movedim(-1, axis)
    return values


@pytest.mark.parametrize("layout", list(itertools.permutations(range(4))), ids=str)
def test_lengths_of_one_resample_as_others_do_in_every_layout_of_memory(layout: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    back = tuple(layout.index(axis) for axis in range(4))
    for shape in itertools.product((1, 3), (1, 6), (1, 2), (1, 4)):
        values = torch.randn(shape, generator=generator)
        laid = values.permute(layout).contiguous().permute(back)
        for grid in itertools.product((1, 8), (1, 3), (1, 5)):
            truth, plain = by_weights(values.double(), grid), by_weights(values, grid)
            magnitude = float(values.abs().max()) * sum(shape[1:])  # of the products that are added up
            assert_within_budget(f"{shape} to {grid}", _resample_linear(laid, grid), truth, plain, magnitude=magnitude)


def test_a_slice_resamples_to_one_column_and_one_row() -> None:
    values = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    for grid in ((8, 1), (6, 1), (1, 3), (1, 1)):
        truth, plain = by_weights(values.double(), grid), by_weights(values, grid)
        magnitude = float(values.abs().max()) * sum(values.shape[1:])
        assert_within_budget(str(grid), _resample_linear(values, grid), truth, plain, magnitude=magnitude)


def test_a_coarser_grid_averages_what_it_skips() -> None:
    noise = torch.randn(1, 60, 60, 60, generator=torch.Generator().manual_seed(0))
    coarse = preprocess_of(dims=3, patch=()).restore(noise, (20, 20, 20))
    assert coarse.std() < 0.2  # reading every third voxel would leave 1


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_image_and_label_are_not_shifted_against_each_other(factor: int) -> None:
    """A mirrored image gives a mirrored result: any half-voxel shift of either breaks it."""
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(1, 24, 36, 5)).astype(np.float32), rng.integers(0, 4, (24, 36, 5))
    size = (24 * factor // 3 + 1, 36 // factor + (36 // factor) % 2 + 1)
    preprocess = preprocess_of(size=size)
    turned = volume_of(image[:, ::-1, ::-1].copy(), label[::-1, ::-1].copy())
    difference = preprocess.image(turned).flip(1, 2) - preprocess.image(volume_of(image))
    assert difference.abs().max() < ROUNDING
    upright = preprocess_of(size=(24 * factor, 36 * factor))
    assert torch.equal(upright.label(turned).flip(0, 1), upright.label(volume_of(image, label)))


def test_labels_upsampled_and_restored_by_arg_max_are_the_labels() -> None:
    label = np.random.default_rng(0).integers(0, 3, (10, 12, 4))
    preprocess = preprocess_of(size=(30, 36))
    moved = preprocess.label(volume_of(np.zeros((1, 10, 12, 4), np.float32), label))
    assert moved.dtype == torch.uint8
    one_hot = torch.nn.functional.one_hot(moved.long(), 3).movedim(-1, 0).float()
    assert torch.equal(preprocess.restore(one_hot, (10, 12, 4)).argmax(0), torch.from_numpy(label))


def test_restored_probabilities_stay_probabilities() -> None:
    grid, shape = (32, 32, 7), (51, 29, 7)
    restored = preprocess_of(size=(32, 32)).restore(torch.rand(3, *grid).softmax(0), shape)
    assert (restored.sum(0) - 1).abs().max() < ROUNDING
    assert restored.min() >= 0


def test_a_native_grid_is_not_touched() -> None:
    probabilities = torch.rand(3, 8, 9, 4)
    assert preprocess_of().restore(probabilities, (8, 9, 4)) is probabilities


@pytest.mark.parametrize("options", [{}, {"spacing": (1.0, 2.0)}, {"window": (-1.0, 2.0), "normalize": "window"}])
def test_a_checkpoint_keeps_it_exactly(options: dict[str, object]) -> None:
    preprocess = preprocess_of(**options)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"spacing": (1.0, 1.0)},
            "a: data.spacing needs files that store a voxel spacing.*Cure: set data.spacing to null",
        ),
        ({"dims": 3, "patch": ()}, "a: data.dims=3 needs volumes of three axes; got single slices of shape"),
    ],
)
def test_a_volume_that_does_not_fit_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess_of(**options).image(volume_of(np.zeros((1, 8, 8), np.float32)))


def test_a_missing_label_is_named() -> None:
    with pytest.raises(InputError, match="a: a labelled case has a label; got none"):
        preprocess_of().label(volume_of(np.zeros((1, 8, 8), np.float32)))


def test_open_options_are_refused_until_resolved() -> None:
    for config in (DataConfig(), DataConfig(normalize="volume", spacing=()), DataConfig(normalize="slice")):
        with pytest.raises(ValueError, match="call resolve"):
            Preprocess.from_config(config)


def labelled(shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    return volume_of(rng.normal(0, 100, (1, *shape)).astype(np.float32), rng.integers(0, 2, shape), spacing)


def test_resolve_chooses_median_spacing_and_a_patch_of_the_largest_slice_in_whole_strides() -> None:
    config = RunConfig(data=DataConfig(spacing=(), patch=()))
    volumes = [labelled((100, 80, 4), (s, s, 8.0)) for s in (1.0, 1.5, 2.0)]
    chosen = resolve(config, data_of("MRI"), volumes)
    assert chosen.data == DataConfig(
        spacing=(1.5, 1.5),
        patch=(144, 112),
        normalize="volume",
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    assert resolve(chosen, data_of("MRI"), volumes) == chosen


def test_resolve_caps_and_floors_the_patch() -> None:
    config = RunConfig(data=DataConfig(patch=()), network=NetworkConfig(channels=(8, 16, 32, 64)))
    assert resolve(config, data_of("MRI"), [labelled((500, 5, 3))]).data.patch == (160, 16)


@pytest.mark.parametrize(
    ("shape", "spacing", "sides", "patch"),
    [
        ((160, 90, 2), 1.5, 1.5, (160, 96)),
        ((256, 216, 2), 1.5, 3.0, (128, 112)),
        ((512, 512, 2), 0.8, 3.2, (128, 128)),
        ((1024, 1024, 2), 0.8, 3.2, (160, 160)),  # too large: parts of a grid four times as wide
    ],
)
def test_resolve_shows_whole_slices_on_a_coarser_grid(
    shape: tuple[int, ...], spacing: float, sides: float, patch: tuple[int, int]
) -> None:
    volumes = [labelled(shape, (spacing, spacing, 8.0))]
    chosen = resolve(RunConfig(data=DataConfig(spacing=(), patch=())), data_of("MRI"), volumes).data
    assert (chosen.spacing, chosen.patch, chosen.size) == ((sides, sides), patch, None)
    given = resolve(RunConfig(data=DataConfig(spacing=(spacing, spacing), patch=())), data_of("MRI"), volumes).data
    assert given.spacing == (spacing, spacing)


def test_resolve_gives_large_slices_without_spacing_one_size() -> None:
    volumes = [labelled((256, 216)), labelled((208, 256)), labelled((256, 216))]
    chosen = resolve(RunConfig(data=DataConfig(spacing=(), patch=())), data_of("MRI"), volumes).data
    assert (chosen.spacing, chosen.size, chosen.patch) == (None, (128, 112), (128, 112))


def test_resolve_leaves_explicit_choices_alone() -> None:
    data = DataConfig(spacing=(2.0, 2.0), patch=(64, 64), normalize="slice", orientation=None)
    config = RunConfig(data=data, contrast=ContrastConfig(weight=0.5, strategy="stratified"))
    assert resolve(config, data_of("CT"), [labelled((40, 40, 3), (1.0, 1.0, 1.0))]) == config


def test_resolve_finds_no_spacing_where_files_store_none() -> None:
    chosen = resolve(RunConfig(data=DataConfig(spacing=(), patch=())), data_of("MRI"), [labelled((40, 50))])
    assert chosen.data == DataConfig(spacing=None, patch=(48, 64), normalize="slice", orientation=None)


def test_resolve_takes_the_window_of_ct_from_the_labelled_structures() -> None:
    volume = volume_of(np.full((1, 10, 10, 2), -1000, np.float32), np.zeros((10, 10, 2), np.int64))
    volume.image[0, :5], volume.label[:5] = 30, 1  # type: ignore[index]
    assert resolve(RunConfig(), data_of("CT"), [volume]).data.window == (30, 31)
    mixed = resolve(RunConfig(), data_of("CT", "PET"), [volume]).data
    assert (mixed.normalize, mixed.window) == ("volume", None)
    given_window = RunConfig(data=DataConfig(window=(-5.0, 5.0)))
    assert resolve(given_window, data_of("unknown"), [volume]).data.normalize == "window"


@pytest.mark.parametrize(
    ("method", "strategy", "weight"),
    [("secl+", "hard", 0.1), ("secl", "uniform", 0.02), ("copy-paste", "auto", None)],
)
def test_resolve_gives_the_contrast_what_suits_the_method(method: str, strategy: str, weight: float | None) -> None:
    config = RunConfig(train=TrainConfig(method=method))
    chosen = resolve(config, data_of("MRI"), [labelled((40, 40, 3))])
    assert chosen.contrast == ContrastConfig(strategy=strategy, weight=weight)


def test_resolve_needs_a_labelled_volume() -> None:
    with pytest.raises(InputError, match="labelled cases: one or more; got 0"):
        resolve(RunConfig(), data_of("MRI"), [])


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct", "acdc"])
def test_real_images_come_out_standardised_on_one_grid_with_their_labels(name: str, real_data: Path) -> None:
    data = read_data_set(real_data / name)
    volumes = [load_volume(case, data) for case in data.cases[:2]]
    config = resolve(RunConfig(data=DataConfig(spacing=(), patch=())), data, volumes)
    preprocess = Preprocess.from_config(config.data)
    for volume in volumes:
        image, label = preprocess.image(volume), preprocess.label(volume)
        assert image.shape[1:] == label.shape == preprocess.grid(volume)
        assert bool(image.isfinite().all())
        assert image.abs().max() < 25
        assert 0.3 < image.std() < 3
