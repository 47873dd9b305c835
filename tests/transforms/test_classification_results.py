"""The files of a classified CT."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dinomed.errors import InputError, OutputError
from dinomed.transforms import classification_files, classification_picture, heat_map_picture
from dinomed.transforms.classification_results import Classification
from dinomed.transforms.heat_map_kinds import HEAT_MAP_KINDS
from dinomed.transforms.heat_map_picture import MapText, ShownSlice, draw_map, map_scale
from dinomed.transforms.heat_maps import HeatMap, canonical_positions, heat_volume, slice_grid
from dinomed.transforms.provenance import scan_sha256
from dinomed.transforms.report import RunInfo
from dinomed.transforms.similarity_map import SimilarityMap, choose_reference
from dinomed.transforms.volume_reading import read_grid, read_volume

LABELS = ("any", "epidural", "subdural")
SHAPE = (24, 20, 6)
AFFINE = np.array([[-1.0, 0, 0, 12.0], [0, 1.5, 0.4, -15.0], [0, 0, 5.0, 3.0], [0, 0, 0, 1.0]])
RUN = RunInfo("ct_bleeding", "0.1.0", None, "model.pt", "ab" * 32, "cpu", "float32", (), ({"name": "a"},))
SIZE = (32, 32)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "head 1.nii.gz"
    values = np.random.default_rng(0).integers(-1000, 120, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave drawing out, which takes longer than all else."""
    for name, place in (("draw_map", 0), ("draw_classification", 2)):
        monkeypatch.setattr(classification_files, name, lambda *given, place=place: given[place].write_bytes(b""))


def make_maps(grid, canonical=(4, 1)) -> tuple[HeatMap, ...]:
    rng, native = np.random.default_rng(1), np.array(canonical_positions(canonical, grid))
    values = rng.random((len(canonical), 2, 2)).astype(np.float32)
    return (
        HeatMap("rollout", None, native, values / 4, SIZE),
        HeatMap("gradient", "any", native, values, SIZE, unit="logit"),
        HeatMap("occlusion", "subdural", native, values - 0.5, SIZE, patch_px=32),
    )


def classify(path: Path, maps=True, **changes) -> Classification:
    """A case with slices 0 to 5 from the feet up, the fifth with the highest probability of the first label."""
    grid = read_grid(path)
    native = np.array(canonical_positions(range(6), grid))
    probs = np.array([[0.1, 0.0, 0.2], [0.5, 0.1, 0.9], [0.2, 0.1, 0.1], [0.5, 0, 0], [0.8, 0.3, 0.1], [0.0, 0, 0]])
    similarity = SimilarityMap(1, 0, int(native[4]), np.array([[0.5, -0.2], [1.0, 0.1]], np.float32), SIZE)
    case = Classification(
        case=path.name.split(".")[0],
        path=path,
        grid=grid,
        label_names=LABELS,
        probabilities=np.array([0.75, 0.25, 0.5], np.float32),
        calibrated=(0.6, 0.2, None),
        thresholds=(0.7, None, 0.5),
        slice_probs=probs.astype(np.float32),
        slice_indices=native,
        slice_axis=slice_grid(grid).axes[2],
        slice_note="What the head says of a slice alone.",
        slice_embeddings=np.ones((6, 4), np.float32),
        volume_embedding=np.ones(4, np.float32),
        run=RUN,
        maps=make_maps(grid) if maps else (),
        similarity=similarity if maps else None,
        timings_s={"load": 0.5, "embed": 1.25, "maps": None},
        peak_memory_bytes=123456,
        warnings=("Trained on synthetic scans.",),
        image_hu=read_volume(path).array,
    )
    return replace(case, **changes)


