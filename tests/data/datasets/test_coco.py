"""COCO instances as label maps: drawing rules, run lengths, broken entries, the folder of drawn label maps."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_sets import coco_content, make_coco, save, square
from PIL import Image

from dinomed.data.datasets import CocoSegmentation
from dinomed.data.datasets.class_names import COCO_ABSENT_IDS, COCO_CATEGORIES, COCO_CLASSES
from dinomed.data.datasets.coco_file import decode_counts
from dinomed.data.datasets.coco_masks import clip_polygon
from dinomed.errors import InputError, OutputError
from dinomed.transforms.natural_images import read_label_map

tools = pytest.importorskip("pycocotools.mask")
PERSON, DOG = 1, 18
DOG_LABEL = 17  # 12 is no category, so that ids from 13 on are one ahead of their labels
HEIGHT, WIDTH = 24, 32


def drawn_by_tools(polygon: list[float]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tools.decode(tools.frPyObjects([polygon], HEIGHT, WIDTH))[..., 0]


def draw(tmp_path: Path, *annotations: dict[str, Any], **options: Any) -> np.ndarray:
    path = make_coco(tmp_path, coco_content(annotations))
    dataset = CocoSegmentation(path, cache_dir=tmp_path / "cache", **options)
    labels = dataset.label_map(0)
    np.testing.assert_array_equal(read_label_map(dataset[0]["label"]), labels)
    return labels


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths by counting pixel for pixel."""
    flat, counts, inside = mask.astype(bool).reshape(-1, order="F"), [0], False
    for pixel in flat.tolist():
        if pixel != inside:
            counts.append(0)
            inside = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def ring() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:16, 6:20] = True
    mask[8:12, 10:14] = False
    return mask


def test_the_80_categories_have_gaps_and_consecutive_labels() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert len(COCO_CLASSES) == 81
    assert not set(COCO_ABSENT_IDS) & set(COCO_CATEGORIES)
    assert (COCO_CATEGORIES[1], COCO_CATEGORIES[18], COCO_CATEGORIES[90]) == ("person", "dog", "toothbrush")
    assert (COCO_CLASSES[1], COCO_CLASSES[DOG_LABEL], COCO_CLASSES[80]) == ("person", "dog", "toothbrush")


def test_polygon_covers_the_pixels_that_cocos_tools_cover(tmp_path: Path) -> None:
    polygon = [3.2, 2.7, 20.4, 5.1, 25.0, 20.9, 9.3, 17.5]
    labels = draw(tmp_path, {"category_id": DOG, "segmentation": [polygon]})
    expected = drawn_by_tools(polygon)
    assert expected.sum() > 100
    np.testing.assert_array_equal(labels, expected * DOG_LABEL)


def test_two_polygons_of_one_object_are_united(tmp_path: Path) -> None:
    labels = draw(tmp_path, {"category_id": PERSON, "segmentation": [square(2, 2, 4), square(20, 10, 6)]})
    assert (labels == 1).sum() == 16 + 36
    assert labels[3, 3] == labels[12, 22] == 1


@pytest.mark.parametrize("encode", [uncompressed, compressed])
def test_both_kinds_of_run_lengths_keep_holes(tmp_path: Path, encode: Any) -> None:
    labels = draw(tmp_path, {"category_id": DOG, "segmentation": encode(ring())})
    np.testing.assert_array_equal(labels, ring() * DOG_LABEL)


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_read_as_cocos_tools_read_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 400, 2)
    mask = random.random((height, width)) < random.choice([0.001, 0.5, 0.999])
    if seed % 4 == 0:
        mask[:] = seed % 8 == 0
    runs = decode_counts(compressed(mask)["counts"])
    assert runs.tolist() == uncompressed(mask)["counts"]


def test_an_object_shows_through_the_hole_of_another(tmp_path: Path) -> None:
    below = {"category_id": PERSON, "segmentation": [square(0, 0, 24)]}
    labels = draw(tmp_path, {"category_id": DOG, "segmentation": uncompressed(ring())}, below)
    assert labels[5, 7] == DOG_LABEL
    assert labels[9, 11] == 1


@pytest.mark.parametrize("small_first", [True, False])
def test_small_objects_lie_on_large_ones_whatever_the_order_and_the_stated_area(
    tmp_path: Path, small_first: bool
) -> None:
    small = {"category_id": DOG, "segmentation": [square(8, 8, 4)], "area": 1e6}
    large = {"category_id": PERSON, "segmentation": [square(2, 2, 18)], "area": 1}
    labels = draw(tmp_path, *([small, large] if small_first else [large, small]))
    assert (labels == DOG_LABEL).sum() == 16
    assert (labels == 1).sum() == 18 * 18 - 16


