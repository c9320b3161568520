# SPDX-License-Identifier: Apache-2.0
"""A DICOM series lies where its headers say, with the values that they say, or it is refused with what is wrong."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGLosslessSV1, RLELossless

from secl_models.command import doctor
from secl_models.data.cases import Case
from secl_models.data.dicom import read_frames, read_pixels, require_dicom
from secl_models.data.stack import load_series, read_stack
from secl_models.data.volumes import Volume
from secl_models.options.errors import InputError
from tests.models.dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    header,
    pixels,
    write,
    write_enhanced,
    write_series,
)
from tests.models.files import image_array

VOXELS = image_array(shape=(9, 7, 5))
TILT = np.tan(np.radians(12.0))


def load(folder: Path) -> Volume:
    files = tuple(sorted(folder.iterdir()))
    return load_series(Case("a", "a", files, None, None, series="the series"))


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert caught.value.what.startswith("the series")
    return caught.value


def bundled(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert found is not None, name
    return Path(str(found))


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
@pytest.mark.parametrize("backwards", [False, True])
def test_voxels_lie_where_the_headers_say_in_any_order_of_files(tmp_path: Path, axes: Any, backwards: bool) -> None:
    affine = write_series(tmp_path / "s", VOXELS, axes=axes, backwards=backwards)
    volume = load(tmp_path / "s")
    assert np.allclose(volume.affine, affine)
    assert np.array_equal(volume.image[0], VOXELS)
    assert volume.spacing == pytest.approx((1.5, 1.25, 8.0))


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE])
def test_a_pixel_lies_where_nibabel_puts_it(tmp_path: Path, axes: Any) -> None:
    write_series(tmp_path / "s", VOXELS, axes=axes)
    with warnings.catch_warnings(action="ignore"):  # nibabel calls its own reader experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_file

        slice_ = wrapper_from_file(tmp_path / "s" / "IM0000.dcm")
        row, column = 5, 3
        left, back, head = (slice_.affine @ [row, column, 0, 1])[:3]
        assert slice_.get_data()[row, column] == VOXELS[column, row, 0]
    assert np.allclose(load(tmp_path / "s").affine @ [column, row, 0, 1], [-left, -back, head, 1])


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    write_series(tmp_path / "s", VOXELS, RescaleSlope=lambda n: f"{n + 0.5}", RescaleIntercept=lambda n: f"{-100 * n}")
    place = np.arange(VOXELS.shape[2])
    assert np.array_equal(load(tmp_path / "s").image[0], (VOXELS * (place + 0.5) - 100 * place).astype(np.float32))


@pytest.mark.parametrize(("kind", "top"), [(np.uint16, 4095), (np.int16, -1)])
def test_the_inverse_grey_scale_is_turned_round(tmp_path: Path, kind: type, top: int) -> None:
    attributes: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    write_series(tmp_path / "s", VOXELS.astype(kind), RescaleSlope="2", RescaleIntercept="0", **attributes)
    assert np.array_equal(load(tmp_path / "s").image[0], 2 * (top - VOXELS.astype(np.float32)))


def test_the_frames_of_one_object_are_put_in_order_and_scaled_each(tmp_path: Path) -> None:
    affine = write_enhanced(tmp_path / "s" / "x", VOXELS, slopes=[1, 2, 3, 4, 5])
    volume = load(tmp_path / "s")
    assert np.allclose(volume.affine, affine)
    assert np.array_equal(volume.image[0], VOXELS * np.arange(1, 6) - 10)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"],
)
def test_whatever_way_pixels_are_stored_they_are_those_of_the_plain_file(name: str) -> None:
    plain, other = (read_pixels(read_frames([bundled(f"{file}.dcm")], "x"), "x") for file in ("MR_small", name))
    assert np.array_equal(plain, other)
    assert float(np.ptp(plain)) > 0


def test_a_stack_of_a_scanner_is_read() -> None:
    """CT slices of pydicom's own test data, whose positions are rounded as scanners do."""
    files = sorted(bundled("dicomdirtests/98892001/CT5N/2392").parent.iterdir())
    stack = read_stack(files, "x")
    assert len(stack.frames) == len(files) == 5
    for place, frame in enumerate(stack.frames):
        left, back, head = pydicom.dcmread(frame.file).ImagePositionPatient
        assert np.allclose(stack.affine @ [0, 0, place, 1], [-left, -back, head, 1])