def strict(path: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_case_gives_a_folder_with_all_files_and_nothing_else(scan: Path, tmp_path: Path) -> None:
    case = classify(scan)
    paths = case.save(tmp_path / "new" / "out")
    stems = ["heat_rollout", "heat_gradient_any", "heat_occlusion_subdural"]
    wanted = [f"{stem}{ending}" for stem in stems for ending in (".npy", ".nii.gz", ".png")]
    wanted += ["similarity_map.npy", "similarity_map.png", "summary.json", "summary.png"]
    wanted += ["slice_probs.npy", "slice_indices.npy", "slice_embeddings.npy", "volume_embedding.npy"]
    assert paths.folder == tmp_path / "new" / "out" / "head 1"
    assert sorted(os.listdir(paths.folder)) == sorted(wanted)
    assert sorted(path.name for path in paths.files) == sorted(wanted)
    assert os.listdir(tmp_path / "new" / "out") == ["head 1"]
    summary = strict(paths.summary)
    assert sorted(summary["files"]) == sorted(wanted)
    for name, array in (
        ("slice_probs", case.slice_probs),
        ("slice_indices", case.slice_indices),
        ("heat_gradient_any", case.maps[1].values),
        ("similarity_map", case.similarity.values),
    ):
        found = np.load(paths.folder / f"{name}.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    for stem, heat in zip(stems, case.maps, strict=True):
        volume = nibabel.load(paths.folder / f"{stem}.nii.gz")
        np.testing.assert_array_equal(np.asarray(volume.dataobj), heat_volume(heat, case.grid))
        np.testing.assert_array_equal(volume.affine, nibabel.load(scan).affine)
    mode = paths.folder.stat().st_mode & 0o777
    (tmp_path / "plain").mkdir()
    assert mode == (tmp_path / "plain").stat().st_mode & 0o777


@pytest.mark.usefixtures("without_pictures")
def test_the_summary_says_what_was_found_and_how(scan: Path, tmp_path: Path) -> None:
    summary = strict(classify(scan).save(tmp_path / "out").summary)
    assert summary["probabilities"] == {"any": 0.75, "epidural": 0.25, "subdural": 0.5}
    assert summary["calibrated_probabilities"] == {"any": 0.6, "epidural": 0.2, "subdural": None}
    assert summary["threshold"] == {"any": 0.7, "epidural": None, "subdural": 0.5}
    assert summary["predicted"] == {"any": False, "epidural": None, "subdural": True}, "any: 0.6 calibrated < 0.7"
    assert summary["main_label"] == "any"
    assert summary["input"] == {"name": scan.name, "format": "nifti", "sha256": scan_sha256(scan)}
    assert summary["model"]["weights_sha256"] == "ab" * 32
    assert summary["run"] == {"device": "cpu", "precision": "float32"}
    assert summary["preprocessing"] == [{"name": "a"}]
    assert summary["timings_s"]["maps"] is None
    assert summary["elapsed_seconds"] == pytest.approx(1.75 + summary["timings_s"]["write"])
    assert summary["peak_memory_bytes"] == 123456
    assert "Not a medical device" in summary["notice"]
    assert summary["slices"]["probabilities_are"] == "What the head says of a slice alone."
    assert (summary["slices"]["used"], summary["slices"]["in_scan"], summary["slices"]["axis"]) == (6, 6, 2)
    assert str(tmp_path) not in json.dumps(summary)


@pytest.mark.usefixtures("without_pictures")
def test_top_slices_are_ranked_with_ties_from_the_feet_up(scan: Path, tmp_path: Path) -> None:
    summary = strict(replace(classify(scan, maps=False), top_k=3).save(tmp_path / "out").summary)
    rows = [(row["rank"], row["index"], round(row["probability"], 3)) for row in summary["top_slices"]]
    assert rows == [(1, 4, 0.8), (2, 1, 0.5), (3, 3, 0.5)]
    assert summary["top_slices_by_label"]["any"] == summary["top_slices"]
    assert [row["index"] for row in summary["top_slices_by_label"]["subdural"]] == [1, 0, 2]
    middle = AFFINE @ [11.5, 9.5, 4, 1]
    assert summary["top_slices"][0]["centre_ras_mm"] == pytest.approx(middle[:3])
    assert summary["heat_maps"] == []
    assert summary["similarity"] is None


@pytest.mark.usefixtures("without_pictures")
def test_every_map_says_what_it_is_and_is_not_and_where_it_is_empty(scan: Path, tmp_path: Path) -> None:
    case = classify(scan)
    summary = strict(case.save(tmp_path / "out").summary)
    for entry, heat in zip(summary["heat_maps"], case.maps, strict=True):
        assert (entry["kind"], entry["label"]) == (heat.kind, heat.label)
        assert entry["what_it_is"] == HEAT_MAP_KINDS[heat.kind].what_it_is
        assert "no segmentation" in entry["what_it_is_not"]
        assert entry["slices"] == [4, 1]
        assert entry["range"] == pytest.approx([heat.values.min(), heat.values.max()])
        assert entry["cell_mm"] == pytest.approx([10 * 1.5, 12 * 1.0])
        assert set(entry["files"]) <= set(summary["files"])
        assert "0 in the NIfTI file" in entry["slices_without_a_map"]
    assert summary["heat_maps"][1]["unit"] == "logit"
    assert summary["heat_maps"][2]["patch_mm"] == pytest.approx([20 * 1.5, 24 * 1.0])
    low, high = summary["heat_maps"][2]["picture_scale"]
    assert low == -high == pytest.approx(-np.abs(case.maps[2].values).max())
    assert summary["similarity"]["reference"] == {"row": 1, "col": 0, "slice": 4}
    assert "no segmentation" in summary["similarity"]["what_it_is_not"]


@pytest.mark.usefixtures("without_pictures")
def test_one_scan_in_two_voxel_orders_gets_the_same_results(scan: Path, tmp_path: Path) -> None:
    image = nibabel.load(scan)
    turned = tmp_path / "turned.nii.gz"
    orientation = nibabel.orientations.axcodes2ornt("SPL")
    now = nibabel.orientations.io_orientation(image.affine)
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(now, orientation)), turned)
    summaries, volumes = [], []
    for path in (scan, turned):
        paths = classify(path).save(tmp_path / "out")
        summaries.append(strict(paths.summary))
        volumes.append(nibabel.as_closest_canonical(nibabel.load(paths.folder / "heat_occlusion_subdural.nii.gz")))
    np.testing.assert_array_equal(np.asarray(volumes[0].dataobj), np.asarray(volumes[1].dataobj))
    np.testing.assert_allclose(volumes[0].affine, volumes[1].affine, atol=1e-4)
    first, second = summaries
    assert second["slices"]["axis"] == 0
    for one, other in zip(first["top_slices"], second["top_slices"], strict=True):
        assert one["centre_ras_mm"] == pytest.approx(other["centre_ras_mm"], abs=1e-4)
    assert first["heat_maps"][0]["cell_mm"] == pytest.approx(second["heat_maps"][0]["cell_mm"])


