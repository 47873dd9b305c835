"""`dinomed segment` on a tiny bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from tiny_bundle import make_bundle, make_scan, make_state

from dinomed.cli.main import main
from dinomed.predictor import Predictor

Segment = Callable[..., int]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundles")


@pytest.fixture
def segment(tmp_path: Path, bundle: Path) -> Segment:
    def run(*inputs: Path | str, output: str = "out", extra: tuple[str, ...] = ()) -> int:
        return main(["segment", *map(str, inputs), "--bundle", str(bundle), "--output", str(tmp_path / output), *extra])

    return run


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_case(name: str) -> list[str]:
    return [f"{name}_seg.{ending}" for ending in ("json", "nii.gz", "png")]


def test_a_folder_is_segmented_with_one_model(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ("s1", "s2"):
        make_scan(tmp_path / "in" / subject / "t1.nii.gz", seed=len(subject))
    loads = []
    original = Predictor.from_bundle.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Predictor, "from_bundle", classmethod(lambda cls, *a, **k: loads.append(1) or original(cls, *a, **k))
    )
    assert segment(tmp_path / "in") == 0
    assert len(loads) == 1
    assert results(tmp_path / "out") == sorted([*of_case("s1_t1"), *of_case("s2_t1"), "summary.json"])
    printed = capsys.readouterr()
    assert "2 done, 0 skipped, 0 failed" in printed.out
    assert "[2/2] s2_t1: done in" in printed.err
    told = summary(tmp_path / "out")
    assert told["exit_status"] == 0
    assert told["interrupted"] is False
    assert set(told["cases"][0]["volumes_ml"]) == {"shell", "core"}


def test_one_bad_case_does_not_stop_the_others(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [make_scan(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "c")]
    truncated = scans[1].read_bytes()
    scans[1].write_bytes(truncated[: len(truncated) // 2])
    assert segment(*scans) == 2
    assert results(tmp_path / "out") == sorted([*of_case("a"), *of_case("c"), "summary.json"])
    assert str(scans[1]) in capsys.readouterr().err
    told = summary(tmp_path / "out")
    assert (told["done"], told["failed"], told["exit_status"]) == (2, 1, 2)


def test_our_own_failure_is_exit_status_1_and_the_others_go_on(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Predictor.segment

    def fail_once(self: Predictor, path: Path, *rest: Any) -> Any:
        if path.name == "a.nii.gz":
            raise ZeroDivisionError("oops")
        return original(self, path, *rest)

    monkeypatch.setattr(Predictor, "segment", fail_once)
    assert segment(make_scan(tmp_path / "a.nii.gz"), make_scan(tmp_path / "b.nii.gz")) == 1
    told = summary(tmp_path / "out")
    assert [case["status"] for case in told["cases"]] == ["failed", "done"]
    assert "internal error, please report it: ZeroDivisionError: oops" in told["cases"][0]["message"]


def test_a_run_that_was_stopped_goes_on_where_it_was(segment: Segment, tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "a.nii.gz")
    assert segment(scan) == 0
    before = (tmp_path / "out" / "a_seg.nii.gz").stat().st_mtime_ns
    assert segment(scan, make_scan(tmp_path / "b.nii.gz", seed=1)) == 0
    assert (tmp_path / "out" / "a_seg.nii.gz").stat().st_mtime_ns == before
    assert [case["status"] for case in summary(tmp_path / "out")["cases"]] == ["skipped", "done"]
    (tmp_path / "out" / "a_seg.png").unlink()
    assert segment(scan) == 0
    assert (tmp_path / "out" / "a_seg.png").is_file()


def test_results_of_another_scan_are_never_taken_for_this_one(segment: Segment, tmp_path: Path) -> None:
    assert segment(make_scan(tmp_path / "x" / "t1.nii.gz")) == 0
    before = (tmp_path / "out" / "t1_seg.nii.gz").read_bytes()
    other = make_scan(tmp_path / "y" / "t1.nii.gz", seed=5)
    assert segment(other) == 2
    assert (tmp_path / "out" / "t1_seg.nii.gz").read_bytes() == before
    assert "exists already and is not known to come from this scan" in summary(tmp_path / "out")["cases"][0]["message"]
    assert segment(other, extra=("--overwrite",)) == 0
    assert (tmp_path / "out" / "t1_seg.nii.gz").read_bytes() != before


@pytest.mark.parametrize("extra", [("--planes", "axial"), ("--overlay", "brain"), ("--weights", "other.pt")])
def test_results_of_another_model_are_not_taken_either(
    segment: Segment, tmp_path: Path, extra: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(make_state(seed=3), "other.pt")
    scan = make_scan(tmp_path / "a.nii.gz")
    assert segment(scan) == 0
    assert segment(scan, extra=extra) == 2


def test_a_label_map_that_is_not_ours_is_kept(segment: Segment, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_seg.nii.gz").write_bytes(b"drawn by hand")
    assert segment(make_scan(tmp_path / "a.nii.gz")) == 2
    assert (tmp_path / "out" / "a_seg.nii.gz").read_bytes() == b"drawn by hand"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, "SIGTERM"])
def test_stopping_leaves_whole_cases_and_a_summary_only(
    stop: Any, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal
    import time

    from dinomed.transforms import prediction as prediction_module

    original = prediction_module.draw_picture

    def interrupt(image: Any, affine: Any, labels: Any, grid: Any, text: Any, path: Path) -> None:
        if "b_seg" not in path.name:
            original(image, affine, labels, grid, text, path)
        elif stop == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        else:
            raise stop

    monkeypatch.setattr(prediction_module, "draw_picture", interrupt)
    scans = [make_scan(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "c")]
    assert segment(*scans) == (143 if stop == "SIGTERM" else 130)
    assert results(tmp_path / "out") == sorted([*of_case("a"), "summary.json"])
    told = summary(tmp_path / "out")
    assert told["interrupted"] is True
    assert [case["case"] for case in told["cases"]] == ["a"]


def test_json_on_stdout_is_the_summary(segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert segment(make_scan(tmp_path / "a.nii.gz"), extra=("--json",)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cases"][0]["outputs"] == ["a_seg.nii.gz", "a_seg.json", "a_seg.png"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--overlay", "spleen"), "has no overlay 'spleen'; it offers brain"),
        (("--planes", "axial,diagonal"), "plane 'diagonal' is unknown; choose one or more of axial, coronal, sagittal"),
        (("--planes", "axial,axial"), "name one plane twice"),
        (("--device", "tpu"), "device 'tpu' is unknown"),
        (("--precision", "float8"), "precision 'float8' is unknown; choose from auto, float32, bfloat16"),
        (("--batch-size", "0"), "batch size must be 1 or more"),
        (("--weights", "nowhere.pt"), "nowhere.pt: there is no such weights file"),
        (("--bundle", "/nowhere/bundle"), "there is no bundle '/nowhere/bundle'"),
    ],
)
def test_wrong_choices_are_one_sentence_and_no_file(
    extra: tuple[str, str], words: str, segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(make_scan(tmp_path / "a.nii.gz"), extra=extra) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_asking_for_an_absent_gpu_says_so(segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(make_scan(tmp_path / "a.nii.gz"), extra=("--device", "cuda")) == 2
    assert "PyTorch sees no CUDA GPU; use --device cpu or auto" in capsys.readouterr().err


def test_a_model_is_not_loaded_when_no_input_is_a_scan(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "from_bundle", None)
    assert segment(tmp_path / "absent.nii.gz") == 2
    assert segment(tmp_path / "absent.nii.gz", tmp_path / "gone.nii.gz") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("dinomed: ") and "does not exist" in line for line in lines)


def test_an_output_folder_that_cannot_be_is_said_at_once(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "from_bundle", None)
    (tmp_path / "out").write_text("a file")
    assert segment(make_scan(tmp_path / "a.nii.gz")) == 2
    assert segment(tmp_path / "a.nii.gz", output="out/deeper") == 2
    assert "cannot take the results" in capsys.readouterr().err


def test_a_summary_of_another_program_is_kept(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text('{"mine": 1}')
    assert segment(make_scan(tmp_path / "a.nii.gz")) == 2
    assert "was not written by dinomed" in capsys.readouterr().err
    assert results(tmp_path / "out") == ["summary.json"]
    assert segment(tmp_path / "a.nii.gz", extra=("--overwrite",)) == 0
    assert summary(tmp_path / "out")["done"] == 1


def test_names_that_are_no_unicode_are_segmented(segment: Segment, tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "a.nii.gz").rename(tmp_path / "caf\udce9.nii.gz")
    assert segment(scan) == 0
    assert "caf\udce9_seg.nii.gz" in results(tmp_path / "out")
    assert summary(tmp_path / "out")["cases"][0]["case"] == "caf?"


def test_four_dimensional_scans_need_a_frame(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan(tmp_path / "a.nii.gz", shape=(20, 18, 14, 3))
    assert segment(scan) == 2
    assert "frame" in capsys.readouterr().err
    assert segment(scan, extra=("--frame", "2")) == 0
    assert json.loads((tmp_path / "out" / "a_seg.json").read_text())["input"]["frame"] == 2
    assert segment(scan, extra=("--frame", "1")) == 2  # results of another frame


@pytest.mark.parametrize(
    "text",
    [
        "label_names: [background, rind, seed]",
        "spacing_mm: 2.5",
        "precision: bfloat16",
        "planes: [coronal]",
        "inferer#window: 8",
        "inferer#empty_value: 0.5",
    ],
)
def test_results_made_with_other_settings_are_not_taken_either(segment: Segment, tmp_path: Path, text: str) -> None:
    scan = make_scan(tmp_path / "a.nii.gz")
    assert segment(scan) == 0
    (tmp_path / "mine.yaml").write_text(text)
    assert segment(scan, extra=("--overlay", str(tmp_path / "mine.yaml"))) == 2
    assert "exists already and is not known to come from" in summary(tmp_path / "out")["cases"][0]["message"]


@pytest.mark.parametrize("report", ["{}", '{"input": "x", "labels": 3}', "[]", "no JSON"])
def test_a_report_of_something_else_is_no_reason_to_fail(segment: Segment, tmp_path: Path, report: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_seg.json").write_text(report)
    assert segment(make_scan(tmp_path / "a.nii.gz")) == 2
    assert "exists already and is not known to come from" in summary(tmp_path / "out")["cases"][0]["message"]
    assert (tmp_path / "out" / "a_seg.json").read_text() == report


def test_a_run_whose_results_would_replace_its_own_scans_is_refused(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [make_scan(tmp_path / "out" / name) for name in ("t1.nii.gz", "t1_seg.nii.gz")]
    before = scans[1].read_bytes()
    assert segment(*scans, extra=("--overwrite",)) == 2
    assert "is a scan of this run and the result of another" in capsys.readouterr().err
    assert scans[1].read_bytes() == before


def test_a_run_stopped_between_two_renames_is_finished_by_the_next(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.transforms import prediction as prediction_module

    scan, real, moved = make_scan(tmp_path / "a.nii.gz"), prediction_module.os.replace, []

    def stop_after_one(source: Any, target: Any) -> None:
        final = Path(target).parent == tmp_path / "out" and "_seg." in Path(target).name
        if final and moved:
            raise KeyboardInterrupt
        real(source, target)
        moved.extend([target] if final else [])

    with monkeypatch.context() as patch:
        patch.setattr(prediction_module.os, "replace", stop_after_one)
        assert segment(scan) == 130
    assert [path.suffix for path in moved] == [".png"]
    assert segment(scan) == 0
    assert summary(tmp_path / "out")["cases"][0]["status"] == "skipped"
    assert results(tmp_path / "out") == sorted([*of_case("a"), "summary.json"])


def test_what_a_killed_run_left_is_cleared_away_unless_it_is_fresh(segment: Segment, tmp_path: Path) -> None:
    import os
    import time

    from dinomed.transforms.prediction import ABANDONED_S, PARTIAL, _stage_prefix

    for age_s, name in ((ABANDONED_S + 60, "old"), (0, "fresh")):
        folder = tmp_path / "out" / f"{_stage_prefix('a')}{name}{PARTIAL}"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s, time.time() - age_s))
    assert segment(make_scan(tmp_path / "a.nii.gz")) == 0
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [f"{_stage_prefix('a')}fresh{PARTIAL}"]


@pytest.mark.parametrize("ending", ["nii.gz", "png", "json"])
def test_a_folder_in_place_of_a_result_leaves_nothing_behind(segment: Segment, tmp_path: Path, ending: str) -> None:
    (tmp_path / "out" / f"a_seg.{ending}" / "inner").mkdir(parents=True)
    assert segment(make_scan(tmp_path / "a.nii.gz"), extra=("--overwrite",)) == 2
    assert results(tmp_path / "out") == [f"a_seg.{ending}", "summary.json"]
    assert "is a folder" in summary(tmp_path / "out")["cases"][0]["message"]


def test_long_names_that_are_no_ascii_are_written(segment: Segment, tmp_path: Path) -> None:
    name = "ä" * 110
    assert segment(make_scan(tmp_path / f"{name}.nii.gz")) == 0
    assert results(tmp_path / "out") == sorted([*of_case(name), "summary.json"])


def test_an_output_that_no_disk_can_name_is_one_sentence(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(make_scan(tmp_path / "a.nii.gz"), output="x" * 300) == 2
    assert "cannot take the results (File name too long)" in capsys.readouterr().err


def test_a_stop_between_two_renames_is_finished_where_the_results_lie_among_the_scans(
    segment: Segment, tmp_path: Path
) -> None:
    from dinomed.transforms.prediction import PARTIAL, WHOLE, _stage_prefix

    make_scan(tmp_path / "out" / "t1.nii.gz")
    assert segment(tmp_path / "out") == 0
    stage = tmp_path / "out" / f"{_stage_prefix('t1')}x{WHOLE}"
    stage.mkdir()
    (tmp_path / "out" / "t1_seg.json").rename(stage / "t1_seg.json")
    (stage / ".DS_Store").write_bytes(b"of the file manager")
    assert segment(tmp_path / "out") == 0
    assert [case["status"] for case in summary(tmp_path / "out")["cases"]] == ["skipped"]
    assert not stage.exists()
    assert PARTIAL != WHOLE


def test_what_a_stopped_run_left_never_replaces_something_newer(segment: Segment, tmp_path: Path) -> None:
    from dinomed.transforms.prediction import WHOLE, _stage_prefix

    stage = tmp_path / "out" / f"{_stage_prefix('t1')}x{WHOLE}"
    stage.mkdir(parents=True)
    (stage / "t1_seg.nii.gz").write_bytes(b"old")
    os.utime(stage / "t1_seg.nii.gz", (1, 1))
    (tmp_path / "out" / "t1_seg.nii.gz").write_bytes(b"drawn by hand")
    assert segment(make_scan(tmp_path / "t1.nii.gz")) == 2
    assert (tmp_path / "out" / "t1_seg.nii.gz").read_bytes() == b"drawn by hand"
    assert not stage.exists()


def test_an_overlay_may_choose_the_frame(segment: Segment, tmp_path: Path) -> None:
    make_scan(tmp_path / "3d.nii.gz")
    image = nibabel.load(tmp_path / "3d.nii.gz")
    frames = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(frames, image.affine), tmp_path / "4d.nii.gz")
    (tmp_path / "frame.yaml").write_text("frame: 1\n")
    for _ in range(2):
        assert segment(tmp_path / "4d.nii.gz", extra=("--overlay", str(tmp_path / "frame.yaml"))) == 0
    assert json.loads((tmp_path / "out" / "4d_seg.json").read_text())["input"]["frame"] == 1
    assert summary(tmp_path / "out")["cases"][0]["status"] == "skipped"