def test_objects_of_equal_size_lie_in_the_order_of_the_file(tmp_path: Path) -> None:
    labels = draw(
        tmp_path,
        {"category_id": DOG, "segmentation": [square(4, 4, 6)]},
        {"category_id": PERSON, "segmentation": [square(6, 6, 6)]},
    )
    assert labels[7, 7] == 1
    assert labels[5, 5] == DOG_LABEL


@pytest.mark.parametrize("encode", [uncompressed, compressed])
def test_crowd_regions_are_ignored_where_no_object_lies(tmp_path: Path, encode: Any) -> None:
    crowd = np.zeros((HEIGHT, WIDTH), dtype=bool)
    crowd[2:6, 2:6] = True  # smaller than the object, and yet below it
    labels = draw(
        tmp_path,
        {"category_id": PERSON, "segmentation": [square(4, 4, 10)]},
        {"category_id": PERSON, "iscrowd": 1, "segmentation": encode(crowd)},
    )
    assert labels[2, 2] == 255
    assert labels[4, 4] == 1
    assert (labels == 255).sum() == 16 - 4


def test_crowd_regions_may_be_polygons(tmp_path: Path) -> None:
    labels = draw(tmp_path, {"category_id": PERSON, "iscrowd": 1, "segmentation": [square(2, 2, 5)]})
    assert sorted(np.unique(labels)) == [0, 255]


def test_picture_without_annotations_is_background(tmp_path: Path) -> None:
    labels = draw(tmp_path)
    assert labels.shape == (HEIGHT, WIDTH)
    assert not labels.any()


@pytest.mark.parametrize(
    ("polygon", "count"),
    [
        (square(-10, -10, 5), 0),  # outside
        (square(28, 20, 100), 4 * 4),  # reaches out
        (square(-1e6, -1e6, 1e8), HEIGHT * WIDTH),  # far out
        (square(1e12, 3, 1e13), 0),  # far outside
        ([5, 5, 5, 5, 5, 5], 0),  # a point
        ([2, 2, 9, 9, 2, 2], 0),  # a line
    ],
)
def test_polygons_outside_the_picture_or_without_area_are_drawn_as_far_as_they_go(
    tmp_path: Path, polygon: list[float], count: int
) -> None:
    assert (draw(tmp_path, {"category_id": DOG, "segmentation": [polygon]}) == DOG_LABEL).sum() == count


def test_clipping_leaves_near_polygons_alone_and_keeps_the_visible_part_of_far_ones() -> None:
    near = np.array([[-30.0, -20.0], [60.0, 40.0], [3.0, 47.0]])
    np.testing.assert_array_equal(clip_polygon(near, HEIGHT, WIDTH), near)
    far = np.array([[5.0, 5.0], [5000.0, 300.0], [-20.0, 4000.0]])
    clipped = clip_polygon(far, HEIGHT, WIDTH)
    assert np.abs(clipped).max() <= 2 * WIDTH
    masks = [drawn_by_tools(each.ravel().tolist()) for each in (far, clipped)]
    assert masks[0].sum() > 300
    assert (masks[0] != masks[1]).sum() <= 2


def test_all_of_cocos_ids_make_81_classes(tmp_path: Path) -> None:
    categories = [{"id": number, "name": name} for number, name in reversed(COCO_CATEGORIES.items())]
    content = coco_content([{"category_id": 90, "segmentation": [square(2, 2, 6)]}], categories)
    dataset = CocoSegmentation(make_coco(tmp_path, content), cache_dir=tmp_path)
    assert dataset.num_classes == 81
    assert dataset.class_names == COCO_CLASSES
    assert set(np.unique(dataset.label_map(0))) == {0, 80}


def test_own_categories_are_numbered_by_ascending_id(tmp_path: Path) -> None:
    categories = [{"id": 900, "name": "bolt"}, {"id": 18, "name": "nut"}]
    content = coco_content([{"category_id": 900, "segmentation": [square(2, 2, 6)]}], categories)
    dataset = CocoSegmentation(make_coco(tmp_path, content), cache_dir=tmp_path)
    assert dataset.class_names == ("background", "nut", "bolt")
    assert set(np.unique(dataset.label_map(0))) == {0, 2}
    with pytest.raises(InputError, match=r"categories that COCO has not \(\[900\]\)"):
        CocoSegmentation(dataset.source, cache_dir=tmp_path, classes="coco")