@pytest.mark.usefixtures("without_pictures")
def test_what_exists_is_refused_unless_it_may_be_replaced(scan: Path, tmp_path: Path) -> None:
    case = classify(scan)
    paths = case.save(tmp_path / "out")
    before = paths.summary.read_bytes()
    with pytest.raises(OutputError, match="exists already; pass overwrite"):
        replace(case, probabilities=case.probabilities / 2).save(tmp_path / "out")
    assert paths.summary.read_bytes() == before
    (paths.folder / "heat_notes.npy").write_text("mine")
    fewer = replace(case, probabilities=case.probabilities / 2, maps=case.maps[:1], similarity=None)
    fewer.save(tmp_path / "out", overwrite=True)
    names = set(os.listdir(paths.folder))
    assert {"heat_notes.npy", "heat_rollout.npy"} <= names, "what this package did not write stays"
    assert not {"heat_gradient_any.nii.gz", "heat_occlusion_subdural.png", "similarity_map.npy"} & names
    assert strict(paths.summary)["probabilities"]["any"] == 0.375


@pytest.mark.usefixtures("without_pictures")
def test_results_join_a_folder_that_holds_something_else(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "head 1").mkdir(parents=True)
    (tmp_path / "out" / "head 1" / "letter.txt").write_text("mine")
    paths = classify(scan, maps=False).save(tmp_path / "out")
    assert {"letter.txt", "summary.json", "slice_probs.npy"} <= set(os.listdir(paths.folder))
    assert os.listdir(tmp_path / "out") == ["head 1"]


@pytest.mark.usefixtures("without_pictures")
def test_a_failure_leaves_no_half_results(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classification_files, "draw_classification", full)
    with pytest.raises(OutputError, match=r"head 1 cannot be written \(.*No space left"):
        classify(scan).save(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    monkeypatch.setattr(classification_files, "draw_classification", lambda case, image, path: path.write_bytes(b""))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        classify(scan, maps=False).save(tmp_path / "taken")
    (tmp_path / "out" / "head 1" / "summary.png").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"summary\.png is a folder"):
        classify(scan, maps=False).save(tmp_path / "out", overwrite=True)
    assert os.listdir(tmp_path / "out" / "head 1") == ["summary.png"]


