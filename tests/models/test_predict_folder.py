# SPDX-License-Identifier: Apache-2.0
"""A folder of images: what fails stops nothing, a later call goes on, and segmentations of two kinds never mix."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from secl_models.inference.evaluate import evaluate
from secl_models.inference.predict import predict
from secl_models.options.errors import InputError, WriteError
from tests.models.runs import TinyRun, tiny_run


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return tiny_run(tmp_path_factory)


def _images(run: TinyRun, tmp_path: Path, count: int = 3) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, case in enumerate(run.data.cases[:count]):
        shutil.copy(case.image[0], folder / f"scan_{index}.nii.gz")
    return folder


def _states(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


def test_one_bad_image_does_not_stop_the_others_and_a_second_call_goes_on(run: TinyRun, tmp_path: Path) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    good = (images / "scan_1.nii.gz").read_bytes()
    (images / "scan_1.nii.gz").write_bytes(good[:400])
    found = predict(run.folder, images, out)
    assert [file.name for file in found.written] == ["scan_0.nii.gz", "scan_2.nii.gz"]
    (failure,) = found.failures
    assert failure.what == str(images / "scan_1.nii.gz")
    before = _states(out)
    again = predict(run.folder, images, out)
    assert (again.written, [file.name for file in again.kept]) == ((), ["scan_0.nii.gz", "scan_2.nii.gz"])
    assert len(again.failures) == 1
    (images / "scan_1.nii.gz").write_bytes(good)
    last = predict(run.folder, images, out)
    assert [file.name for file in last.written] == ["scan_1.nii.gz"]
    assert (len(last.kept), last.failures) == (2, ())
    assert before.items() < _states(out).items()


def test_labels_beside_the_images_are_left_out_aloud(
    run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = _images(run, tmp_path)
    for name in ("scan_0_gt", "scan_1-Seg", "other_mask"):  # the last is of no image that is there
        shutil.copy(images / "scan_0.nii.gz", images / f"{name}.nii.gz")
    found = predict(run.folder, images, tmp_path / "out")
    assert [file.name for file in found.written] == [
        "other_mask.nii.gz", "scan_0.nii.gz", "scan_1.nii.gz", "scan_2.nii.gz",
    ]  # fmt: skip
    assert (
        "Not read, 2 files named as the label of an image beside them: scan_0_gt.nii.gz, scan_1-Seg.nii.gz. "
        "To segment them, name each by itself."
    ) in caplog.messages


def test_a_label_beside_the_sequences_of_its_patient_is_left_out(
    run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = _images(run, tmp_path)
    for old, new in (("scan_0", "p_1_t1"), ("scan_1", "p_1_t2"), ("scan_2", "p_1_seg")):
        (images / f"{old}.nii.gz").rename(images / f"{new}.nii.gz")
    for name in ("q_gt", "q_mask"):  # of no image
        shutil.copy(images / "p_1_t1.nii.gz", images / f"{name}.nii.gz")
    found = predict(run.folder, images, tmp_path / "out")
    assert [file.name for file in found.written] == [
        f"{name}.nii.gz" for name in ("p_1_t1", "p_1_t2", "q_gt", "q_mask")
    ]
    assert "Not read, 1 files named as the label of an image beside them: p_1_seg.nii.gz." in caplog.text


def test_what_was_drawn_by_hand_where_an_image_failed_is_not_overwritten(run: TinyRun, tmp_path: Path) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    good = (images / "scan_1.nii.gz").read_bytes()
    (images / "scan_1.nii.gz").write_bytes(good[:400])
    assert len(predict(run.folder, images, out).failures) == 1
    (out / "scan_1.nii.gz").write_bytes(b"by hand")
    (images / "scan_1.nii.gz").write_bytes(good)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"scan_1\.nii\.gz"):
            predict(run.folder, images, out, overwrite=overwrite)
    assert (out / "scan_1.nii.gz").read_bytes() == b"by hand"


def test_an_image_of_other_channels_is_a_failure_of_its_own(run: TinyRun, tmp_path: Path) -> None:
    images = _images(run, tmp_path)
    image = nib.Nifti1Image.from_filename(images / "scan_0.nii.gz")
    twice = np.stack([np.asarray(image.dataobj)] * 2, -1)
    nib.Nifti1Image(twice, image.affine).to_filename(images / "scan_0.nii.gz")
    found = predict(run.folder, images, tmp_path / "out")
    (failure,) = found.failures
    assert str(failure).endswith(
        "the network takes 1 image channel(s); got 2 channel(s). Cure: give the training's channels in its order: "
        "one 4-D file, or a folder of CASE_0000, CASE_0001, ...."
    )
    assert len(found.written) == 2


def test_segmentations_of_two_kinds_are_not_mixed(run: TinyRun, tmp_path: Path) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    predict(run.folder, images, out)
    before = _states(out)
    for options, named in (
        ({"flips": "0"}, "flips"),
        ({"largest_component": "auto", "probabilities": True}, "probabilities, largest-component"),
    ):
        with pytest.raises(InputError, match=rf"made with another {named}\. Cure: choose another --out, or add"):
            predict(run.folder, images, out, **options)
    other = Path(shutil.copy(run.folder / "last.pt", tmp_path / "other.pt"))
    state = torch.load(other, weights_only=True)
    torch.save({**state, "seconds": 0.0}, other)
    with pytest.raises(InputError, match="made with another checkpoint"):
        predict(other, images, out)
    assert _states(out) == before
    assert len(predict(other, images, out, overwrite=True).written) == 3
    assert predict(other, images, out).kept


def test_an_image_that_changed_is_not_passed_over(run: TinyRun, tmp_path: Path) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    predict(run.folder, images, out)
    shutil.copy(run.data.cases[5].image[0], images / "scan_2.nii.gz")
    with pytest.raises(InputError, match=r"scan_2\.nii\.gz, which has changed since\. Cure: remove the segmentation"):
        predict(run.folder, images, out)
    (out / "scan_2.nii.gz").unlink()
    assert [file.name for file in predict(run.folder, images, out).written] == ["scan_2.nii.gz"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("case_07_0000", "case_07_0001"), True), (("scan_0000", "scan_0001"), False),
        (("case_07_0000", "case_08_0000"), False), (("a1_2019", "a1_2020"), False),
    ],
)  # fmt: skip
def test_channels_that_a_network_of_one_does_not_take_are_named(
    run: TinyRun, tmp_path: Path, names: tuple[str, str], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    for name, case in zip(names, run.data.cases, strict=False):
        shutil.copy(case.image[0], tmp_path / "images" / f"{name}.nii.gz")
    assert len(predict(run.folder, tmp_path / "images", tmp_path / "out").written) == 2
    told = f"{names[0]} and {names[1]} look like channels of one case; the network takes one"
    assert any(message.startswith(told) for message in caplog.messages) == said


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("case_07_0000", "case_08_0000"), ["case_07", "case_08"]),
        (("case_07_0000", "scan"), ["case_07", "scan"]),
        (("scan_0000", "scan_0001"), ["scan_0000", "scan_0001"]),
        (("scan_0000", "tumour_0000"), ["scan_0000", "tumour_0000"]),  # the number of a case, for all that is known
        (("case_07", "case_07_0000"), ["case_07", "case_07_0000"]),
    ],
)
def test_one_channel_of_nnu_net_gives_the_name_of_the_case(
    run: TinyRun, tmp_path: Path, names: tuple[str, str], written: list[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name, case in zip(names, run.data.cases, strict=False):
        shutil.copy(case.image[0], tmp_path / "images" / f"{name}.nii.gz")
    files = predict(run.folder, tmp_path / "images", tmp_path / "out").written
    assert [file.name for file in files] == [f"{name}.nii.gz" for name in written]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"settings": 3, "sources": {}}', '{"settings": {"checkpoint": 1}, "sources": {}}', b"\xff\xfe"],
)
def test_a_record_that_was_edited_is_refused(run: TinyRun, tmp_path: Path, content: str | bytes) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    predict(run.folder, images, out)
    (out / "predict.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"predict\.json: the record as `secl predict` wrote it"):
        predict(run.folder, images, out)
    assert len(predict(run.folder, images, out, overwrite=True).written) == 3


def test_sources_of_another_kind_are_refused(run: TinyRun, tmp_path: Path) -> None:
    images, out = _images(run, tmp_path), tmp_path / "out"
    predict(run.folder, images, out)
    values = json.loads((out / "predict.json").read_text())
    wrong: tuple[object, ...] = ([], {"scan_0": 3})
    for sources in wrong:
        (out / "predict.json").write_text(json.dumps({**values, "sources": sources}))
        with pytest.raises(InputError, match=r"predict\.json: the record as `secl predict` wrote it"):
            predict(run.folder, images, out)


def test_a_full_disk_is_named_with_what_to_free(run: TinyRun, tmp_path: Path, small_disk: Path) -> None:
    images, out = _images(run, tmp_path), small_disk / "out"
    assert len(predict(run.folder, images, out).written) == 3
    (out / "scan_1.nii.gz").unlink()
    with (small_disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while other.write(bytes(4096)):
            pass
    for call in (
        lambda: predict(run.folder, images, out),
        lambda: predict(run.folder, images / "scan_1.nii.gz", small_disk / "one.nii.gz"),
        lambda: evaluate(run.folder, run.data, out=small_disk / "scores", progress=False),
    ):
        with pytest.raises(WriteError) as refusal:
            call()
        assert (refusal.value.rule, refusal.value.got) == ("room on the disk", "No space left on device")
        assert str(small_disk) in refusal.value.what
        assert f"free some space on the disk of {small_disk}" in refusal.value.cure
    assert not (small_disk / "one.nii.gz").exists()
    (small_disk / "other").unlink()
    assert [file.name for file in predict(run.folder, images, out).written] == ["scan_1.nii.gz"]


def test_segmentations_of_somebody_else_are_not_replaced(run: TinyRun, tmp_path: Path) -> None:
    """As those drawn by hand, where --out is their folder by mistake."""
    images, out = _images(run, tmp_path), tmp_path / "labelsTr"
    out.mkdir()
    (out / "scan_1.nii.gz").write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match=r"own list are replaced or removed; got scan_1\.nii\.gz, which"):
        predict(run.folder, images, out, overwrite=True)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("scan_1.nii.gz", b"drawn by hand")]