def test_cocos_own_categories_can_be_numbered_by_the_file(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    dataset = CocoSegmentation(path, cache_dir=tmp_path, classes="file")
    assert dataset.class_names == ("background", "person", "dog")
    assert set(np.unique(dataset.label_map(0))) == {0, 2}


def test_more_classes_than_8_bits_need_another_ignored_label(tmp_path: Path) -> None:
    categories = [{"id": number, "name": f"c{number}"} for number in range(1, 301)]
    annotation = {"category_id": 300, "segmentation": [square(2, 2, 6)]}
    crowd = {"category_id": 1, "iscrowd": 1, "segmentation": [square(20, 10, 3)]}
    path = make_coco(tmp_path, coco_content([annotation, crowd], categories))
    with pytest.raises(InputError, match="301 classes, so that label 255 is one of them"):
        CocoSegmentation(path, cache_dir=tmp_path)
    dataset = CocoSegmentation(path, cache_dir=tmp_path, ignore_index=65535)
    assert set(np.unique(read_label_map(dataset[0]["label"]))) == {0, 300, 65535}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("images"), "has no list `images`"),
        (lambda content: content.pop("annotations"), "has no list `annotations`"),
        (lambda content: content.pop("categories"), "has no list `categories`"),
        (lambda content: content["images"].clear(), "has no images"),
        (lambda content: content["categories"].clear(), "has no categories"),
        (lambda content: content["images"][0].pop("height"), "image 7 has no field `height`"),
        (lambda content: content["images"][0].pop("file_name"), "image 7 has no field `file_name`"),
        (lambda content: content["images"][0].pop("id"), "image at place 0 has no field `id`"),
        (lambda content: content["images"][0].update(width="32"), "image 7 has width '32', which is no int"),
        (lambda content: content["images"][0].update(width=0), "image 7 is 0 x 24 pixels"),
        (lambda content: content["images"][0].update(width=10**8), "image 7 is 100000000 x 24 pixels"),
        (lambda content: content["images"].append(content["images"][0]), "image 7 occurs twice"),
        (lambda content: content["annotations"][0].pop("image_id"), "annotation 1 has no field `image_id`"),
        (lambda content: content["annotations"][0].pop("category_id"), "annotation 1 has no field `category_id`"),
        (lambda content: content["annotations"].append(5), "annotation at place 1 is no object"),
        (lambda content: content["categories"][0].pop("id"), "category at place 0 has no field `id`"),
        (lambda content: content["categories"].append({"id": 1}), "category 1 occurs twice"),
    ],
)
def test_missing_and_wrong_fields_are_named(tmp_path: Path, change: Any, words: str) -> None:
    content = coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}])
    change(content)
    path = make_coco(tmp_path, {key: value for key, value in content.items() if key != "images"})
    path.write_text(json.dumps(content))
    for strict in (True, False):
        with pytest.raises(InputError, match=words) as caught:
            CocoSegmentation(path, cache_dir=tmp_path, strict=strict)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"images": 3}'])
def test_other_files_are_no_coco_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json (is no|has no list)"):
        CocoSegmentation(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("annotation", "kind", "words"),
    [
        ({"segmentation": None}, "broken annotation", "has no segmentation"),
        ({"segmentation": []}, "broken annotation", "has no segmentation"),
        ({"segmentation": "x"}, "broken annotation", "neither a list of polygons nor run lengths"),
        ({"segmentation": [[1, 2, 3, 4]]}, "broken annotation", "polygon of 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "broken annotation", "polygon of 7 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "broken annotation", "no list of finite numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "broken annotation", "no list of finite numbers"),
        (
            {"segmentation": {"size": [24, 32], "counts": [3, 4]}},
            "broken annotation",
            "for 7 pixels; the image has 768",
        ),
        ({"segmentation": {"size": [24, 32], "counts": [3, -4, 769]}}, "broken annotation", "neither text nor a list"),
        ({"segmentation": {"size": [32, 24], "counts": [768]}}, "broken annotation", r"size \[32, 24\]"),
        ({"segmentation": {"size": [24, 32], "counts": ""}}, "broken annotation", "cannot be read"),
        ({"segmentation": {"size": [24, 32], "counts": "zzzzzzzzzzzzzz"}}, "broken annotation", "cannot be read"),
        ({"segmentation": {"size": [24, 32]}}, "broken annotation", "neither text nor a list"),
        ({"image_id": 8, "segmentation": [square(1, 1, 3)]}, "broken annotation", "belongs to image 8"),
        ({"category_id": 5, "segmentation": [square(1, 1, 3)]}, "label out of range", "has category 5"),
    ],
)
def test_wrong_outlines_are_errors_or_problems_and_are_not_drawn(
    tmp_path: Path, annotation: dict[str, Any], kind: str, words: str
) -> None:
    whole = {"category_id": DOG, "segmentation": [square(2, 2, 6)]}
    path = make_coco(tmp_path, coco_content([whole, {"category_id": PERSON} | annotation]))
    with pytest.raises(InputError, match=words) as caught:
        CocoSegmentation(path, cache_dir=tmp_path)
    assert f"{path}: annotation 2" in str(caught.value)
    dataset = CocoSegmentation(path, cache_dir=tmp_path, strict=False)
    assert [problem.kind for problem in dataset.problems] == [kind]
    assert set(np.unique(dataset.label_map(0))) == {0, DOG_LABEL}


def test_missing_pictures_are_an_error_or_left_out(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 24, "width": 32} for number in (7, 8)]
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}], images=images))
    (tmp_path / "val2017" / "7.jpg").unlink()
    with pytest.raises(InputError, match=r"7\.jpg is image 7 of"):
        CocoSegmentation(path, cache_dir=tmp_path)
    dataset = CocoSegmentation(path, cache_dir=tmp_path, strict=False)
    assert [item["name"] for item in dataset] == ["8"]
    assert not dataset.label_map(0).any()  # the objects stay with their own picture