def test_the_scan_is_read_again_where_its_voxels_were_not_kept(scan: Path, tmp_path: Path) -> None:
    kept = classify(scan, maps=False)
    first = kept.save(tmp_path / "a").folder
    second = replace(kept, image_hu=None).save(tmp_path / "b").folder
    assert (first / "summary.png").read_bytes() == (second / "summary.png").read_bytes()
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((5, 6, 7)), AFFINE), scan)
    with pytest.raises(OutputError, match="changed since it was classified"):
        replace(kept, image_hu=None).save(tmp_path / "c")


@pytest.mark.usefixtures("without_pictures")
def test_odd_labels_give_plain_and_different_file_names(scan: Path, tmp_path: Path) -> None:
    case = classify(scan)
    odd = ("any/$x$", "any $x$", "../up")
    maps = tuple(HeatMap("gradient", label, case.maps[0].slice_indices, case.maps[0].values, SIZE) for label in odd)
    odd_case = replace(case, label_names=odd, maps=maps)
    paths = odd_case.save(tmp_path / "out")
    names = {path.name for path in paths.files if path.name.startswith("heat")}
    assert {"heat_gradient_any_x_.npy", "heat_gradient_any_x_-2.npy", "heat_gradient_.._up.npy"} <= names
    assert all(path.parent == paths.folder and path.is_file() for path in paths.files)
    summary = strict(paths.summary)
    for label, entry in zip(odd, summary["heat_maps"], strict=True):
        assert entry["label"] == label
        assert all((paths.folder / name).is_file() for name in entry["files"])


