# SPDX-License-Identifier: Apache-2.0
"""Headers that contradict themselves, or announce what their file does not hold, are refused with what cures them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from secl_models.data import nifti
from secl_models.data.cases import Case, DataSet
from secl_models.data.check import check_data_set
from secl_models.data.layouts import read_data_set
from secl_models.data.orientation import directions
from secl_models.data.volumes import Volume, load_volume, save_segmentation
from secl_models.inference.metrics import score_case
from secl_models.options.errors import InputError
from tests.models.files import AFFINE, edit, image_array, label_array, write_nifti, write_set

PIXDIM = (1.5625, 1.5625, 10.0)
NO_SPACING = np.diag([-1.0, -1.0, 1.0, 1.0])  # the sform of a public copy of a cardiac data set, pixdim right


def load(image: Path, label: Path | None = None, spacing_from: str = "auto", channels: int = 1) -> Volume:
    data = DataSet(image.parent, "csv", {1: "ring", 2: "core"}, ("MRI",) * channels, (), spacing_from=spacing_from)
    return load_volume(Case("a", "a", (image,), label, None), data)


def refusal(*arguments: Any, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load(*arguments, **options)
    return caught.value


def without_spacing(path: Path, array: Any) -> Path:
    write_nifti(path, array, NO_SPACING)
    edit(path, pixdim=[1, *PIXDIM, 0, 0, 0, 0], sform_code=2, qform_code=0)
    return path


def without_forms(path: Path, *sides: float) -> Path:
    write_nifti(path, image_array(), None)
    edit(path, pixdim=[1, *sides, 0, 0, 0, 0], sform_code=0, qform_code=0)
    return path


def test_affine_and_pixdim_that_disagree_are_refused_with_both_and_the_cure(tmp_path: Path) -> None:
    fault = refusal(without_spacing(tmp_path / "a.nii.gz", image_array()))
    assert str(fault) == (
        f"{tmp_path / 'a.nii.gz'}: affine and pixdim give one voxel spacing; got 1 x 1 x 1 mm of the affine and "
        "1.5625 x 1.5625 x 10 mm of pixdim. Cure: find out which is right, and add --set data.spacing_from=pixdim or "
        "--set data.spacing_from=affine."
    )


def test_the_one_that_counts_is_used_for_image_and_label_and_distances(tmp_path: Path) -> None:
    image = without_spacing(tmp_path / "a.nii.gz", image_array())
    # A label that was written with a right affine lies on the same grid once pixdim counts, but for its origin.
    label = write_nifti(tmp_path / "l.nii.gz", label_array(), np.diag([-1.5625, -1.5625, 10.0, 1.0]))
    by_pixdim, by_affine = load(image, label, "pixdim"), load(image, spacing_from="affine")
    assert (by_pixdim.spacing, by_affine.spacing) == (PIXDIM, (1.0, 1.0, 1.0))
    assert directions(by_pixdim) == directions(by_affine) == (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    assert np.allclose(by_pixdim.affine, np.diag([-1.5625, -1.5625, 10.0, 1.0]))
    moved = np.roll(label_array(), 1, 0)
    (ring, _) = score_case(moved, label_array(), {1: "ring", 2: "core"}, by_pixdim.spacing)
    assert (ring.hd95, ring.unit) == (1.5625, "mm")


def test_a_segmentation_keeps_a_header_that_contradicts_itself_bit_for_bit(tmp_path: Path) -> None:
    image = without_spacing(tmp_path / "a.nii.gz", image_array())
    edit(image, pixdim=[0, -1.5625, 0, 10, 3, 0, 0, 0])
    save_segmentation(tmp_path / "o.nii.gz", label_array().astype(int), image, {1: "ring", 2: "core"})
    before, after = (gzip.decompress((tmp_path / name).read_bytes()) for name in ("a.nii.gz", "o.nii.gz"))
    fields = nib.Nifti1Header.template_dtype.fields
    assert fields is not None
    for name in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "qoffset_x", "xyzt_units"):
        kind, offset = fields[name][:2]
        assert before[offset : offset + kind.itemsize] == after[offset : offset + kind.itemsize], name


@pytest.mark.parametrize(
    ("sides", "spacing"),
    [
        ((1.5, 1.5, 8.0), (1.5, 1.5, 8.0)),
        ((1.4998, 1.5001, 8.02), (1.5, 1.5, 8.0)),  # rounded
        ((-1.5, 1.5, 8.0), (1.5, 1.5, 8.0)),  # a sign, which old writers put there
        ((0.0, 1.5, float("nan")), (1.5, 1.5, 8.0)),  # not stored: the sform says it
    ],
)
def test_rounded_signed_and_missing_sides_are_no_contradiction(
    tmp_path: Path, sides: tuple[float, ...], spacing: tuple[float, ...]
) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    edit(path, pixdim=[1, *sides, 0, 0, 0, 0], sform_code=1, qform_code=0)
    assert load(path).spacing == spacing


@pytest.mark.parametrize(
    "sides", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan")), (1.0, float("inf"), 1.0)]
)
def test_no_forms_and_no_sides(tmp_path: Path, capfd: pytest.CaptureFixture[str], sides: tuple[float, ...]) -> None:
    fault = refusal(without_forms(tmp_path / "a.nii.gz", *sides))
    assert fault.rule == "pixdim holds sides above 0"
    assert fault.got == " x ".join(f"{side:g}" for side in sides)
    assert capfd.readouterr().err == ""  # nibabel's own line names no file


def test_no_forms_and_good_sides(tmp_path: Path) -> None:
    assert load(without_forms(tmp_path / "a.nii.gz", 1.0, 2.0, 3.0)).spacing == (1.0, 2.0, 3.0)


def test_pixdim_cannot_be_chosen_where_it_is_not_stored(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    edit(path, pixdim=[1, 0, 1.5, 8, 0, 0, 0, 0], sform_code=1, qform_code=0)
    assert "data.spacing_from=affine" in refusal(path, spacing_from="pixdim").cure


def test_sides_of_a_qform_are_those_of_pixdim(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    edit(path, pixdim=[1, 0, 1.5, 8, 0, 0, 0, 0], sform_code=0, qform_code=1)
    assert refusal(path).rule == "pixdim holds sides above 0"


def test_units_other_than_millimetres_do_not_make_a_contradiction(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array(), np.diag([0.002, 0.002, 0.005, 1.0]))
    edit(path, xyzt_units=1)
    assert load(path).spacing == pytest.approx((2.0, 2.0, 5.0))


def test_forms_that_run_different_ways(tmp_path: Path) -> None:
    image: Any = nib.Nifti1Image(image_array(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE @ np.diag([-1.0, 1, 1, 1]), 1)
    image.to_filename(tmp_path / "a.nii.gz")
    fault = refusal(tmp_path / "a.nii.gz")
    assert fault.rule == "sform and qform agree on where the axes run"
    assert "data.spacing_from=affine" in fault.cure
    assert np.array_equal(load(tmp_path / "a.nii.gz", spacing_from="affine").affine, AFFINE)
    image.set_qform(AFFINE + np.eye(4)[:, 3:] @ np.array([[0, 0, 0, 0.0]]), 1)
    image.to_filename(tmp_path / "a.nii.gz")
    assert load(tmp_path / "a.nii.gz").spacing == (1.5, 1.5, 8.0)


def test_quaternion_out_of_range(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    edit(path, quatern_b=2.0, sform_code=0, qform_code=1)
    fault = refusal(path)
    assert fault.rule == "quaternion b, c, d of the qform are of length 1 at most"
    assert "sform" in fault.cure
    edit(path, sform_code=1)  # which then counts
    assert load(path).spacing == (1.5, 1.5, 8.0)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_impossible_dimensions_are_a_fault_of_one_file_and_the_check_goes_on(tmp_path: Path, suffix: str) -> None:
    root = write_set(tmp_path)
    broken = root / "imagesTr" / "c_1.nii.gz"
    edit(broken, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])
    (root / "labelsTr" / "c_2.nii.gz").write_bytes(b"")
    if suffix == ".nii":
        broken.with_name("c_1.nii").write_bytes(gzip.decompress(broken.read_bytes()))
        broken.unlink()
    found = [(Path(fault.file).name, fault.got) for fault in check_data_set(read_data_set(root))]
    assert [name for name, _ in found] == [f"c_1{suffix}", "c_2.nii.gz"]
    assert "32000 x 32000 x 32000 voxels in 65,536,000,000,3" in found[0][1]


def test_voxels_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 60 TiB")

    monkeypatch.setattr(nifti, "_unpack", full)
    fault = refusal(write_nifti(tmp_path / "a.nii.gz", image_array()))
    assert (fault.rule, fault.got) == ("its voxels fit into memory", "Unable to allocate 60 TiB")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(nib, "load", denied)
    fault = refusal(path)
    assert (fault.rule, fault.got, fault.cure) == ("the file may be read", "Permission denied", f"chmod u+r '{path}'")


def test_something_behind_the_compressed_data(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)  # padding of an archive
    assert np.array_equal(load(path).image[0], image_array())
    path.write_bytes(whole + b"0123456789")
    fault = refusal(path)
    assert (fault.rule, fault.got) == ("nothing follows the compressed data", "10 bytes of something else")
    assert "gunzip -c 'a.nii.gz'" in fault.cure


def test_a_file_packed_in_several_pieces(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert np.array_equal(load(path).image[0], image_array())


def test_axes_of_length_one_are_dropped_and_others_are_shown(tmp_path: Path) -> None:
    deep = write_nifti(tmp_path / "a.nii.gz", image_array()[..., None, None])
    assert np.array_equal(load(deep).image[0], image_array())
    save_segmentation(tmp_path / "o.nii.gz", label_array().astype(int), deep, {1: "ring", 2: "core"})
    assert np.array_equal(np.asarray(load(deep, tmp_path / "o.nii.gz").label), label_array())
    vectors = write_nifti(tmp_path / "v.nii.gz", np.zeros((4, 4, 4, 1, 3), np.float32))
    fault = refusal(vectors)
    assert fault.got == "shape (4, 4, 4, 1, 3)"
    assert "channels along the fourth axis" in fault.cure


def test_colours_and_complex_numbers_have_a_cure_each(tmp_path: Path) -> None:
    colours = write_nifti(tmp_path / "c.nii.gz", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert "grey" in refusal(colours).cure
    assert "magnitude" in refusal(write_nifti(tmp_path / "z.nii.gz", np.zeros((4, 4, 4), np.complex64))).cure


@pytest.mark.parametrize(("flat", "deep"), [((8, 7), (8, 7, 1)), ((8, 7, 1), (8, 7))])
def test_an_image_and_a_label_of_one_slice_are_one_grid(
    tmp_path: Path, flat: tuple[int, ...], deep: tuple[int, ...]
) -> None:
    image = write_nifti(tmp_path / "i.nii.gz", image_array(shape=flat))
    label = write_nifti(tmp_path / "l.nii.gz", label_array((8, 7)).reshape(deep))
    volume = load(image, label)
    assert volume.label is not None
    assert volume.label.shape == volume.image.shape[1:] == flat


@pytest.mark.parametrize("suffix", [".img", ".hdr"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_pair_is_read_and_its_segmentation_is_one_file(tmp_path: Path, suffix: str, packed: str) -> None:
    image: Any = nib.Nifti1Pair(image_array(), AFFINE)
    image.to_filename(tmp_path / f"a.img{packed}")
    path = tmp_path / f"a{suffix}{packed}"
    assert np.array_equal(load(path).image[0], image_array())
    save_segmentation(tmp_path / "o.nii.gz", label_array().astype(int), path, {1: "ring", 2: "core"})
    seen: Any = nib.load(tmp_path / "o.nii.gz")
    assert isinstance(seen, nib.Nifti1Image)
    assert np.array_equal(seen.affine, AFFINE)
    assert np.array_equal(np.asarray(seen.dataobj), label_array())


def test_half_a_pair_and_a_pair_that_is_no_nifti(tmp_path: Path) -> None:
    nib.AnalyzeImage(image_array(), AFFINE).to_filename(tmp_path / "a.img")
    assert refusal(tmp_path / "a.img").rule == "the file is NIfTI"
    (tmp_path / "a.hdr").unlink()
    assert refusal(tmp_path / "a.img").rule == "a NIfTI pair has .hdr beside .img"


def test_capitals_in_a_suffix(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    assert np.array_equal(load(path.rename(tmp_path / "A.NII.GZ")).image[0], image_array())


def test_an_extension_of_an_odd_size_is_no_matter(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", image_array())
    content = gzip.decompress(path.read_bytes())
    extension = np.array([24, 6], "<i4").tobytes() + b"0123456789abcdef"
    header = nib.Nifti1Header(content[:348])
    header["vox_offset"] = 352 + len(extension)
    path.write_bytes(gzip.compress(header.binaryblock + b"\1\0\0\0" + extension + content[352:]))
    assert np.array_equal(load(path).image[0], image_array())  # and nibabel's warning, which names no file, is not seen
