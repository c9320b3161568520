# SPDX-License-Identifier: Apache-2.0
"""Splits are by patient, drawn once, never leak a hidden label, and are verified when read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from secl_models.data.cases import Case, DataSet
from secl_models.data.layouts import read_data_set
from secl_models.data.splits import PARTS, load_split, make_split, save_split, split_like
from secl_models.options.errors import InputError
from tests.draws import examples


def case(name: str, patient: str | None = None, label: bool = True, split: str | None = None) -> Case:
    return Case(name, patient or name, (Path(f"{name}.nii"),), Path(f"{name}_label.nii") if label else None, split)


def data_set(cases: Sequence[Case], layout: str = "csv") -> DataSet:
    return DataSet(Path("set"), layout, {1: "a"}, ("MRI",), tuple(cases))


def plain(labeled: int, unlabeled: int = 0) -> DataSet:
    cases = [case(f"l{i}") for i in range(labeled)] + [case(f"u{i}", label=False) for i in range(unlabeled)]
    return data_set(cases, "decathlon")


def names(cases: Sequence[Case]) -> list[str]:
    return [each.name for each in cases]


def patients(cases: Sequence[Case]) -> set[str]:
    return {each.patient for each in cases}


@pytest.mark.drawn
@examples(100, labeled=st.integers(3, 60), unlabeled=st.integers(0, 5), scans=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_draw_separates_patients_and_hides_labels(labeled: int, unlabeled: int, scans: int, seed: int) -> None:
    cases = [case(f"{p}-{s}", f"p{p}", label=p < labeled) for p in range(labeled + unlabeled) for s in range(scans)]
    split = make_split(data_set(cases), 1, seed)
    train = patients(split.labeled) | patients(split.unlabeled)
    assert not train & patients(split.val)
    assert not train & patients(split.test)
    assert not patients(split.val) & patients(split.test)
    assert len(patients(split.labeled)) == 1
    assert all(each.label is None for each in split.unlabeled)
    assert all(each.label is not None for part in (split.labeled, split.val, split.test) for each in part)
    assert sum(len(getattr(split, part)) for part in PARTS) == len(cases)


@pytest.mark.parametrize(
    ("labeled", "test", "val"), [(3, 1, 1), (10, 2, 1), (50, 10, 5), (200, 40, 20), (260, 40, 20), (1000, 40, 20)]
)
def test_shares_have_a_floor_and_a_ceiling(labeled: int, test: int, val: int) -> None:
    split = make_split(plain(labeled), 1, 0)
    assert (len(split.test), len(split.val)) == (test, val)


def test_the_seed_draws_the_labelled_patients_and_nothing_else() -> None:
    data = plain(40, 10)
    splits = [make_split(data, 3, seed) for seed in range(4)]
    assert len({tuple(names(split.labeled)) for split in splits}) == 4
    assert len({(split.val, split.test) for split in splits}) == 1
    assert make_split(data, 3, 2) == splits[2]


def test_a_draw_is_the_same_on_every_machine() -> None:
    split = make_split(plain(10), 2, 0)
    assert (names(split.labeled), names(split.val), names(split.test)) == (["l3", "l8"], ["l0"], ["l1", "l9"])


def test_fewer_labelled_patients_are_a_subset_of_more() -> None:
    data = plain(30)
    drawn = [set(names(make_split(data, count, 7).labeled)) for count in (1, 3, 9)]
    assert drawn[0] < drawn[1] < drawn[2]


def test_ssl4mis_labels_the_first_patients_of_the_list_whatever_the_seed() -> None:
    train = [case(f"{p}-{s}", p, split="train") for p in ("p9", "p2", "p5") for s in range(2)]
    train.append(case("p9-late", "p9", split="train"))
    data = data_set([*train, case("v", split="val"), case("t", split="test")], "ssl4mis")
    for seed in (0, 1):
        split = make_split(data, 2, seed)
        assert names(split.labeled) == ["p9-0", "p9-1", "p2-0", "p2-1", "p9-late"]
        assert (names(split.val), names(split.test)) == (["v"], ["t"])


def test_rows_with_a_split_keep_it_and_only_the_missing_parts_are_drawn() -> None:
    free = [case(f"f{i}") for i in range(10)]
    split = make_split(data_set([case("v", split="val"), case("t", split="train"), *free]), 1, 0)
    assert names(split.val) == ["v"]
    assert len(split.test) == 2
    assert "t" in names(split.labeled) + names(split.unlabeled)


def test_other_images_of_a_drawn_patient_are_not_trained_on() -> None:
    cases = [each for i in range(10) for each in (case(f"l{i}", f"p{i}"), case(f"u{i}", f"p{i}", label=False))]
    split = make_split(data_set(cases), 1, 0)
    assert not patients(split.unlabeled) & (patients(split.val) | patients(split.test))
    assert len(split.unlabeled) == 13


def test_two_splits_that_share_a_patient() -> None:
    cases = [case("a", "p", split="train"), case("b", "p", split="test"), case("v", split="val")]
    with pytest.raises(InputError, match="patient p: a patient is in one split only; got a in train, b in test"):
        make_split(data_set(cases), 1, 0)


@pytest.mark.parametrize("labeled", [0, -1, 8])
def test_labelled_count_out_of_range_says_how_many_there_are(labeled: int) -> None:
    with pytest.raises(InputError, match=rf"--labeled: between 1 and the 7 training .* got {labeled}\."):
        make_split(plain(10, 5), labeled, 0)


def test_no_labels_and_no_validation() -> None:
    with pytest.raises(InputError, match="the 0 training patients with a label"):
        make_split(plain(0, 5), 1, 0)
    with pytest.raises(InputError, match="validation has at least one case"):
        make_split(data_set([case("a", split="train"), case("t", split="test")]), 1, 0)


@pytest.mark.parametrize("part", ["val", "test"])
def test_fixed_evaluation_case_without_label(part: str) -> None:
    cases = [case("a", split="train"), case("v", split="val"), case("x", label=False, split=part)]
    with pytest.raises(InputError, match=rf"x\.nii: a {part} case has a label"):
        make_split(data_set(cases), 1, 0)


@pytest.mark.drawn
@examples(60, before=st.integers(3, 40), given=st.integers(0, 12), joined=st.integers(0, 4), seed=st.integers(0, 9))
def test_a_split_like_an_earlier_one_keeps_who_is_tested_and_labelled(
    before: int, given: int, joined: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Patients gain labels, and others come, whom a new draw would test."""
    earlier = make_split(plain(before, 12), min(2, before - 2), seed)
    save_split(run := tmp_path_factory.mktemp("run") / "split.json", earlier)
    more = [case(f"u{i}", label=i < given) for i in range(12)] + [case(f"n{i}") for i in range(joined)]
    now = data_set([*(case(f"l{i}") for i in range(before)), *more], "decathlon")
    free = before - len(earlier.test) - len(earlier.val)
    most = free + given + joined
    for labeled in {len(earlier.labeled), most}:
        split = split_like(now, labeled, seed + 1, run.parent if seed % 2 else run)
        assert (names(split.test), names(split.val)) == (names(earlier.test), names(earlier.val))
        assert patients(earlier.labeled) <= patients(split.labeled)
        assert len(split.labeled) == labeled
        assert len(split.unlabeled) == free + 12 + joined - labeled
        assert all(each.label is None for each in split.unlabeled)


