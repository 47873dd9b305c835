"""Finding bundles, their configs and their variants."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import NAME, make_bundle

from dinomed.bundle.config import config_file, overlay_file, overlays, program_configs, read_configs, resolve
from dinomed.bundle.locate import describe_bundle, find_bundle, list_bundles, read_metadata, search_folders
from dinomed.errors import BundleError, WeightsError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundles")


def test_a_bundle_is_found_by_path(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(root) == root
    monkeypatch.chdir(root)
    assert find_bundle(".") == root
    monkeypatch.chdir(tmp_path)
    assert find_bundle(f"bundles/{NAME}/") == root


def test_a_bundle_is_found_by_name(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="there is no bundle 'tiny_segmentation'"):
        find_bundle(NAME)
    monkeypatch.chdir(tmp_path)
    assert find_bundle(NAME) == root
    monkeypatch.chdir(root)
    monkeypatch.setenv("DINOMED_BUNDLES", f"/nowhere:{root.parent}")
    assert find_bundle(NAME) == root
    assert root.parent in search_folders()


def test_what_is_no_bundle_is_told_apart(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no MONAI bundle, it has no configs/metadata.json; give the folder"):
        find_bundle(tmp_path)
    with pytest.raises(BundleError, match="is a file, not a bundle"):
        find_bundle(root / "LICENSE")
    with pytest.raises(BundleError, match="there is no bundle"):
        find_bundle(tmp_path / "absent")


def test_the_list_says_what_bundles_say(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED_BUNDLES", str(root.parent))
    info = next(info for info in list_bundles() if info.name == NAME)
    assert (info.version, info.task, info.weights) == ("0.2.0", "Two shapes", root / "models" / "model.pt")
    (root / "models" / "model.pt").unlink()
    assert describe_bundle(root).weights is None


def test_broken_metadata_are_named_and_do_not_break_the_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "configs" / "metadata.json").write_text("{")
    with pytest.raises(BundleError, match="is not valid JSON"):
        read_metadata(root)
    monkeypatch.setenv("DINOMED_BUNDLES", str(root.parent))
    assert NAME in [info.name for info in list_bundles()]


def test_overlays_are_the_variants_of_the_inference(root: Path, tmp_path: Path) -> None:
    assert overlays(root) == ["brain"]
    assert overlay_file(root, "brain") == root / "configs" / "brain.yaml"
    own = tmp_path / "mine.yaml"
    own.write_text("planes: [axial]\n")
    assert overlay_file(root, own) == own
    for wrong in ("lungs", "metadata", "train", str(tmp_path / "absent.yaml")):
        with pytest.raises(BundleError, match="it offers brain, or give the path of a YAML file"):
            overlay_file(root, wrong)


def test_a_variant_that_is_named_after_a_program_belongs_to_it(root: Path) -> None:
    variant = root / "configs" / "evaluate_files.yaml"
    variant.write_text("batch_size: 2\n")
    assert overlays(root) == ["brain"]
    assert overlays(root, "evaluate") == ["brain", "evaluate_files"]
    assert overlay_file(root, "evaluate_files", "evaluate") == variant
    assert program_configs(root, "evaluate_files") == ["inference", "evaluate", "evaluate_files"]


def test_a_program_knows_what_it_is_laid_over(root: Path) -> None:
    assert program_configs(root, "inference") == ["inference"]
    assert program_configs(root, "train") == ["train"]
    assert program_configs(root, "evaluate") == ["inference", "evaluate"]
    assert program_configs(root, "brain") == ["inference", "brain"]
    with pytest.raises(BundleError, match=r"has no configs/export\.yaml"):
        program_configs(root, "export")
    (root / "configs" / "odd.yaml").write_text("a: '@nothing'\n")
    with pytest.raises(BundleError, match="makes sense neither alone nor over another"):
        program_configs(root, "odd")


def test_later_configs_and_overrides_win(root: Path) -> None:
    files = [config_file(root, "inference"), overlay_file(root, "brain")]
    parser = read_configs(root, files, {"batch_size": 9})
    assert resolve(parser, "label_names", root) == ["background", "all"]
    assert resolve(parser, "batch_size", root) == 9
    assert resolve(parser, "ckpt_path", root) == str(root / "models" / "model.pt")


@pytest.mark.parametrize("text", ["a: [1", "a: 1\n  b: 2", "'@x#y': 1", "x#y#z: 1"])
def test_a_config_that_cannot_be_parsed_is_named(text: str, root: Path) -> None:
    path = root / "configs" / "inference.yaml"
    path.write_text(text)
    with pytest.raises(BundleError, match=r"inference\.yaml"):
        resolve(read_configs(root, [path]), "network_def", root)


def test_overrides_without_a_place_are_refused(root: Path) -> None:
    with pytest.raises(BundleError, match="nothing#here has no place"):
        read_configs(root, [config_file(root, "inference")], {"nothing#here": 1})


def test_what_a_constructor_raises_comes_through(root: Path) -> None:
    parser = read_configs(root, [config_file(root, "inference")], {"ckpt_path": "/nowhere.pt"})
    with pytest.raises(WeightsError, match="no such weights file"):
        resolve(parser, "network", root)
    parser = read_configs(root, [config_file(root, "inference")], {"network_def#_target_": "torch.nn.NoSuchThing"})
    with pytest.raises(BundleError, match="'network_def' of the bundle tiny_segmentation cannot be built"):
        resolve(parser, "network_def", root)