def test_what_scanners_leave_beside_the_stacks_is_refused_with_the_right_word() -> None:
    scanned = bundled("dicomdirtests/98892001/CT5N/2392").parents[2]
    said = {
        "77654033/CT2": "202.5 mm between images 18 and 180 where others lie 1.25 mm apart: 161 missing",
        "98892001/CT2N": "1 of 2 slices turned against the first, as in a localiser",
        "77654033/CR1": "no ImagePositionPatient, ImageOrientationPatient, PixelSpacing",
    }
    for folder, got in said.items():
        with pytest.raises(InputError) as caught:
            read_stack(sorted((scanned / folder).iterdir()), "x")
        assert caught.value.got == got


def aside(place: int) -> list[str]:
    return ["-40", "-30" if place != 2 else "-28", str(12.5 + 8 * place)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": [0, 1, 3, 4]}, "evenly spaced; got 16 mm between images 2 and 4 where others lie 8 mm apart: 1 miss"),
        (
            {"ImagePositionPatient": lambda n: ["0", "0", str(8 * n + 3 * (n > 2))]},
            "got 11 mm between images 3 and 4 where others lie 8 mm apart. Cure: export it again, or convert",
        ),
        ({"step": (0, 8 * TILT, 8)}, "slices that lean by 12.0 degrees, as under a tilted gantry. Cure: resample it"),
        ({"ImagePositionPatient": aside}, "slices lie straight behind each other"),
        ({"keep": [2]}, "an image is a stack of slices; got 1 slice, as of a localiser or a projection"),
        (
            {"ImagePositionPatient": lambda n: ["0", "0", str(n % 3)], "EchoTime": lambda n: str(1.5 + n // 3)},
            "each place has one image; got 5 images at 3 places; EchoTime has 2 values. Cure: export one series",
        ),
        (
            {"ImagePositionPatient": ["0", "0", "0"], "TriggerTime": lambda n: str(40 * n)},
            "got 5 images at 1 places; TriggerTime has 5 values (phases)",
        ),
        (
            {"ImagePositionPatient": lambda n: ["0", "0", str(max(n, 1))]},
            "got 5 images at 4 places, alike in what tells apart. Cure: remove the copies",
        ),
        (
            {"ImageOrientationPatient": lambda n: list("100010" if n < 4 else "010001")},
            "parallel; got 1 of 5 slices turned against the first, as in a localiser",
        ),
        ({"PixelSpacing": lambda n: ["1", "1"] if n < 4 else ["1", "2"]}, "got 1 x 1 mm (4), 2 x 1 mm (1)"),
        ({"ImageOrientationPatient": list("100100")}, "rows and columns are at right angles"),
        ({"ImagePositionPatient": lambda n: None}, "images say where they lie; got no ImagePositionPatient"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "images are grey (MONOCHROME1 or 2); got colours (PALETTE"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "an image holds one slice; got a mosaic of many"),
        ({"Rows": 11}, "its pixels can be decoded"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "slope and intercept are numbers"),
    ],
)  # fmt: skip
def test_what_is_no_even_stack_is_refused_by_name(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    write_series(tmp_path / "s", VOXELS, **options)
    assert said in str(refusal(tmp_path / "s"))


def test_slices_of_two_sizes(tmp_path: Path) -> None:
    write_series(tmp_path / "s", VOXELS)
    write_series(tmp_path / "s", VOXELS[:8], keep=[4])
    assert refusal(tmp_path / "s").got == "9 x 7 (4), 8 x 7 (1)"


def test_a_gap_in_a_multi_frame_object_is_named_too(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "s" / "x", VOXELS, slopes=[1] * 5, heights=[0, 8, 24, 32, 40])
    assert refusal(tmp_path / "s").got == "16 mm between images 4 and 3 where others lie 8 mm apart: 1 missing"


@pytest.mark.parametrize("frames", [1, 4])
def test_a_multi_frame_object_that_lacks_frames_is_refused(frames: int, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "s" / "x", VOXELS, slopes=[1] * 5)
    about = pydicom.dcmread(tmp_path / "s" / "x")
    about.NumberOfFrames = frames
    about.PixelData = about.PixelData[: frames * about.Rows * about.Columns * 2]
    about.save_as(tmp_path / "s" / "x")
    assert refusal(tmp_path / "s").got == f"5 for {frames} frames"


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_that_lack_frames_are_refused(compressed: bool, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "s" / "x", VOXELS, slopes=[1] * 5)
    about = pydicom.dcmread(tmp_path / "s" / "x")
    if compressed:
        about.compress(RLELossless)
        about.PixelData = encapsulate(list(generate_frames(about.PixelData, number_of_frames=5))[:4])
    else:
        about.PixelData = about.PixelData[: 4 * about.Rows * about.Columns * 2]
    about.save_as(tmp_path / "s" / "x")
    assert refusal(tmp_path / "s").rule == "its pixels can be decoded"


def test_frames_that_say_no_place(tmp_path: Path) -> None:
    write(tmp_path / "s" / "x", pixels(header(), np.zeros((4, 8, 8), np.uint16), NumberOfFrames=4))
    assert refusal(tmp_path / "s").got == "4 frames without them"


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "examples_palette.dcm", "examples_ybr_color.dcm"])
def test_colours_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"images are grey .*; got colours \("):
        read_frames([bundled(name)], "x")