def test_a_tested_patient_s_new_image_is_neither_tested_nor_trained_on(tmp_path: Path) -> None:
    cases = [case(f"l{i}", f"p{i}") for i in range(10)]
    save_split(tmp_path / "split.json", earlier := make_split(data_set(cases), 2, 0))
    new = [case(f"n{i}", f"p{i}", label=i % 2 == 0) for i in range(10)]
    split = split_like(data_set([*cases, *new]), 3, 0, tmp_path)
    assert (names(split.test), names(split.val)) == (names(earlier.test), names(earlier.val))
    assert not (patients(split.labeled) | patients(split.unlabeled)) & patients([*split.test, *split.val])


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_mark_that_an_earlier_run_did_not_know_is_refused(part: str, tmp_path: Path) -> None:
    save_split(tmp_path / "split.json", make_split(plain(10), 2, 0))
    more = data_set([*plain(10).cases, case("n", split=part)])
    with pytest.raises(InputError, match=rf"n: validation and test are those of .*split\.json; got a mark as {part}\."):
        split_like(more, 3, 0, tmp_path)


def test_fewer_labels_than_an_earlier_run_used_and_more_than_there_are(tmp_path: Path) -> None:
    save_split(tmp_path / "split.json", make_split(plain(10), 4, 0))
    for labeled in (3, 8):
        told = rf"--labeled: at least the 4 patients labelled in .*split\.json, at most all 7 .* got {labeled}\."
        with pytest.raises(InputError, match=told):
            split_like(plain(10), labeled, 0, tmp_path)
    gone = replace(plain(10), cases=plain(10).cases[1:])
    with pytest.raises(InputError, match=r"split\.json: each case of the split is listed once and is in set; got l0"):
        split_like(gone, 4, 0, tmp_path)


