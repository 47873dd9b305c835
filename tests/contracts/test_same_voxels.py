"""One network, three ways in: the predictor, the command line and `python -m monai.bundle run` give the same voxels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from tiny_bundle import make_bundle, make_scan

from dinomed import Predictor
from dinomed.cli.main import main
from dinomed.transforms.report import deciding


def run_bundle(root: Path, scan: Path, output: Path, *overlays: str) -> None:
    """Do what `python -m monai.bundle run inferring` does, in this process."""
    workflow = ConfigWorkflow(
        config_file=[str(root / "configs" / f"{name}.yaml") for name in ("inference", *overlays)],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        run_id="inferring",
        bundle_root=str(root),
        input=str(scan),
        output_dir=str(output),
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def three_ways(root: Path, scan: Path, folder: Path, overlay: str | None = None) -> dict[str, Path]:
    ways = {name: folder / name for name in ("predictor", "command", "bundle")}
    predictor = Predictor.from_bundle(root, device="cpu", overlay=overlay)
    predictor.segment(scan).save(ways["predictor"])
    extra = ["--overlay", overlay] if overlay else []
    arguments = ["segment", str(scan), "--bundle", str(root), "--output", str(ways["command"]), "--device", "cpu"]
    assert main([*arguments, *extra]) == 0
    run_bundle(root, scan, ways["bundle"], *([overlay] if overlay else []))
    return ways


def assert_same(ways: dict[str, Path], case: str, labels: int) -> None:
    maps = [nibabel.load(folder / f"{case}_seg.nii.gz") for folder in ways.values()]
    voxels = [np.asarray(image.dataobj) for image in maps]
    assert len(np.unique(voxels[0])) == labels, "a map of one label would prove nothing"
    for image, values in zip(maps, voxels, strict=True):
        np.testing.assert_array_equal(values, voxels[0])
        np.testing.assert_array_equal(image.affine, maps[0].affine)
        assert image.header == maps[0].header
    reports = [json.loads((folder / f"{case}_seg.json").read_text()) for folder in ways.values()]
    for report in reports:
        assert all(report["timings_s"][stage] > 0 for stage in ("load", "infer", "labels", "write"))
        assert deciding(report) == deciding(reports[0])
    for report in reports[1:]:
        assert report["labels"] == reports[0]["labels"]
        assert report["grid"] == reports[0]["grid"]
        assert report["network_grid"] == reports[0]["network_grid"]


@pytest.mark.parametrize(("overlay", "labels"), [(None, 3), ("brain", 2)])
def test_three_ways_give_the_same_voxels(tmp_path: Path, overlay: str | None, labels: int) -> None:
    root = make_bundle(tmp_path)
    ways = three_ways(root, make_scan(tmp_path / "scan.nii.gz"), tmp_path, overlay)
    assert_same(ways, "scan", labels)


def test_reports_of_predictor_and_bundle_name_the_same_model(tmp_path: Path) -> None:
    root = make_bundle(tmp_path)
    ways = three_ways(root, make_scan(tmp_path / "scan.nii.gz"), tmp_path)
    reports = [json.loads((folder / "scan_seg.json").read_text()) for folder in ways.values()]
    for key in ("schema", "input", "model", "run", "software", "preprocessing", "inference", "warnings"):
        assert all(report[key] == reports[0][key] for report in reports), key


@pytest.mark.slow
def test_the_bundle_that_ships_gives_the_same_voxels(repository: Path, data_dir: Path, tmp_path: Path) -> None:
    root = repository / "bundles" / "mri_head_segmentation"
    scan = data_dir / "mri" / "MNI152_2009_template.nii.gz"
    assert_same(three_ways(root, scan, tmp_path), "MNI152_2009_template", 8)
