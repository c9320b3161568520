# SPDX-License-Identifier: Apache-2.0
"""Segmentations on disk: the image's grid, the training set's values, and refusals that write nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from secl_models.inference.images import find_images
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError
from tests.models.runs import TinyRun, tiny_run


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


@pytest.fixture
def scan(run: TinyRun) -> Path:
    return next(case.image[0] for case in run.data.cases if case.label is None)


def _oblique(path: Path, shape: tuple[int, ...]) -> None:
    """An anisotropic, oblique image whose two form codes differ."""
    affine = np.array([[0.9, -0.2, 0.1, 7], [0.3, 1.4, -0.4, -3], [0, 0.2, 6.5, 11], [0, 0, 0, 1.0]])
    make: Any = nib.Nifti1Image  # nibabel types neither it nor its methods
    image = make(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)
    image.set_qform(np.diag([1, 2, 3, 1.0]), 1)
    image.set_sform(affine, 2)
    image.to_filename(path)


def test_the_grid_is_the_image_s_own_bit_for_bit(run: TinyRun, tmp_path: Path) -> None:
    _oblique(tmp_path / "scan.nii.gz", (45, 37, 5))
    written = predict(run.folder, tmp_path / "scan.nii.gz", tmp_path / "seg.nii.gz", spacing_from="affine").written
    assert written == (tmp_path / "seg.nii.gz",)
    image, seg = (nib.Nifti1Image.from_filename(tmp_path / name) for name in ("scan.nii.gz", "seg.nii.gz"))
    assert seg.shape == (45, 37, 5)
    for name in (
        "pixdim",
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
    ):
        assert_array_equal(seg.header[name], image.header[name])
    assert set(np.unique(np.asarray(seg.dataobj))) <= {0, *run.data.classes}


def test_a_folder_gives_one_file_per_image(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    written = predict(run.folder, scan.parent, tmp_path / "out", progress=lambda *pair: seen.append(pair)).written
    images = sorted(scan.parent.glob("*.nii.gz"))
    assert [path.name for path in written] == [path.name for path in images]
    assert seen == [(n, len(images)) for n in range(1, len(images) + 1)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [path.name for path in images]


def test_prediction_repeats_exactly(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    one, two = (predict(run.folder, scan, tmp_path / name).written[0] for name in ("a.nii.gz", "b.nii.gz"))
    assert one.read_bytes() == two.read_bytes()


def test_existing_output_is_kept_without_overwrite(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    out.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"seg\.nii\.gz: a segmentation is not overwritten"):
        predict(run.folder, scan, out)
    assert out.read_bytes() == b"precious"
    predict(run.folder, scan, out, overwrite=True)
    assert out.read_bytes() != b"precious"


def test_one_existing_file_stops_a_whole_folder_before_it_begins(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    (tmp_path / scan.name).write_bytes(b"precious")
    with pytest.raises(InputError, match="add --overwrite"):
        predict(run.folder, scan.parent, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [scan.name]


def test_another_number_of_channels_is_refused(run: TinyRun, tmp_path: Path) -> None:
    _oblique(tmp_path / "two.nii.gz", (32, 32, 4, 2))
    with pytest.raises(InputError, match=r"two\.nii\.gz: the network takes 1 image channel\(s\); got 2 channel"):
        predict(run.folder, tmp_path / "two.nii.gz", tmp_path / "seg.nii.gz")
    assert not (tmp_path / "seg.nii.gz").exists()


def test_channel_files_of_a_folder_are_one_case(tmp_path: Path) -> None:
    for name in (
        "a_0000.nii.gz",
        "a_0001.nii.gz",
        "b_0000.nii.gz",
        "b_0001.nii.gz",
        ".hidden.nii.gz",
        "x.txt",
    ):
        (tmp_path / name).touch()
    assert [(case.name, len(case.image)) for case in find_images(tmp_path, 2)] == [("a", 2), ("b", 2)]
    assert len(find_images(tmp_path, 1)) == 4


def test_a_truncated_image_is_named_and_nothing_is_written(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(scan.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"broken\.nii\.gz: the file can be read to its end"):
        predict(run.folder, broken, tmp_path / "seg.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.nii.gz"]


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("no.nii.gz", "seg.nii.gz", r"no\.nii\.gz: an image or a folder of images; got nothing at this path"),
        ("empty", "out", r"empty: a folder with images .* got none"),
        ("images", "seg.nii.gz", r"--out: a folder, since --input is a folder"),
        ("images/scan.nii.gz", "seg.png", r"--out: a name ending in \.nii\.gz or \.nii"),
        ("images/scan.nii.gz", "images/scan.nii.gz", r"scan\.nii\.gz: what is read is never written over"),
    ],
)
def test_bad_paths(run: TinyRun, scan: Path, tmp_path: Path, source: str, out: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    shutil.copy(scan, tmp_path / "images" / "scan.nii.gz")
    with pytest.raises(InputError, match=message):
        predict(run.folder, tmp_path / source, tmp_path / out, overwrite=True)
    assert (tmp_path / "images" / "scan.nii.gz").read_bytes() == scan.read_bytes()


def test_a_name_without_suffix_is_a_folder(run: TinyRun, scan: Path, tmp_path: Path) -> None:
    assert predict(run.folder, scan, tmp_path / "new").written == (tmp_path / "new" / scan.name,)
