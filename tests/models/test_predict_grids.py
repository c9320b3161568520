# SPDX-License-Identifier: Apache-2.0
"""Images in any voxel orientation and any flavour of NIfTI: segmented alike, written on their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from secl_models.data.cases import Case, DataSet
from secl_models.data.orientation import Turn, reference, turn_to
from secl_models.data.preprocess import Preprocess
from secl_models.data.volumes import Volume, load_volume
from secl_models.inference.images import find_images
from secl_models.inference.predict import predict, probabilities_path
from secl_models.method.checkpoint import load_model
from secl_models.options.errors import InputError
from tests.models.untrained import CLASSES, DEEP, FLAT, blobs, untrained, write_nifti

OBLIQUE = np.array([[0.9, -0.2, 0.1, 7], [0.3, 1.4, -0.4, -3], [0, 0.2, 6.5, 11], [0, 0, 0, 1.0]])
RAS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORIENTATIONS = ("LPS", "PIR", "SAL", "IRP", "RAI")
GRID = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z",
    "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        2: untrained(folder / "2d", *FLAT, spacing="[1.1,1.0]"),
        3: untrained(folder / "3d", *DEEP, spacing="[1.1,1.2,3.0]"),
    }


def _read(path: Path) -> Any:
    return nib.load(path)


def _reoriented(image: Any, axes: str) -> Any:
    tools: Any = nib.orientations
    moves = tools.ornt_transform(tools.io_orientation(image.affine), tools.axcodes2ornt(axes))
    return image.as_reoriented(moves)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_another_voxel_orientation_gives_the_reoriented_segmentation(
    models: dict[int, Path], dims: int, axes: str, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ras.nii.gz", blobs((37, 29, 7)), OBLIQUE)
    turned = _reoriented(_read(tmp_path / "ras.nii.gz"), axes)
    assert "".join(nib.orientations.aff2axcodes(turned.affine)) == axes
    turned.to_filename(tmp_path / "turned.nii.gz")
    for name in ("ras", "turned"):
        predict(models[dims], tmp_path / f"{name}.nii.gz", tmp_path / f"seg_{name}.nii.gz", probabilities=True)
    seg, other = (_read(tmp_path / f"seg_{name}.nii.gz") for name in ("ras", "turned"))
    assert len(np.unique(np.asarray(seg.dataobj))) > 1
    assert np.array_equal(other.affine, _read(tmp_path / "turned.nii.gz").affine)
    assert other.shape == turned.shape
    assert np.array_equal(np.asarray(_reoriented(other, "RAS").dataobj), np.asarray(seg.dataobj))
    chance, others = (_read(probabilities_path(tmp_path / f"seg_{name}.nii.gz")) for name in ("ras", "turned"))
    assert np.array_equal(np.asarray(_reoriented(others, "RAS").dataobj), np.asarray(chance.dataobj))


def test_training_sees_turned_images_and_labels(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", blobs((20, 16, 6)), OBLIQUE)
    label = write_nifti(
        tmp_path / "label.nii.gz", np.random.default_rng(0).integers(0, 4, (20, 16, 6)).astype(np.uint8), OBLIQUE
    )
    data = DataSet(tmp_path, "csv", {1: "a", 2: "b", 3: "c"}, ("MRI",), ())
    plain = load_volume(Case("a", "a", (image,), label, None), data)
    preprocess = Preprocess(2, None, (2.0, 1.0), "slice", None, RAS)
    for axes in ORIENTATIONS:
        files = []
        for path in (image, label):
            files.append(tmp_path / f"{axes}_{path.name}")
            _reoriented(_read(path), axes).to_filename(files[-1])
        turned = load_volume(Case(axes, axes, (files[0],), files[1], None), data)
        assert turn_to(RAS, turned) != Turn()
        assert np.array_equal(preprocess.image(turned), preprocess.image(plain))
        assert np.array_equal(preprocess.label(turned), preprocess.label(plain))
    as_stored = Preprocess.from_dict({k: v for k, v in preprocess.to_dict().items() if k != "orientation"})
    assert as_stored.orientation is None  # what a checkpoint from before the option meant
    assert not np.array_equal(as_stored.image(turned), preprocess.image(plain))


def _stack(angle: float, spacing: tuple[float, ...] | None = (1.0, 1.0, 8.0), order: Turn | None = None) -> Volume:
    """A stack whose slices are tilted by `angle` degrees, stored in another order on request."""
    tilt = np.radians(angle)
    axes = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    if order is not None:
        axes = (axes * [-1 if axis in order.flipped else 1 for axis in range(3)])[:, list(order.order)]
    affine = np.eye(4)
    affine[:3, :3] = axes
    return Volume(Case("a", "a", (), None, None), np.zeros((1, 2, 2, 2), np.float32), None, affine, spacing)


def test_most_labelled_volumes_decide_and_oblique_stacks_stay_together() -> None:
    """Tilts on both sides of 45 degrees: the nearest scanner axis changes, the order of the voxels must not."""
    other = Turn((2, 0, 1), (1,))
    chosen = reference([_stack(0, order=other), _stack(40), _stack(50), _stack(44)])
    for angle in (36, 44, 46, 54):
        assert turn_to(chosen, _stack(angle)) == Turn()
        assert turn_to(chosen, _stack(angle, order=other)) != Turn()
    assert reference([_stack(0, None)]) is None
    assert turn_to(chosen, _stack(0, None)) == Turn()  # h5: nothing is known of its grid


def _flipped(affine: Any) -> Any:
    return affine @ np.diag([-1.0, 1, 1, 1])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("kind", "affine", "slope", "shape"),
    [
        (np.int16, OBLIQUE, (1.0, 0.0), (20, 24, 5)),
        (np.uint8, _flipped(OBLIQUE), (0.5, -3.0), (20, 24, 5)),
        (np.float64, np.diag([-0.7, -0.7, 5.0, 1.0]), (1.0, 0.0), (20, 24, 5, 1)),
        (np.float32, OBLIQUE[[1, 0, 2, 3]], (1.0, 0.0), (24, 20)),
    ],
)
def test_every_flavour_keeps_its_grid(
    models: dict[int, Path],
    suffix: str,
    kind: Any,
    affine: Any,
    slope: tuple[float, float],
    shape: tuple[int, ...],
    tmp_path: Path,
) -> None:
    values = blobs(shape[:3]).reshape(shape)
    array = np.round(values - values.min()).clip(0, 255).astype(kind)
    image: Any = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(*slope)
    image.to_filename(tmp_path / f"scan{suffix}")
    predict(models[2], tmp_path / f"scan{suffix}", tmp_path / f"seg{suffix}", probabilities=True)
    before, seg, chance = (_read(tmp_path / f"{name}{suffix}") for name in ("scan", "seg", "seg_probabilities"))
    for after in (seg, chance):
        assert np.array_equal(after.affine, before.affine)
        for name in GRID:
            mine, theirs = after.header[name], before.header[name]
            if name == "pixdim":  # the fourth axis is the image's channel in one and the class in the other
                mine, theirs = mine[:4], theirs[:4]
            assert mine.tobytes() == theirs.tobytes(), name
        assert after.dataobj.slope == 1.0
        assert after.dataobj.inter == 0.0
    assert seg.shape == shape[:3]
    assert seg.get_data_dtype() == np.int16  # the smallest that holds 600
    assert set(np.unique(np.asarray(seg.dataobj))) <= {0, *CLASSES}
    volume = (*shape[:3], *(1,) * (3 - len(shape)))
    numbers = np.asarray(chance.dataobj)
    assert numbers.shape == (*volume, len(CLASSES) + 1)
    assert chance.get_data_dtype() == np.float32
    assert np.abs(numbers.sum(-1) - 1).max() < 1e-5
    values = np.array([0, *CLASSES])
    assert np.array_equal(values[numbers.argmax(-1)].reshape(shape[:3]), np.asarray(seg.dataobj))


def test_two_channels_in_one_file_and_in_two(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", *FLAT, channels=2)
    both = np.stack([blobs((20, 24, 3)), blobs((20, 24, 3), seed=1)], -1)
    (tmp_path / "images").mkdir()
    write_nifti(tmp_path / "one.nii.gz", both, OBLIQUE)
    for channel in (0, 1):
        write_nifti(tmp_path / "images" / f"case_000{channel}.nii.gz", both[..., channel], OBLIQUE)
    predict(model, tmp_path / "one.nii.gz", tmp_path / "seg.nii.gz")
    (several,) = predict(model, tmp_path / "images", tmp_path / "out").written
    assert several.name == "case.nii.gz"
    assert np.array_equal(np.asarray(_read(tmp_path / "seg.nii.gz").dataobj), np.asarray(_read(several).dataobj))


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (("a.nii", "a.nii.gz"), 1),
        (("a.nii.gz", "a.h5"), 1),
        (("a.nii", "a.nii.gz"), 2),
        (("a_0000.nii.gz", "a_0000.nii", "b_0000.nii", "b_0001.nii"), 2),
        (("a_0000.nii.gz", "a_0002.nii.gz"), 2),
        (("a.nii.gz", "a_0000.nii.gz"), 2),
    ],
)
def test_two_files_of_one_name_are_not_two_channels(names: tuple[str, ...], channels: int, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"a: a case is one file, or one file for each channel.* got a.*, a.* Cure"):
        find_images(tmp_path, channels)


def test_flips_make_the_prediction_symmetric(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", *FLAT, "data.patch=[32,32]", "augment.flip=[0]")
    scan = write_nifti(tmp_path / "scan.nii", blobs((32, 32, 2)), np.eye(4))
    mirrored = write_nifti(tmp_path / "mirrored.nii", blobs((32, 32, 2))[::-1], np.eye(4))
    shown = {}
    for flips in ("", "0", "trained", "0,1"):
        pair = []
        for image in (scan, mirrored):
            seg = tmp_path / f"{image.stem}_{flips}.nii"
            predict(model, image, seg, probabilities=True, flips=flips)
            pair.append(np.asarray(_read(probabilities_path(seg)).dataobj))
        shown[flips] = pair[0]
        # Four views are added in another order; one float32 rounding of logits up to some hundred.
        assert (np.abs(pair[0][::-1] - pair[1]).max() < 1e-4) == (flips != "")
    assert np.array_equal(shown["0"], shown["trained"])
    assert not np.array_equal(shown["0"], shown["0,1"])


@pytest.mark.parametrize("flips", ["2", "0,0", "x", "trained", "0,"])
def test_flips_that_cannot_be_made_are_refused(models: dict[int, Path], flips: str, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii", blobs((16, 16, 2)), np.eye(4))
    with pytest.raises(InputError, match=r"--flips: different axes among 0, 1, .* training flipped none\. Cure"):
        predict(models[2], scan, tmp_path / "seg.nii", flips=flips)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_the_largest_part_of_each_structure_is_kept(models: dict[int, Path], tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "scan.nii", blobs((40, 40, 6)), np.eye(4))
    for keep in ("none", "all"):
        predict(models[2], scan, tmp_path / f"{keep}.nii", largest_component=keep)
    from scipy import ndimage

    whole, kept = (np.asarray(_read(tmp_path / f"{keep}.nii").dataobj) for keep in ("none", "all"))
    parts = 0
    for value in CLASSES:
        labels, count = ndimage.label(whole == value, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        expected = labels == 1 + sizes.argmax() if count else np.zeros_like(whole, bool)
        assert np.array_equal(kept == value, expected)
        parts += count
    assert parts > len(CLASSES)  # something was there to remove


def test_a_checkpoint_of_before_orientation_still_loads(tmp_path: Path) -> None:
    import torch

    folder = untrained(tmp_path / "model")
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["preprocess"]["orientation"], state["config"]["data"]["orientation"]
    torch.save(state, folder / "last.pt")
    assert load_model(folder).preprocess.orientation is None