def test_pictures_are_found_in_common_places_or_where_they_are_said_to_be(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([]))
    for place in ("images/val2017", "images", "annotations/images", "annotations"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        moved = (tmp_path / "val2017").rename(tmp_path / "moved")
        (moved / "ä b.jpg").rename(tmp_path / place / "ä b.jpg")
        assert CocoSegmentation(path, cache_dir=tmp_path)[0]["image"] == str(tmp_path / place / "ä b.jpg")
        (tmp_path / place / "ä b.jpg").rename(moved / "ä b.jpg")
        moved.rename(tmp_path / "val2017")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"were not found, such as ä b\.jpg"):
        CocoSegmentation(path, cache_dir=tmp_path)
    assert len(CocoSegmentation(path, tmp_path / "elsewhere", cache_dir=tmp_path)) == 1


def test_label_maps_are_drawn_once_and_only_when_asked_for(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    dataset = CocoSegmentation(path, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    label = Path(dataset[0]["label"])
    before = label.stat()
    again = CocoSegmentation(path, cache_dir=tmp_path / "cache")
    assert Path(again[0]["label"]) == label
    assert (label.stat().st_mtime_ns, label.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [each.name for each in label.parent.iterdir()] == ["7.png"]


def test_a_changed_file_other_classes_and_another_ignored_label_have_their_own_label_maps(tmp_path: Path) -> None:
    crowd = {"category_id": DOG, "iscrowd": 1, "segmentation": [square(20, 2, 6)]}
    annotation = {"category_id": DOG, "segmentation": [square(2, 2, 6)]}
    path = make_coco(tmp_path, coco_content([annotation, crowd]))

    def labels(**options: Any) -> np.ndarray:
        return read_label_map(CocoSegmentation(path, cache_dir=tmp_path / "cache", **options)[0]["label"])

    assert set(np.unique(labels())) == {0, DOG_LABEL, 255}
    assert set(np.unique(labels(classes="file"))) == {0, 2, 255}
    assert set(np.unique(labels(ignore_index=200))) == {0, DOG_LABEL, 200}
    make_coco(tmp_path, coco_content([annotation | {"category_id": PERSON}, crowd]))
    assert set(np.unique(labels())) == {0, 1, 255}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_label_map_is_drawn_again(tmp_path: Path, damage: str) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    dataset = CocoSegmentation(path, cache_dir=tmp_path / "cache")
    label = Path(dataset[0]["label"])
    content = bytearray(label.read_bytes())
    if damage == "cut":
        label.write_bytes(content[:-20])
    elif damage == "flipped":
        content[content.index(b"IDAT") + 8] ^= 0xFF
        label.write_bytes(content)
    elif damage == "empty":
        label.write_bytes(b"")
    else:
        Image.new("L", (WIDTH, HEIGHT), 3).save(label)
    np.testing.assert_array_equal(read_label_map(dataset[0]["label"]), dataset.label_map(0))


def _fetch(dataset: CocoSegmentation, wanted: bytes, barrier: Any) -> None:
    barrier.wait()
    for index in range(len(dataset)):
        if read_label_map(dataset[index]["label"]).astype(np.uint8).tobytes() != wanted:
            sys.exit(1)


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 24, "width": 32} for number in range(30)]
    annotations = [{"image_id": number, "category_id": DOG, "segmentation": [square(2, 2, 6)]} for number in range(30)]
    path = make_coco(tmp_path, coco_content(annotations, images=images))
    dataset = pickle.loads(pickle.dumps(CocoSegmentation(path, cache_dir=tmp_path / "cache")))
    context = multiprocessing.get_context("fork")
    barrier, wanted = context.Barrier(4), dataset.label_map(0).tobytes()
    workers = [context.Process(target=_fetch, args=(dataset, wanted, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    names = sorted(each.name for each in Path(dataset[0]["label"]).parent.iterdir())
    assert names == sorted(f"{number}.png" for number in range(30))  # nothing half-written is left


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([]))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot be written .* set cache_dir"):
        CocoSegmentation(path, cache_dir=tmp_path / "cache")[0]


def test_default_folder_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    label = CocoSegmentation(make_coco(tmp_path, coco_content([])))[0]["label"]
    assert label.startswith(str(tmp_path / "xdg" / "dinomed" / "coco_masks"))


def test_polygons_without_pycocotools_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_coco(
        tmp_path,
        coco_content([{"category_id": DOG, "segmentation": uncompressed(ring())}]),
    )
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert CocoSegmentation(path, cache_dir=tmp_path).label_map(0).any()
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    with pytest.raises(InputError, match=r"dinomed\[natural\]"):
        CocoSegmentation(path, cache_dir=tmp_path).label_map(0)


def test_text_ids_and_folders_in_file_names_are_kept_inside_the_folder(tmp_path: Path) -> None:
    images = [{"id": "../x/1", "file_name": "deep er/1.jpg", "height": 24, "width": 32}]
    dataset = CocoSegmentation(make_coco(tmp_path, coco_content([], images=images)), cache_dir=tmp_path / "cache")
    item = dataset[0]
    assert item["name"] == "deep er/1"
    assert Path(item["label"]).parent.parent == tmp_path / "cache"


def test_items_hold_paths_that_loading_transforms_take(tmp_path: Path) -> None:
    from dinomed.transforms.natural_images import LoadImageRGBd, LoadLabelMapd

    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    item = CocoSegmentation(path, cache_dir=tmp_path)[0]
    data = LoadLabelMapd()(LoadImageRGBd()(item))
    assert data["image"].shape == (3, 24, 32)
    assert set(data["label"].unique().tolist()) == {0, DOG_LABEL}
    save(tmp_path / "val2017" / "ä b.jpg", np.zeros((32, 24, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="is 32 x 24 pixels but its picture is 24 x 32"):
        LoadLabelMapd()(LoadImageRGBd()(item))


def test_a_picture_of_another_size_than_its_entry_is_told_by_file_and_id(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": DOG, "segmentation": [square(2, 2, 6)]}]))
    picture = save(tmp_path / "val2017" / "ä b.jpg", np.zeros((32, 24, 3), dtype=np.uint8))
    dataset = CocoSegmentation(path, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError) as error:
        dataset[0]
    assert str(error.value).startswith(f"{path}: image 7 is 32 x 24 pixels by its entry, but {picture} is 24 x 32; ")
    assert not (tmp_path / "cache").exists()


def test_ids_that_read_alike_have_label_maps_of_their_own(tmp_path: Path) -> None:
    ids = (1, "1", "text-1")
    images = [{"id": id_, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n, id_ in enumerate(ids)]
    objects = [
        {"image_id": id_, "category_id": DOG, "segmentation": [square(2, 2, 4 * n)]} for n, id_ in enumerate(ids, 1)
    ]
    path = make_coco(tmp_path, coco_content(objects, images=images))
    dataset = CocoSegmentation(path, cache_dir=tmp_path / "cache")
    items = [dataset[index] for index in range(3)]
    assert [int((read_label_map(item["label"]) == DOG_LABEL).sum()) for item in items] == [16, 64, 144]


def test_label_maps_of_ids_beyond_latin_are_kept(tmp_path: Path) -> None:
    images = [{"id": "名", "file_name": "a.jpg", "height": 24, "width": 32}]
    path = make_coco(tmp_path, coco_content([], images=images))
    label = Path(CocoSegmentation(path, cache_dir=tmp_path / "cache")[0]["label"])
    drawn = label.stat().st_ino
    CocoSegmentation(path, cache_dir=tmp_path / "cache")[0]
    assert label.stat().st_ino == drawn