def test_saved_split_is_read_back_equal(tmp_path: Path) -> None:
    data = plain(12, 4)
    split = make_split(data, 2, 5)
    save_split(tmp_path / "split.json", split)
    assert load_split(tmp_path / "split.json", data) == split
    assert json.loads((tmp_path / "split.json").read_text())["labeled"] == names(split.labeled)


def saved(tmp_path: Path, **parts: list[str]) -> Path:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"labeled": ["l0"], "unlabeled": ["u0"], "val": ["l1"], "test": ["l2"]} | parts))
    return path


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"val": ["gone"]}, "got gone of val"),
        ({"val": ["l0"]}, "listed once .* got l0 of val"),
        ({"test": ["u1"]}, "a case of test has a label; got u1"),
        ({"extra": []}, "lists names under"),
        ({"val": [3]}, "lists names under"),
    ],
)
def test_saved_split_is_verified(tmp_path: Path, parts: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_split(saved(tmp_path, **parts), plain(4, 2))
    assert caught.value.what == str(tmp_path / "split.json")


def test_saved_split_whose_parts_share_a_patient(tmp_path: Path) -> None:
    data = plain(4, 2)
    shared = replace(data, cases=tuple(replace(each, patient=each.patient.replace("u0", "l2")) for each in data.cases))
    with pytest.raises(InputError, match="one split only; got patient l2: u0 in train, l2 in test"):
        load_split(saved(tmp_path), shared)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"labeled": []}'])
def test_file_that_is_no_split(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "split.json").write_text(text)
    with pytest.raises(InputError, match="split"):
        load_split(tmp_path / "split.json", plain(4))


def test_split_of_the_acdc_protocol(real_data: Path, tmp_path: Path) -> None:
    data = read_data_set(real_data / "acdc")
    for labeled, slices in ((1, 32), (3, 68), (7, 136), (14, 256), (70, 1312)):
        split = make_split(data, labeled, seed=labeled)
        assert names(split.labeled) == names(data.cases)[:slices]
        assert (len(split.unlabeled), len(split.val), len(split.test)) == (1312 - slices, 20, 40)
    save_split(tmp_path / "split.json", split)
    assert load_split(tmp_path / "split.json", data) == split


def test_a_saved_split_names_the_cases_of_every_part(tmp_path: Path) -> None:
    split = make_split(plain(10, 3), 2, seed=0)
    save_split(tmp_path / "split.json", split)
    parts = {field.name: names(getattr(split, field.name)) for field in fields(split)}
    assert all(parts.values())
    assert json.loads((tmp_path / "split.json").read_text()) == parts
