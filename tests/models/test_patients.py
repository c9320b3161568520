# SPDX-License-Identifier: Apache-2.0
"""Cases of one patient are told from their names, and no two patients are taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from secl_models.command import cli
from secl_models.command.arguments import data_and_split
from secl_models.data.cases import Case, DataSet
from secl_models.data.check import check_data_set
from secl_models.data.layouts import read_data_set
from secl_models.data.patients import grouping, patient_of, suspected, suspicion
from secl_models.data.splits import PARTS, load_split, make_split, save_split
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE
from secl_models.options.schema import load_preset, override
from tests.models.files import write_set, write_table


@pytest.mark.parametrize(
    ("patient", "names"),
    [
        ("sub-02", "sub-02 sub-02_ses-1_T1w sub-02_ses-2_run-01_bold sub-02_acq-tse_T2w sub-02_0001"),
        ("siteA_sub-c01", "siteA_sub-c01_ses-1 siteA_sub-c01_ses-2"),
        ("patient003", "patient003_ED patient003_ES patient003_frame01 patient003_frame12_slice_7 patient003_lesion2"),
        ("Subject_12", "Subject_12_pre Subject_12_post Subject_12-2019-07-31"),
        ("A0S9V9", "A0S9V9_ED A0S9V9_ES A0S9V9-ed"),
        ("knee_007", "knee_007_L knee_007_R knee_007_left knee_L_007 knee_right_007"),
        ("007", "L_007 R_007 left-007 007_L"),
        ("p01", "p01_visit1 p01_visit_2 p01_tp2 p01_session-3 p01_baseline p01_followup p01_fu2 p01_week12"),
        ("case12", "case12_20200101 case12_2021-12-31 case12_2021_12_31 case12_t1 case12_flair case12_0000"),
        ("OAS1_0001", "OAS1_0001_MR1 OAS1_0001_MR2"),
        ("IXI002-Guys-0828", "IXI002-Guys-0828-T1 IXI002-Guys-0828-T2"),
        ("P1", "P1_L_CC P1_R_MLO P1_prone P1_venous P1_time1 P1_insp P1_sag"),
        ("anna", "anna_ED anna_ES anna_pre anna_left"),
        ("BRATS_001", "BRATS_001 BRATS_001_0000"),
        ("heart", "heart_frame01 heart_frame12"),
        ("001", "001_SA_ED 001_LA_ES 001_2CH 001_4ch_ED"),
        ("100307", "100307_3T_T1w_MPR1 100307_7T_T2w"),
        ("9001104", "9001104_20050825_SAG_3D_DESS_RIGHT 9001104_6months 9001104-20050825T121314"),
        ("CHUM-001", "CHUM-001__CT CHUM-001__PT"),
        ("1", "1_T1DUAL_InPhase 1_T1DUAL_OutPhase 1_T2SPIR 1_hbv"),
        ("copd1", "copd1_eBHCT copd1_iBHCT copd1_in copd1_ex"),
        ("Smith_7", "Smith_7_01-02-2019 Smith_7_28.11.2020 Smith_7_20190203101112"),
        ("bert", "bert_visit1 bert_visit_2 bert_ses-1 bert_week12"),
        ("patient02", "scan1_patient02 scan_2_patient02 baseline_patient02 V3_patient02 patient02"),
        ("patient_02", "scan1_patient_02 followup_patient_02_T1w"),
        ("sub-c01", "visit1_sub-c01 visit2_sub-c01_T1w"),
        ("p04", "baseline_p04 followup_p04 V1_p04 v2_p04 week12_p04 before_p04 p04_ED"),
    ],
)
def test_names_of_one_patient(patient: str, names: str) -> None:
    assert {name: patient_of(name) for name in names.split()} == dict.fromkeys(names.split(), patient)


def test_copies_are_of_the_patient_of_the_original() -> None:
    names = ["case_01 - Copy", "case_01 (2)", "case_01 - Kopie", "case_01_copy"]
    assert [patient_of(name) for name in names] == ["case_01"] * 4
    assert [patient_of(name) for name in ("scan (1)", "scan (2)")] == ["scan (1)", "scan (2)"]


@pytest.mark.parametrize(
    "names",
    [
        "case_00 case_01 case_02 case_10",
        "hippocampus_001 hippocampus_002",
        "la_003 la_004 left_atrium_003 left_atrium_004",
        "BRATS_001_0000 BRATS_002_0000",
        "c_0001 c_0002 site1_0001 site1_0002 site2_0001 site1_scan_001 site1_scan_002",
        "patient_1 patient_10 patient001 patient002 patient12a patient12b",
        "sub-01_ses-1 sub-02_ses-1 sub-01b_ses-1",
        "ct_train_1001 mr_train_1001 ct_1 mr_1 ct_2 mr_2",
        "scan_20200101 scan_20200102 20200101 20200102",
        "phantom_001 phantom_002 toy_00 toy_01 s0011 s0012 liver_0 liver_1 volume-0 volume-1",
        "002_S_0295 002_S_0413 LIDC-IDRI-0001 LIDC-IDRI-0002 TCGA-02-0003 TCGA-02-0006",
        "a b l r ed es pre post frame_1 visit_2 t1 t2",
        "slice_1 slice_2 frame01 frame02 v1 v2",
        "scan1 scan2 scan_01 scan_02 baseline_liver_1 liver_1 siteA_patient02 siteB_patient02",
    ],
)
def test_names_of_different_patients(names: str) -> None:
    assert len({patient_of(name) for name in names.split()}) == len(names.split())


def test_what_may_be_one_patient_is_suspected_and_a_site_is_not() -> None:
    gli = [f"BraTS-GLI-{patient:05d}-{time:03d}" for patient in range(3) for time in range(2)]
    assert suspected(gli)["BraTS-GLI-00001"] == gli[2:4]
    assert suspected(["001a", "001b", "002a"]) == {"001": ["001a", "001b"]}
    assert suspected(["p03ED", "p03ES", "p04ED"]) == {"p03": ["p03ED", "p03ES"]}
    assert suspected(["ann_20200101", "ann_20210101", "bob_20200101"]) == {"ann": ["ann_20200101", "ann_20210101"]}
    assert suspected([f"site{site}_{number:03d}" for site in range(3) for number in range(20)]) == {}
    assert suspected(["ann_1", "ann_2", "bob_1", "bob_2"]) == {"ann": ["ann_1", "ann_2"], "bob": ["bob_1", "bob_2"]}
    assert suspected(["2020-01-05_ann", "2021-03-07_ann", "2020-01-05_bob"]) == {
        "ann": ["2020-01-05_ann", "2021-03-07_ann"]
    }
    assert suspected(["ann_A", "ann_B", "bob_A", "bob_B"]) == {"ann": ["ann_A", "ann_B"], "bob": ["bob_A", "bob_B"]}
    assert suspected([f"case_{letter}" for letter in "abcd"]) == {}
    assert suspected(["c_1", "c_2", "cafe"]) == {}
    assert suspected([f"{organ}_{number}" for organ in ("liver", "lung") for number in range(9)]) == {}
    assert suspected([f"case_{number:02d}" for number in range(9)]) == {}
    assert suspected(["BraTS20_Training_001", "BraTS20_Training_002"]) == {}


def test_a_beginning_with_a_number_is_suspected_where_few_share_it() -> None:
    assert suspected(["10000_1000000", "10000_1000001", "10001_1000002"]) == {
        "10000": ["10000_1000000", "10000_1000001"]
    }
    assert suspected(["77_20209_2_0", "77_20209_3_0", "78_20209_2_0"]) == {"77_20209": ["77_20209_2_0", "77_20209_3_0"]}
    assert suspected(["p1_quiet", "p1_paced", "p2_quiet"]) == {"p1": ["p1_quiet", "p1_paced"]}
    sites = [
        f"TCGA-{site:02d}-{patient:04d}"
        for site, count in ((2, 30), (6, 9), (8, 12), (27, 3))
        for patient in range(count)
    ]
    assert not any("-27" in name for name in suspected(f"{name}-x" for name in sites))


def test_sessions_of_a_subject_fall_into_one_part(tmp_path: Path) -> None:
    names = [f"sub-{subject:02d}_ses-{session}_T1w" for subject in range(5) for session in (1, 2)]
    data = read_data_set(write_set(tmp_path, names))
    split = make_split(data, 2, 0)
    places = [{case.name[:6] for case in getattr(split, part)} for part in PARTS]
    assert sum(map(len, places)) == len(set.union(*places)) == 5
    assert grouping(data) == (
        "10 cases of 5 patients: sub-00: ses-1_T1w, ses-2_T1w; sub-01: ses-1_T1w, ses-2_T1w; "
        "sub-02: ses-1_T1w, ses-2_T1w; ..."
    )


def test_a_suspicion_is_a_warning_with_the_column_as_its_cure(tmp_path: Path) -> None:
    data = read_data_set(write_set(tmp_path, ["case_1_a", "case_1_b", "case_2_a"]))
    (fault,) = check_data_set(data)
    assert (fault.severity, fault.got) == ("warning", "names that may be of one patient: case_1_a, case_1_b")
    assert "column `patient`" in fault.cure
    assert grouping(data) is None


def test_a_table_says_who_is_who() -> None:
    cases = tuple(Case(f"case_1_{letter}", letter, (), None, None) for letter in "ab")
    assert suspicion(DataSet(Path("t.csv"), "csv", {1: "x"}, ("MRI",), cases)) is None


def test_one_name_in_two_forms_of_characters_is_one_patient(tmp_path: Path) -> None:
    rows = [f"imagesTr/c_{number}.nii.gz,,{name}," for number, name in enumerate(("Jos\u00e9", "Jose\u0301", "bob"))]
    data = read_data_set(write_table(write_set(tmp_path), rows))
    assert [case.patient for case in data.cases] == ["Jos\u00e9", "Jos\u00e9", "bob"]
    assert suspicion(data) is None


@pytest.mark.parametrize("names", [("Ann", "ann"), ("stra\u00dfe", "STRASSE"), ("p\uff11", "p1"), ("\ufb01n", "FIN")])
@pytest.mark.parametrize("layout", ["decathlon", "ssl4mis", "csv"])
def test_names_that_are_spelt_apart_are_suspected(names: tuple[str, str], layout: str, tmp_path: Path) -> None:
    cases = tuple(Case(name, name, (), None, None) for name in (*names, "bob"))
    data = DataSet(tmp_path, layout, {1: "x"}, ("MRI",), cases)
    assert suspicion(data) == ", ".join(names)
    (fault,) = check_data_set(data, [])
    assert (fault.severity, fault.got) == ("warning", f"names that may be of one patient: {', '.join(names)}")
    assert ("spell each patient one way" in fault.cure) == (layout == "csv")


def test_a_split_from_before_the_grouping_is_refused_by_the_patient(tmp_path: Path) -> None:
    data = read_data_set(write_set(tmp_path / "d", [f"sub-{subject}_ses-{s}" for subject in (1, 2, 3) for s in (1, 2)]))
    split = make_split(data, 1, 0)
    save_split(tmp_path / "good.json", split)
    assert load_split(tmp_path / "good.json", data) == split
    text = (tmp_path / "good.json").read_text()
    one, other = split.labeled[0].name, split.test[0].name
    mixed = text.replace(one, "x").replace(other, one).replace("x", other)
    (tmp_path / "leaking.json").write_text(mixed)
    with pytest.raises(InputError, match=r"leaking\.json: a patient is in one split only; got patient sub-"):
        load_split(tmp_path / "leaking.json", data)


def test_check_and_train_print_what_was_grouped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"patient{number:03d}_{phase}" for number in range(4) for phase in ("ED", "ES")]
    root = write_set(tmp_path, [*names, "x_1_a", "x_1_b"])
    groups = "10 cases of 6 patients: patient000: ED, ES; patient001: ED, ES; patient002: ED, ES; ..."
    assert groups in CliRunner().invoke(cli.app, ["check", "--data", str(root)]).stdout
    caplog.clear()
    caplog.set_level(NOTE, "secl_models")
    data_and_split(root, override(load_preset("demo"), ["labeled=1"]))
    assert [record.getMessage() for record in caplog.records if record.levelno >= NOTE] == [
        groups,
        "May be of one patient: x_1_a, x_1_b. To say who is who, list the cases in a CSV with its column `patient`.",
    ]
