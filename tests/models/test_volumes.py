# SPDX-License-Identifier: Apache-2.0
"""Arrays come out of files in one orientation with every fault named, and a segmentation keeps the image's grid."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from secl_models.data import volumes
from secl_models.data.cases import Case, DataSet
from secl_models.data.layouts import read_data_set
from secl_models.data.volumes import examine_case, load_volume, save_segmentation
from secl_models.options.errors import InputError

CLASSES = {200: "edema", 500: "pool", 600: "scar"}
OBLIQUE = np.array([[1.1, -0.3, 0.2, -40.5], [0.4, 1.3, -0.5, 12.25], [0.1, 0.6, 7.9, 3.125], [0, 0, 0, 1]])
SCANNER = np.array([[0.0, -1.4, 0.0, 10.0], [1.2, 0.0, 0.0, 20.0], [0.0, 0.0, 8.0, 30.0], [0, 0, 0, 1]])


def write(path: Path, array: Any, affine: Any = OBLIQUE, codes: tuple[int, int] = (1, 4)) -> Path:
    """A NIfTI file whose qform and sform differ, in affine and in code."""
    image = nib.Nifti1Image(array, SCANNER)
    image.set_qform(SCANNER, code=codes[0])
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def data_set(root: Path, channels: int = 1) -> DataSet:
    return DataSet(root, "csv", CLASSES, ("MRI",) * channels, (), spacing_from="affine")  # the forms differ


def load(image: Path | tuple[Path, ...], label: Path | None = None, channels: int = 1) -> volumes.Volume:
    images = image if isinstance(image, tuple) else (image,)
    return load_volume(Case("a", "a", images, label, None), data_set(images[0].parent, channels))


def ramp(shape: tuple[int, ...] = (5, 6, 4)) -> Any:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def values(shape: tuple[int, ...] = (5, 6, 4), kind: Any = np.int16) -> Any:
    label = np.zeros(shape, kind)
    label[1], label[2], label[3] = 200, 500, 600
    return label


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("codes", [(1, 4), (1, 0), (0, 2), (0, 0)])
def test_segmentation_has_the_grid_of_the_image_bit_for_bit(
    tmp_path: Path, suffix: str, codes: tuple[int, int]
) -> None:
    image = write(tmp_path / f"image{suffix}", ramp(), codes=codes)
    label = write(tmp_path / f"label{suffix}", values(), codes=codes)
    volume = load(image, label)
    assert volume.label is not None
    save_segmentation(tmp_path / f"out{suffix}", volume.label, image, CLASSES)
    before: Any = nib.load(image)
    after: Any = nib.load(tmp_path / f"out{suffix}")
    form = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    for name in (*form, "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"):
        assert before.header[name].tobytes() == after.header[name].tobytes(), name
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == codes
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(np.asarray(after.dataobj), values())
    again = load(image, tmp_path / f"out{suffix}")
    assert np.array_equal(again.affine, volume.affine)
    assert again.spacing == volume.spacing


def test_segmentation_drops_what_belongs_to_the_intensities(tmp_path: Path) -> None:
    image: Any = nib.Nifti1Image(ramp(), OBLIQUE)
    image.header["cal_max"], image.header["descrip"] = 900, b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Jane Doe"))
    image.header.set_slope_inter(2.0, 5.0)
    nib.save(image, tmp_path / "image.nii.gz")
    save_segmentation(tmp_path / "out.nii.gz", np.ones((5, 6, 4), int), tmp_path / "image.nii.gz", {1: "a"})
    stored: Any = nib.load(tmp_path / "out.nii.gz")
    assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    assert np.array_equal(np.asarray(stored.dataobj), np.ones((5, 6, 4)))
    assert (stored.get_data_dtype(), float(stored.header["cal_max"])) == (np.uint8, 0.0)


def test_values_become_indices_by_rank_and_go_back(tmp_path: Path) -> None:
    volume = load(write(tmp_path / "i.nii.gz", ramp()), write(tmp_path / "l.nii.gz", values(kind=np.float32)))
    assert volume.label is not None
    assert volume.label.dtype == np.int64
    assert [int(volume.label[x, 0, 0]) for x in range(5)] == [0, 1, 2, 3, 0]
    save_segmentation(tmp_path / "o.nii.gz", volume.label, volume, CLASSES)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "o.nii.gz").dataobj), values())  # type: ignore[attr-defined]


def test_spacing_is_that_of_the_affine_in_millimetres(tmp_path: Path) -> None:
    path = write(tmp_path / "i.nii.gz", ramp(), np.diag([0.5, 0.75, 3.0, 1.0]))
    assert load(path).spacing == (0.5, 0.75, 3.0)
    image: Any = nib.load(path)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "micron.nii.gz")
    assert load(tmp_path / "micron.nii.gz").spacing == (0.0005, 0.00075, 0.003)


def test_stored_slope_is_applied(tmp_path: Path) -> None:
    image: Any = nib.Nifti1Image(ramp(), OBLIQUE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -3.0)
    nib.save(image, tmp_path / "i.nii.gz")
    stored: Any = nib.load(tmp_path / "i.nii.gz")
    assert np.array_equal(load(tmp_path / "i.nii.gz").image[0], stored.get_fdata().astype(np.float32))


def test_channels_come_first_from_one_file_or_several(tmp_path: Path) -> None:
    both = np.stack([ramp(), ramp() + 7], axis=-1)
    parts = tuple(write(tmp_path / f"i_{c}.nii.gz", both[..., c].copy()) for c in (0, 1))
    one, several = load(write(tmp_path / "i.nii.gz", both), channels=2), load(parts, channels=2)
    assert one.image.shape == (2, 5, 6, 4)
    assert np.array_equal(one.image, several.image)
    assert np.array_equal(one.image[1], one.image[0] + 7)
    assert volumes.count_channels((tmp_path / "i.nii.gz",)) == volumes.count_channels(parts) == 2


def test_h5_slices_and_volumes_have_the_slice_axis_last(tmp_path: Path) -> None:
    for name, shape in (("slice", (4, 5)), ("volume", (3, 4, 5))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["image"], file["label"] = ramp(shape), np.zeros(shape, np.uint8)
            file["label"][0] = 200
    flat, deep = (load(tmp_path / f"{name}.h5", tmp_path / f"{name}.h5") for name in ("slice", "volume"))
    assert (flat.image.shape, deep.image.shape) == ((1, 4, 5), (1, 4, 5, 3))
    assert np.array_equal(deep.image[0, :, :, 2], ramp((3, 4, 5))[2])
    assert deep.label is not None
    assert deep.label[..., 0].all()
    assert not deep.label[..., 1:].any()
    assert flat.spacing is None
    save_segmentation(tmp_path / "out.nii.gz", deep.label, deep, CLASSES)
    assert nib.load(tmp_path / "out.nii.gz").shape == (4, 5, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_truncated_and_damaged_files(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / f"i{suffix}", rng.integers(0, 999, (32, 32, 8)).astype(np.int16))
    whole = path.read_bytes()
    for kept in (0, 100, 400, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match="can be read to its end") as caught:
            load(path)
        assert caught.value.what == str(path)


def test_one_flipped_bit_of_a_compressed_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "i.nii.gz"
    stored = nib.Nifti1Image(ramp((8, 8, 4)), OBLIQUE).to_bytes()
    payload = bytearray(gzip.compress(stored, 0))  # stored blocks: only the checksum can tell
    payload[len(payload) - 50] ^= 1
    path.write_bytes(payload)
    with pytest.raises(InputError, match="can be read to its end"):
        load(path)


def test_truncated_h5_and_h5_without_the_array(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["label"] = np.zeros((64, 64), np.uint8)
    with pytest.raises(InputError, match=r"an h5 file holds 'image'; got \['label'\]"):
        load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="can be read to its end"):
        load(path)


def image_fault(tmp_path: Path, array: Any, affine: Any = OBLIQUE) -> InputError:
    with pytest.raises(InputError) as caught:
        load(write(tmp_path / "i.nii.gz", array, affine))
    assert caught.value.what == str(tmp_path / "i.nii.gz")
    return caught.value


def test_intensities_that_are_not_finite(tmp_path: Path) -> None:
    array = ramp().astype(np.float64)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, 1e300
    assert image_fault(tmp_path, array).got == "3 of 120 voxels NaN or infinite"


def test_wrong_rank_channels_and_voxel_type(tmp_path: Path) -> None:
    assert "axes" in image_fault(tmp_path, ramp((2, 2, 2, 1, 3))).rule
    assert "1 channel" in image_fault(tmp_path, ramp((3, 3, 3, 2))).rule
    assert "real numbers" in image_fault(tmp_path, ramp().astype(np.complex64)).rule


def test_affine_that_cannot_be_inverted(tmp_path: Path) -> None:
    flat = OBLIQUE.copy()
    flat[:, 1] = 0
    assert "invertible" in image_fault(tmp_path, ramp(), flat).rule


def test_missing_file_and_other_formats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.nii\.gz: the file exists"):
        load(tmp_path / "gone.nii.gz")
    (tmp_path / "a.mha").write_text("x")
    with pytest.raises(InputError, match=r"a\.mha: images are \.nii\.gz"):
        load(tmp_path / "a.mha")


def label_fault(tmp_path: Path, label: Any, affine: Any = OBLIQUE) -> InputError:
    with pytest.raises(InputError) as caught:
        load(write(tmp_path / "i.nii.gz", ramp()), write(tmp_path / "l.nii.gz", label, affine))
    assert caught.value.what == str(tmp_path / "l.nii.gz")
    return caught.value


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (201, "201"), (-1, "-1"), (np.nan, "nan"), (900, "900")])
def test_label_values_outside_the_classes(tmp_path: Path, value: float, shown: str) -> None:
    label = values(kind=np.float32)
    label[4, 0, 0] = value
    fault = label_fault(tmp_path, label)
    assert (fault.rule, fault.got) == ("label values are among 0, 200, 500, 600", f"{shown} in 1 voxels")


def test_label_on_another_grid(tmp_path: Path) -> None:
    assert label_fault(tmp_path, values((5, 6, 5))).got == "(5, 6, 5) and (5, 6, 4)"
    assert "one channel" in label_fault(tmp_path, values((5, 6, 4, 2))).rule
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.5
    assert label_fault(tmp_path, values(), moved).got == "corners up to 0.5 mm apart"
    turned = OBLIQUE.copy()
    turned[:3, 2] *= 1.05  # the origin stays, the far corner moves
    assert "affine" in label_fault(tmp_path, values(), turned).rule


def test_rounding_of_the_affine_is_no_fault(tmp_path: Path) -> None:
    rounded = OBLIQUE + np.r_[np.full((3, 4), 1e-4), np.zeros((1, 4))]
    label = write(tmp_path / "l.nii.gz", values(), rounded)
    assert load(write(tmp_path / "i.nii.gz", ramp()), label).label is not None


def test_channels_on_different_grids(tmp_path: Path) -> None:
    parts = (write(tmp_path / "a.nii.gz", ramp()), write(tmp_path / "b.nii.gz", ramp((5, 6, 5))))
    with pytest.raises(InputError, match=r"b\.nii\.gz: the shape is that of a\.nii\.gz"):
        load(parts, channels=2)


def test_all_faults_of_a_case_are_collected(tmp_path: Path) -> None:
    array = ramp().astype(np.float32)
    array[0, 0, 0] = np.nan
    files = write(tmp_path / "i.nii.gz", array), write(tmp_path / "l.nii.gz", values((5, 6, 5)) + 1)
    volume, faults = examine_case(Case("a", "a", files[:1], files[1], None), data_set(tmp_path))
    assert volume is None
    assert [fault.rule.split()[0] for fault in faults] == ["intensities", "label", "the"]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("o.png", np.zeros((5, 6, 4), int), "a segmentation is NIfTI"),
        ("o.nii.gz", np.full((5, 6, 4), 4), "class indices are 0 to 3; got 4 to 4"),
        ("o.nii.gz", np.full((5, 6, 4), -1), "class indices are 0 to 3; got -1 to -1"),
        ("o.nii.gz", np.zeros((5, 6, 3), int), "segmentation and image share one shape"),
    ],
)
def test_segmentations_that_are_refused(tmp_path: Path, name: str, label: Any, message: str) -> None:
    image = write(tmp_path / "i.nii.gz", ramp())
    with pytest.raises(InputError, match=message):
        save_segmentation(tmp_path / name, label, image, CLASSES)
    assert sorted(os.listdir(tmp_path)) == ["i.nii.gz"]


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct"])
def test_real_headers_survive_a_round_trip(real_data: Path, tmp_path: Path, name: str) -> None:
    data = read_data_set(real_data / name)
    volume = load_volume(data.cases[0], data)
    assert volume.label is not None
    assert data.cases[0].label is not None
    save_segmentation(tmp_path / "out.nii.gz", volume.label, volume, data.classes)
    image, saved, truth = (nib.load(p) for p in (volume.case.image[0], tmp_path / "out.nii.gz", data.cases[0].label))
    for field in ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "pixdim"):
        assert image.header[field].tobytes() == saved.header[field].tobytes(), field  # type: ignore[index]
    assert np.array_equal(np.asarray(saved.dataobj), np.asarray(truth.dataobj))  # type: ignore[attr-defined]


def test_nifti_2_and_unknown_units(tmp_path: Path) -> None:
    image: Any = nib.Nifti2Image(ramp().astype(np.float32), OBLIQUE)
    image.header["xyzt_units"] = 5
    nib.save(image, tmp_path / "two.nii.gz")
    volume = load(tmp_path / "two.nii.gz")
    save_segmentation(tmp_path / "seg.nii.gz", np.zeros((5, 6, 4), np.int64), like=volume, classes={1: "a"})
    saved: Any = nib.load(tmp_path / "seg.nii.gz")
    assert np.array_equal(saved.affine, image.affine)
