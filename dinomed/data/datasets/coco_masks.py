"""Draws semantic label maps from COCO objects, and keeps them on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinomed.data.datasets.coco_file import CocoImage, CocoObject, decode_counts
from dinomed.errors import InputError, OutputError

RULES_VERSION = 1
"""Belongs to what is kept on disk: raise it when something is drawn differently."""

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_KEY = "dinomed"


def draw_label_map(
    image: CocoImage, label_of_category: Mapping[int, int], ignore_index: int
) -> tuple[NDArray[Any], list[int]]:
    """Draw all objects of a picture.

    The objects are drawn from the largest to the smallest by the pixels that they cover, equal ones in the order of the
    file, so that small objects stay visible. Pixels of crowd regions become `ignore_index` where no single object
    covers them. All else is 0.

    Returns:
        uint8 (H, W), uint16 where a label or `ignore_index` needs it; and the pixels that each object covers by
        itself, in the order of the file.

    Raises:
        InputError: If a polygon is to be drawn and pycocotools is not installed.
    """
    regions = [_Region(each, image.height, image.width) for each in image.objects]
    deep = max([ignore_index, *label_of_category.values()]) > 255
    labels = np.zeros((image.height, image.width), dtype=np.uint16 if deep else np.uint8)
    order = sorted(range(len(regions)), key=lambda i: (not image.objects[i].is_crowd, -regions[i].area))
    for index in order:
        each = image.objects[index]
        if regions[index].area:
            label = ignore_index if each.is_crowd else label_of_category[each.category_id]
            labels[regions[index].mask()] = label
    return labels, [region.area for region in regions]


class _Region:
    """One object's pixels: their number at once, the mask when it is asked for."""

    def __init__(self, shape: CocoObject, height: int, width: int) -> None:
        self.size = (height, width)
        self.runs = shape.runs if shape.runs is not None else polygon_runs(shape.polygons, height, width)
        self.area = int(self.runs[1::2].sum())

    def mask(self) -> NDArray[np.bool_]:
        """Return the object's pixels, (H, W)."""
        inside = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(inside, self.runs).reshape(self.size, order="F")


def polygon_runs(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> NDArray[np.int64]:
    """Return the run lengths of the union of polygons, drawn by COCO's own tools.

    Raises:
        InputError: If pycocotools is not installed.
    """
    clipped = [clip_polygon(each, height, width) for each in polygons]
    outlines = [each.reshape(-1).tolist() for each in clipped if len(each) >= 3]
    if not outlines:
        return np.asarray([height * width], dtype=np.int64)
    tools = _coco_tools()
    merged = tools.merge(tools.frPyObjects(outlines, height, width))
    return decode_counts(merged["counts"].decode("ascii"))


def _coco_tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError("COCO's polygons are drawn by pycocotools; pip install 'dinomed[natural]'") from error
    return mask


def clip_polygon(polygon: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Cut off what lies far outside the picture; a polygon that stays within one picture's size of it is unchanged.

    pycocotools walks along every edge pixel by pixel, and wraps round beyond 32 bits.

    Args:
        polygon: (N, 2) as x, y.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.

    Returns:
        (M, 2); empty where nothing is left. Source: Sutherland and Hodgman, "Reentrant polygon clipping", 1974.
    """
    for axis, side in ((0, width), (1, height)):
        for limit, sign in ((-float(side), 1.0), (2.0 * side, -1.0)):
            inside = sign * (polygon[:, axis] - limit) >= 0
            if inside.all():
                continue
            kept = []
            for index, point in enumerate(polygon):
                before = polygon[index - 1]
                if inside[index] != inside[index - 1]:
                    part = (limit - before[axis]) / (point[axis] - before[axis])
                    crossing = before + part * (point - before)
                    crossing[axis] = limit
                    kept.append(crossing)
                if inside[index]:
                    kept.append(point)
            polygon = np.asarray(kept, dtype=np.float64).reshape(-1, 2)
            if len(polygon) < 3:
                return np.zeros((0, 2))
    return polygon


class MaskCache:
    """Label maps on disk, one PNG per picture, drawn when first asked for.

    Files are written under a name of their own and then renamed, so that several processes may share a folder; each is
    checked whenever it is asked for and drawn again when it is damaged.

    Args:
        folder: Where; made when needed.
        content: What the label maps are made of; other content has other files.
    """

    def __init__(self, folder: Path, content: str) -> None:
        self.key = hashlib.sha256(f"{RULES_VERSION}\n{content}".encode()).hexdigest()
        self.folder = folder / self.key[:16]

    def path(self, image: CocoImage) -> Path:
        """Name the file of a picture; the ids 1 and "1" of one annotation file are two."""
        kind = "text-" if isinstance(image.id, str) else ""
        return self.folder / f"{kind}{quote(str(image.id), safe='')}.png"

    def get(self, image: CocoImage, draw: Callable[[], NDArray[Any]]) -> Path:
        """Return the file of a picture's label map, which is whole.

        Raises:
            OutputError: If it is not there and cannot be written.
        """
        path = self.path(image)
        tag = f"{self.key} {json.dumps(image.id)} {image.width}x{image.height}"
        try:
            content: bytes | None = path.read_bytes()
        except OSError:
            content = None
        if content is None or not is_whole_png(content, tag):
            self._write(path, draw(), tag)
        return path

    def _write(self, path: Path, labels: NDArray[Any], tag: str) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
        info = PngInfo()
        info.add_text(PNG_KEY, tag)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(temporary, format="PNG", pnginfo=info)
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}); set cache_dir to a folder you may write to"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def is_whole_png(content: bytes, tag: str) -> bool:
    """Whether a PNG is complete, has no wrong checksum, and carries the tag; its pixels are not decoded."""
    if not content.startswith(PNG_START):
        return False
    wanted = PNG_KEY.encode() + b"\0" + tag.encode("latin-1", "replace")
    tagged, place = False, len(PNG_START)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 12 + length
        body = content[place + 4 : end - 4]
        if end > len(content) or zlib.crc32(body) != int.from_bytes(content[end - 4 : end], "big"):
            return False
        tagged = tagged or body == b"tEXt" + wanted
        if body[:4] == b"IEND":
            return tagged
        place = end
    return False