def test_a_compression_without_a_decoder_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "s", VOXELS)
    for path in (tmp_path / "s").iterdir():
        about = pydicom.dcmread(path)
        about.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        about.PixelData = pydicom.encaps.encapsulate([about.PixelData])
        about["PixelData"].is_undefined_length = True
        about.save_as(path)
    from pydicom.pixels.decoders.base import get_decoder

    monkeypatch.setattr(get_decoder(JPEGLosslessSV1), "_available", {})
    fault = refusal(tmp_path / "s")
    assert fault.what == "the series, image 1"
    assert fault.rule == "a decoder for its compression is installed"
    assert fault.got.startswith("JPEG Lossless")
    assert all(word in fault.cure for word in ("pip install", "pylibjpeg", "gdcm", "decompress"))


@pytest.mark.parametrize("missing", ["pydicom", "highdicom"])
def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("secl_models.data.dicom.find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(InputError, match=rf"got no {missing}\. Cure: pip install 'secl\[dicom\]', or give NIfTI"):
        require_dicom("x")


def test_the_doctor_says_what_is_missing_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "highdicom" else "3.0")
    (found,) = [finding for finding in doctor.examine() if finding.name == "extra dicom"]
    assert (found.state, found.detail) == ("missing", "pydicom 3.0, highdicom missing")
    assert "pip install 'secl[dicom]'" in found.cure


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def not_finite(path: Path) -> None:
    about = pydicom.dcmread(path)
    del about.PixelData
    about.BitsAllocated = 32
    about.FloatPixelData = np.full((about.Rows, about.Columns), np.nan, np.float32).tobytes()
    about.save_as(path)


@pytest.mark.parametrize(("harm", "said"), [(cut, "its pixels can be decoded"), (not_finite, "63 of 315 voxels NaN")])
def test_pixels_that_are_not_there(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    write_series(tmp_path / "s", VOXELS)
    harm(tmp_path / "s" / "IM0002.dcm")
    assert said in str(refusal(tmp_path / "s"))


def test_a_position_that_is_no_number_is_no_traceback(tmp_path: Path) -> None:
    write_series(tmp_path / "s", VOXELS)
    path = tmp_path / "s" / "IM0002.dcm"
    stored: npt.NDArray[Any] = np.frombuffer(path.read_bytes(), np.uint8)
    path.write_bytes(stored.tobytes().replace(b"\\28.5", b"\\2a.5"))
    assert refusal(tmp_path / "s").rule == "headers as the standard has them"


def test_slices_that_drift_apart_are_uneven_though_no_two_gaps_differ_by_much(tmp_path: Path) -> None:
    voxels = image_array(shape=(4, 3, 40))
    write_series(tmp_path / "s", voxels, ImagePositionPatient=lambda n: ["0", "0", f"{n + n * n / 1000:.6g}"])
    assert refusal(tmp_path / "s").rule == "slices are evenly spaced"
