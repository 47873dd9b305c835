"""Series tables: every bad row is told, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from series_tables import LABELS, row_of, write_ct, write_table

from dinomed.data.series_checks import content_mark, doubtful_rows
from dinomed.data.series_table import problems_csv, read_series_table, require_usable
from dinomed.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        write_ct(tmp_path / f"{name}.nii", seed)
    return tmp_path


def good_rows() -> list[dict]:
    return [row_of("a"), row_of("b", (1, 0, 0, 0, 0, 1)), row_of("c", (1, 1, 0, 0, 0, 0)), row_of("d")]


def read(folder: Path, rows: list[dict], **options):
    return read_series_table(write_table(folder / "table.csv", rows), **options)


def told(table, row: int) -> str:
    return " | ".join(problem.what for problem in table.problems if problem.row == row)


def test_a_sound_table_is_read_as_it_is(folder):
    table = read(folder, good_rows())
    assert table.problems == ()
    assert [series.row for series in table.series] == [2, 3, 4, 5]
    assert table.series[1].labels == (1, 0, 0, 0, 0, 1)
    assert table.series[1].path == folder / "b.nii"
    require_usable(table)


@pytest.mark.parametrize(
    "change", ["semicolon", "tab", "bom", "utf16", "crlf", "numbers", "quotes", "absolute", "root"]
)
def test_the_ways_in_which_tables_are_written(folder, change, tmp_path_factory):
    rows, options, form = good_rows(), {}, {}
    place = folder
    if change == "numbers":
        for row in rows:
            row.update({f"label_{name}": float(row[f"label_{name}"]) for name in LABELS})
    if change == "quotes":
        rows[0]["rel_dir"] = 'a, "quoted"\nname'
    if change == "absolute":
        rows = [{**row, "nifti_path": str(folder / row["nifti_path"])} for row in rows]
        place = tmp_path_factory.mktemp("elsewhere")
    if change == "root":
        place, options = tmp_path_factory.mktemp("elsewhere"), {"data_root": folder}
    form = {"semicolon": {"delimiter": ";"}, "tab": {"delimiter": "\t"}, "bom": {"encoding": "utf-8-sig"}}.get(
        change, {}
    )
    form = {"encoding": "utf-16"} if change == "utf16" else form
    path = write_table(place / "table.csv", rows, **form)
    if change == "crlf":
        assert b"\r\n" in path.read_bytes()
        path.write_bytes(path.read_bytes() + b"\r\n\r\n")
    table = read_series_table(path, **options)
    assert table.problems == ()
    assert [series.labels for series in table.series] == [series.labels for series in read(folder, good_rows()).series]


def test_every_bad_row_is_told(folder):
    (folder / "broken.nii").write_bytes(b"no scan" * 100)
    rows = [
        *good_rows(),
        row_of("e"),  # 6: no such file
        row_of("f", nifti_path="broken.nii"),  # 7
        row_of("g", series_uid=""),  # 8
        row_of("h", label_epidural="2", nifti_path="a.nii"),  # 9
        row_of("i", label_subdural="", label_any="yes", nifti_path="b.nii"),  # 10
        row_of("j", (0, 0, 1, 0, 0, 0), nifti_path="c.nii"),  # 11
        row_of("k", study_uid="", nifti_path=""),  # 12
    ]
    table = read(folder, rows)
    assert [series.row for series in table.series] == [2, 3, 4, 5]
    assert "e.nii does not exist" in told(table, 6)
    assert "broken.nii is no image" in told(table, 7)
    assert told(table, 8) == "series_uid is empty"
    assert "label_epidural is '2'" in told(table, 9)
    assert "label_any is 'yes' | label_subdural is empty" in told(table, 10)
    assert "label_any is 0, but label_intraparenchymal is 1" in told(table, 11)
    assert told(table, 12) == "study_uid is empty | nifti_path is empty"
    lines = problems_csv(table.problems).splitlines()
    assert lines[0] == "row,series_uid,what,fix"
    assert len(lines) == 1 + len(table.problems) == 10
    assert all(problem.fix for problem in table.problems)


def test_a_row_with_several_faults_tells_all_of_them(folder):
    table = read(folder, [*good_rows(), row_of("e", label_epidural="x", label_subdural="y")])
    assert [problem.row for problem in table.problems] == [6, 6, 6]


def test_rows_that_contradict_each_other_are_all_left_out(folder):
    rows = [
        row_of("a"),
        row_of("b", series_uid="series a"),  # 3: another scan of the same name
        row_of("c", (1, 1, 0, 0, 0, 0)),
        row_of("c2", (1, 0, 0, 0, 0, 1), nifti_path="./c.nii", study_uid="study c"),  # 5: other labels
        row_of("d", patient_id="one"),
        row_of("d2", nifti_path="d.nii", patient_id="two"),  # 7: another patient and study
    ]
    table = read(folder, [{"patient_id": "", **row} for row in rows])
    assert table.series == ()
    assert "listed 2 times (rows 2, 3 differ)" in told(table, 2)
    assert "different labels (rows 4, 5)" in told(table, 5)
    assert "listed under 2 patients (rows 6, 7)" in told(table, 6)
    with pytest.raises(InputError, match="none of its 6 rows can be used; the first problem is: row 2"):
        require_usable(table)


def test_of_rows_that_say_the_same_the_first_is_kept(folder):
    table = read(
        folder, [*good_rows(), row_of("a"), row_of("b2", (1, 0, 0, 0, 0, 1), nifti_path="b.nii", study_uid="study b")]
    )
    assert [series.row for series in table.series] == [2, 3, 4, 5]
    assert "also row 2" in told(table, 6)
    assert "the file is listed 2 times (rows 3, 7)" in told(table, 7)


def test_a_study_of_two_patients_and_one_file_in_two_studies_are_told(folder):
    rows = [{**row, "patient_id": ""} for row in good_rows()]
    rows[0].update(study_uid="one", patient_id="P1")
    rows[1].update(study_uid="one", patient_id="P2")
    rows[3].update(nifti_path="c.nii")
    table = read(folder, rows)
    assert told(table, 2) == told(table, 3) == "study one belongs to 2 patients"
    assert told(table, 4) == told(table, 5) == "the file is listed under 2 studies (rows 4, 5)"


def test_copies_of_one_scan_under_two_studies_are_remarked_but_kept(folder):
    shutil.copy(folder / "a.nii", folder / "d.nii")
    assert content_mark(folder / "a.nii") == content_mark(folder / "d.nii") != content_mark(folder / "b.nii")
    table = read(folder, good_rows())
    assert "one scan, in copies, is listed under 2 studies (rows 2, 5)" in told(table, 5)
    assert len(table.series) == 4


def test_copies_that_contradict_each_other_are_left_out(folder):
    for name in "ef":
        shutil.copy(folder / "a.nii", folder / f"{name}.nii")
    rows = [*good_rows(), row_of("e", (1, 1, 0, 0, 0, 0))]
    table = read(folder, rows)
    assert [series.row for series in table.series] == [3, 4, 5]
    assert (
        told(table, 2) == told(table, 6) == "one scan, in copies, is listed 2 times with different labels (rows 2, 6)"
    )
    rows = [{**row, "patient_id": row["series_uid"]} for row in (*good_rows(), row_of("e"))]
    table = read(folder, rows)
    assert [series.row for series in table.series] == [3, 4, 5]
    assert told(table, 6) == "one scan, in copies, is listed under 2 patients (rows 2, 6)"
    broken = [*good_rows(), row_of("e", label_any="?")]  # what is no answer contradicts nothing
    assert [series.row for series in read(folder, broken).series] == [2, 3, 4, 5]


def test_scans_that_are_hardly_in_hounsfield_units_are_used_with_a_remark(folder):
    image = nibabel.load(folder / "b.nii")
    stored = np.asarray(image.dataobj) + 1024
    nibabel.save(nibabel.Nifti1Image(np.clip(stored, 0, 4095).astype(np.uint16), image.affine), folder / "b.nii")
    table = read(folder, good_rows(), check="voxels")
    assert [series.row for series in table.series] == [2, 3, 4, 5]
    (problem,) = table.problems
    assert problem.remark
    assert problem.what.startswith("its values are hardly Hounsfield units: they run from ")
    assert "RescaleSlope" in problem.fix
    assert doubtful_rows(table.problems) == {3}
    assert read(folder, good_rows(), check="header").problems == ()


def test_a_scan_with_frames_is_to_be_converted(folder):
    nibabel.save(nibabel.Nifti1Image(np.arange(960, dtype=np.int16).reshape(8, 10, 6, 2), np.eye(4)), folder / "d.nii")
    (problem,) = read(folder, good_rows(), check="voxels").problems
    assert "four-dimensional" in problem.what
    assert problem.fix == "convert it to a three-dimensional volume first"


def test_studies_whose_dicom_files_name_one_patient_are_remarked(folder):
    write_dicom(folder / "x", "1.1", "1.1.1")
    write_dicom(folder / "y", "1.2", "1.2.1", first=7)
    rows = [*good_rows(), row_of("x", nifti_path="x"), row_of("y", nifti_path="y")]
    table = read(folder, rows)
    assert told(table, 6) == "DICOM files of 2 studies name one patient, and the table none (rows 6, 7)"
    assert len(table.series) == 6
    assert read(folder, [{**row, "patient_id": row["series_uid"]} for row in rows]).problems == ()


def test_scans_that_differ_only_within_are_not_taken_for_copies(folder):
    for seed, name in enumerate("ab"):  # a head in a wide field of air, in which three blocks of the file lie
        path = write_ct(folder / f"{name}.nii", seed)
        scan = nibabel.load(path)
        wide = np.full((160, 160, 20), -1000, np.int16)
        wide[10:30, 10:34, 3:8] = scan.dataobj
        nibabel.save(nibabel.Nifti1Image(wide, scan.affine), path)
    header = "NDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = ct.raw\n"
    for seed, name in enumerate("xy"):
        (folder / name).mkdir()
        (folder / name / "ct.mhd").write_text(header)
        np.random.default_rng(seed).integers(-9, 9, 64, np.int16).tofile(folder / name / "ct.raw")
    rows = [*good_rows(), *(row_of(name, nifti_path=f"{name}/ct.mhd") for name in "xy")]
    table = read(folder, rows)
    assert table.problems == ()
    assert len(table.series) == 6


def test_a_dicom_file_has_the_mark_of_its_series(folder):
    write_dicom(folder / "x", "1.1", "1.1.1")
    write_dicom(folder / "y", "1.2", "1.2.1")
    for file in (folder / "y").iterdir():
        shutil.copy(file, folder / "x" / f"other_{file.name}")
    first = content_mark(folder / "x" / "0.dcm")
    assert first == content_mark(folder / "x" / "1.dcm") != content_mark(folder / "y")
    assert content_mark(folder / "x" / "other_0.dcm") == content_mark(folder / "y")
    changed = (folder / "x" / "2.dcm").read_bytes()
    (folder / "x" / "2.dcm").write_bytes(changed[:-1] + b"\1")
    assert content_mark(folder / "x" / "0.dcm") != first


def test_a_dicom_folder_is_a_scan_and_its_study_is_compared(folder):
    write_dicom(folder / "x", "1.1", "1.1.1")
    write_dicom(folder / "y", "1.2", "1.2.1")
    write_dicom(folder / "z", "1.2", "1.2.2")
    rows = [*good_rows(), row_of("x", nifti_path="x")]
    assert len(read(folder, rows).series) == 5
    mixed = [*rows, row_of("y", nifti_path="y", study_uid="study x")]
    assert "DICOM files of study study x belong to 2 studies" in told(read(folder, mixed), 6)
    parted = [*rows, row_of("y", nifti_path="y"), row_of("z", nifti_path="z")]
    table = read(folder, parted)
    assert "files of one DICOM study are listed under 2 studies (rows 7, 8)" in told(table, 7)
    assert [series.row for series in table.series] == [2, 3, 4, 5, 6]


def test_voxels_are_read_where_that_is_wanted(folder):
    path = folder / "d.nii"
    path.write_bytes(path.read_bytes()[:352] + bytes(len(path.read_bytes()) - 352))  # all voxels the same
    assert len(read(folder, good_rows()).series) == 4
    table = read(folder, good_rows(), check="voxels")
    assert [problem.row for problem in table.problems] == [5]


def test_columns_that_are_missing_or_unknown_are_told_together(folder):
    rows = [
        {key.replace("label_subdural", "label_subdura"): value for key, value in row.items()} for row in good_rows()
    ]
    rows = [{key: value for key, value in row.items() if key != "study_uid"} for row in rows]
    table = read(folder, rows)
    said = [problem.what for problem in table.problems if problem.row is None]
    assert said == [
        "column study_uid is missing",
        "column label_subdural is missing",
        "column label_subdura is no label of the bundle",
    ]
    with pytest.raises(InputError, match=r"label_subdural is missing \(rename label_subdura\)"):
        require_usable(table)


def test_an_unknown_label_alone_does_no_harm(folder):
    table = read(folder, [{**row, "label_fracture": 1} for row in good_rows()])
    assert [problem.what for problem in table.problems] == ["column label_fracture is no label of the bundle"]
    require_usable(table)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"rel_dir,study_uid,series_uid,nifti_path,label_any\n", "empty below its header"),
        (b"study_uid,series_uid,nifti_path\n1,2,3\n", "has no label column"),
        (b"PK\x03\x04rest", "export the table as CSV"),
        (b"label_any,x\n\xff\xfa,2\n", "is no UTF-8 text"),
        (b"label_any,x\n\0,2\n", "zero bytes"),
        (b"label_any,label_any\n1,1\n", "more than once"),
        (b'label_any,x\n"1,2\n', "no sound CSV"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, words):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_series_table(tmp_path / "table.csv")


def test_a_missing_table_and_a_missing_data_root_are_named(folder):
    with pytest.raises(InputError, match=r"nowhere.csv cannot be read"):
        read_series_table(folder / "nowhere.csv")
    with pytest.raises(InputError, match=r"data_root .*nowhere is no folder"):
        read(folder, good_rows(), data_root=folder / "nowhere")


def test_a_table_of_one_class_is_refused(folder):
    table = read(folder, [row_of(name) for name in "abcd"])
    with pytest.raises(InputError, match="every label has one value only"):
        require_usable(table)


def test_a_row_with_too_many_fields_is_told(folder):
    path = write_table(folder / "table.csv", good_rows())
    path.write_text(path.read_text() + "x,y,z,a.nii,0,0,0,0,0,0,more\n")
    assert "has 11 fields, the header 10" in told(read_series_table(path), 6)


def test_parts_are_read_under_their_usual_names(folder):
    rows = [{**row, "part": part} for row, part in zip(good_rows(), ("train", "Val", "test", "x"), strict=True)]
    table = read(folder, rows)
    assert [series.part for series in table.series] == ["train", "validation", "test"]
    assert told(table, 5) == "part is x"
    assert len(read(folder, rows, ignore_parts=True).series) == 4


def write_dicom(folder: Path, study: str, series: str, first: int = 0) -> None:
    """Write three slices of a CT that stands for a patient of its own."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir()
    for k in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{series}.{k}"
        item = FileDataset(str(folder / f"{k}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"{series}.{k}"
        item.StudyInstanceUID, item.SeriesInstanceUID, item.PatientID, item.Modality = study, series, "P", "CT"
        item.Rows, item.Columns, item.PixelSpacing, item.SliceThickness = 8, 8, [1, 1], 5
        item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 5 * k], [1, 0, 0, 0, 1, 0]
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation, item.SamplesPerPixel = 15, 1, 1
        item.PhotometricInterpretation, item.RescaleSlope, item.RescaleIntercept = "MONOCHROME2", 1, 0
        item.PixelData = np.arange(first, first + 64, dtype=np.int16).tobytes()
        pydicom.dcmwrite(folder / f"{k}.dcm", item, enforce_file_format=True)