def test_what_does_not_fit_is_refused(scan: Path) -> None:
    case = classify(scan)
    for change, words in (
        ({"slice_probs": case.slice_probs[:, :2]}, r"slice_probs must have \(6, 3\), not \(6, 2\)"),
        ({"probabilities": np.array([0.1, np.nan, 0.2])}, r"probabilities must lie in 0\.\.1"),
        ({"calibrated": (0.1, float("nan"), None)}, r"probabilities must lie in 0\.\.1"),
        ({"slice_axis": 0}, "slice_axis must have 2, not 0"),
        ({"case": "a/b"}, "is no name for a folder"),
        ({"case": ".."}, "is no name for a folder"),
        ({"maps": case.maps[:1] * 2}, "two maps named rollout"),
        ({"label_names": ("any", "epidural", "other")}, "a map is of 'subdural', which is no label"),
        ({"slice_indices": np.array([0, 1, 2, 3, 4, 6])}, r"slices must lie in 0\.\.5"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(case, **change)
    with pytest.raises(ValueError, match="its reference inside"):
        SimilarityMap(2, 0, 1, np.zeros((2, 2), np.float32), SIZE)


def test_a_reference_patch_is_the_centre_or_a_row_and_column() -> None:
    assert choose_reference("center", 14, 9) == (7, 4)
    assert choose_reference(" Centre ", 1, 1) == (0, 0)
    assert choose_reference("0,8", 14, 9) == (0, 8)
    assert choose_reference(" 13 , 0 ", 14, 9) == (13, 0)
    for outside in ("14,0", "0,9", "999999999,0"):
        with pytest.raises(InputError, match=r"lies outside.*row in 0\.\.13 and col in 0\.\.8"):
            choose_reference(outside, 14, 9)
    for wrong in ("", "middle", "3", "3,4,5", "-1,2", "1.5,2", "a,b", "1;2", "\u00b2,1", "1" * 40 + ",1"):
        with pytest.raises(InputError, match=r"cannot be read; give center, or row,col with row in 0\.\.13"):
            choose_reference(wrong, 14, 9)


def test_pictures_are_in_radiological_view_at_true_proportions(tmp_path: Path) -> None:
    hu = np.zeros((20, 40), np.float32)  # columns run to the patient's right
    hu[2:8, 24:36] = 80.0  # 12 mm by 12 mm in front on the right
    shown = ShownSlice(hu, "", np.zeros_like(hu))
    kind = HEAT_MAP_KINDS["gradient"]
    text = MapText("", "", "", "")
    draw_map(tmp_path / "a.png", [shown], (2.0, 1.0), map_scale(shown.values, kind), kind, text)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    panel = pixels[80:-190, : pixels.shape[1] // 2 - 90].astype(int)  # the plain slice, without the words
    bright = np.argwhere(panel > 150)
    dense = bright[(np.abs(bright - np.median(bright, axis=0)) < 80).all(axis=1)]
    height, width = dense.max(axis=0) - dense.min(axis=0)
    assert height == pytest.approx(width, rel=0.12)
    assert np.median(bright[:, 1]) < panel.shape[1] / 2, "the patient's right is on the left"
    assert np.median(bright[:, 0]) < panel.shape[0] / 2


@pytest.mark.parametrize("shape", [(64, 64), (64, 12)])
def test_all_words_fit_the_picture_of_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    figures = []
    monkeypatch.setattr(heat_map_picture, "save_picture", lambda figure, _: figures.append(figure))
    label = "intraparenchymal_hemorrhage_with_oedema"
    about = f"whole scan: {label} calibrated probability 0.90, one value 12.8 x 12.8 mm, window 25.6 x 25.6 mm"
    text = MapText("HEAD_CT_WITHOUT_CONTRAST_" * 5, f"Similarity: {label}", about, "fall of the score", left_out=12)
    values = np.zeros(shape, np.float32)
    kind = HEAT_MAP_KINDS["occlusion"]
    draw_map(tmp_path / "a.png", [ShownSlice(values, "slice 1 of 0..9", values)], (3, 3), (-1, 1), kind, text)
    (figure,) = figures
    size = figure.bbox.size
    boxes = [each.get_window_extent() for each in figure.texts]
    assert all(box.x0 > 0 and box.x1 < size[0] and box.y0 > 0 and box.y1 < size[1] for box in boxes)
    written = " ".join(each.get_text() for each in figure.texts)
    assert about in " ".join(written.split())
    heading = figure.axes[0].texts[-1].get_window_extent()
    assert heading.y1 < min(box.y0 for box in boxes[:2]), "the words above the slices do not touch their headings"
    first, second = boxes[:2]
    assert second.y1 <= first.y0


def test_the_first_warning_is_written_whole(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(classification_picture, "save_picture", lambda figure, _: figures.append(figure))
    warning = (
        "unlike every scan that the head was trained on (distance 3.8, theirs at most 2.5): another body part, kind of "
        "scan or scanner; its probabilities mean little"
    )
    case = classify(scan, case="head_without_contrast", warnings=(warning, "b"))
    classification_picture.draw_classification(case, read_volume(scan).array, tmp_path / "a.png")
    (figure,) = figures
    (said,) = (each for each in figure.texts if each.get_text().startswith("unlike"))
    assert " ".join(said.get_text().split()) == f"{warning} (and 1 more in summary.json)"
    box, name = said.get_window_extent(), figure.texts[0].get_window_extent()
    assert name.x1 < box.x0
    assert box.x1 < figure.bbox.x1
    assert figure.axes[1].get_window_extent().y1 < box.y0 < box.y1 < figure.bbox.y1


def test_labels_and_cases_with_formula_signs_are_drawn(scan: Path, tmp_path: Path) -> None:
    case = classify(scan, maps=False, case="a$b_{", label_names=("$x", "y$", "$_{"), slice_note="$\\frac")
    heat = HeatMap("gradient", "$x", case.slice_indices[:1], np.ones((1, 2, 2), np.float32), SIZE)
    paths = replace(case, maps=(heat,), warnings=("$^", "b")).save(tmp_path / "out")
    assert Image.open(paths.folder / "summary.png").size[0] > 1000
    assert Image.open(paths.folder / "heat_gradient__x.png").size[0] > 500


def test_a_flat_map_has_a_scale_too() -> None:
    zeros = np.zeros((2, 2), np.float32)
    for kind in HEAT_MAP_KINDS.values():
        low, high = map_scale(zeros, kind)
        assert high > low
    assert map_scale(zeros + 3, HEAT_MAP_KINDS["gradient"]) == (0.0, 3.0)
    assert map_scale(zeros - 3, HEAT_MAP_KINDS["occlusion"]) == (-3.0, 3.0)


@pytest.mark.usefixtures("without_pictures")
def test_the_documentation_names_every_key_and_file(scan: Path, tmp_path: Path, repository: Path) -> None:
    summary = strict(classify(scan).save(tmp_path / "out").summary)
    documented = (repository / "docs" / "classification.md").read_text(encoding="utf-8")
    keys = [*summary, *summary["slices"], *summary["heat_maps"][0], *summary["similarity"], *summary["top_slices"][0]]
    for key in (*keys, *HEAT_MAP_KINDS):
        assert f"`{key}`" in documented, key
    for name in summary["files"]:
        if not name.startswith("heat_"):
            assert name in documented, name
