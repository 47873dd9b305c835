"""Reads photographs, tiles and other flat pictures, and label maps drawn for them; needs neither torch nor MONAI.

Pictures become RGB in [0, 1] as a viewer shows them, turned as their EXIF orientation says. Label maps keep their
numbers: a palette's index is the label, its colours do not count. Only common formats are opened, by their content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dinomed.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
LOSSY_FORMATS = ("JPEG", "MPO")  # what Pillow calls a JPEG that holds several pictures
IGNORE_INDEX = 255
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")

PathLike = str | os.PathLike[str]
Result = TypeVar("Result")


def read_pixels(path: PathLike) -> NDArray[Any]:
    """Read a picture as RGB, in the depth in which the file holds it.

    Transparent parts are laid over white. Grey becomes three equal channels, a palette its colours; CMYK is converted
    without a colour profile. Of a file with several pictures the first is read. Colour pictures of 16 bits a
    channel are read with 8, which is all that Pillow gives.

    Returns:
        uint8, uint16 (grey pictures of 16 bits) or float32 (grey pictures of floating point) of shape (H, W, 3).

    Raises:
        InputError: If there is no such file, or it is damaged, cut off, or of a kind that is not read.
    """
    return _opened(path, _rgb)


def read_image(path: PathLike) -> NDArray[np.float32]:
    """Read a picture as RGB between 0 and 1.

    Returns:
        float32 of shape (3, H, W).

    Raises:
        InputError: As `read_pixels`, and if floating point values lie outside [0, 1].
    """
    pixels = read_pixels(path)
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0.0 and high <= 1.0):
            raise InputError(
                f"{path} holds floating point values from {low:g} to {high:g}; scale them to [0, 1] or save 16 bits"
            )
    else:
        pixels = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)


def read_label_map(
    path: PathLike,
    reduce_zero_label: bool = False,
    label_values: Mapping[int, int] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> NDArray[np.int32]:
    """Read a label map.

    Args:
        path: File of one channel, or of equal ones, with a class number at each pixel.
        reduce_zero_label: Whether 0 stands for everything that has no class, as in ADE20K: it becomes `ignore_index`,
            and each other number one less.
        label_values: Numbers to replace, such as {255: 1} for masks in black and white; before the above.
        ignore_index: Number of the pixels that count nowhere.

    Returns:
        int32 of shape (H, W).

    Raises:
        InputError: If there is no such file, or it is damaged, or holds colours or lossy values instead of numbers, or
            a class would get the number of ignored pixels.
    """
    return _opened(path, lambda image: renumber(_numbers(image), reduce_zero_label, label_values, ignore_index))


def renumber(
    labels: NDArray[np.int32],
    reduce_zero_label: bool = False,
    label_values: Mapping[int, int] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> NDArray[np.int32]:
    """Give the labels of a file the numbers that training uses; arguments as those of `read_label_map`.

    Raises:
        InputError: If a class would get the number of ignored pixels; the sentence goes on behind the file's name.
    """
    result = labels
    if label_values:
        result = labels.copy()
        for old, new in label_values.items():
            result[labels == int(old)] = int(new)
    if reduce_zero_label:
        if (result == ignore_index + 1).any():
            raise InputError(
                f"holds {ignore_index + 1}, which reduce_zero_label makes {ignore_index}, the number of ignored "
                "pixels; correct it or choose another ignore_index, such as 65535"
            )
        ignored = (result == 0) | (result == ignore_index)
        result = np.where(ignored, np.int32(ignore_index), result - 1).astype(np.int32, copy=False)
    return result


def image_size(path: PathLike) -> tuple[int, int]:
    """Read height and width of a picture as it is shown, from its header alone.

    Raises:
        InputError: If there is no such file or it is no picture.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)

    return _opened(path, size)


def _opened(path: PathLike, read: Callable[[Image.Image], Result]) -> Result:
    """Open a picture, read it, and turn whatever goes wrong into one sentence."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return read(image)
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; check the path") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read; ask for the right to read it") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow meets damaged files with many kinds of exceptions
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder, not a picture; name a file") from error
        if os.path.getsize(path) == 0:
            raise InputError(f"{path} is empty; get the file again") from error
        cause = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify" in cause:
            cause = "it is none of " + ", ".join(FORMATS)
        raise InputError(f"{path} cannot be read as a picture ({cause}); get the file again or convert it") from error


def _rgb(image: Image.Image) -> NDArray[Any]:
    """Return a picture's pixels (H, W, 3), turned upright."""
    in_png = image.format == "PNG"
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT or (image.mode == "I" and in_png):  # older Pillow calls 16 bits of a PNG "I"
        return _three(np.asarray(image).astype(np.uint16))
    if image.mode == "F":
        return _three(np.asarray(image, dtype=np.float32))
    if image.mode == "I":
        raise InputError("holds integers of 32 bits; save it with 8 or 16")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return np.array(image.convert("RGB"))


def _three(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _numbers(image: Image.Image) -> NDArray[np.int32]:
    """Return the numbers (H, W) of a label map, turned upright."""
    if image.format in LOSSY_FORMATS:
        raise InputError("is a JPEG, which changes label numbers when it is saved; save label maps as PNG")
    image = ImageOps.exif_transpose(image)
    values = np.asarray(image)
    if image.mode in ("LA", "La", "PA"):
        values = values[:, :, 0]
    elif image.mode in ("RGB", "RGBA"):
        if not (np.array_equal(values[..., 0], values[..., 1]) and np.array_equal(values[..., 0], values[..., 2])):
            raise InputError("is a colour picture; a label map has one channel with a class number at each pixel")
        values = values[:, :, 0]
    elif image.mode not in ("1", "L", "P", "I", "F", *SIXTEEN_BIT):
        raise InputError(f"has the colour mode {image.mode}; a label map has one channel with a class number")
    numbers = values.astype(np.int32)
    if values.dtype.kind == "f" and not np.array_equal(numbers, values):
        raise InputError("holds fractions; a label map has a whole class number at each pixel")
    return numbers


def size_difference(path: str, labels_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> str:
    """Say that a label map does not fit its picture; shapes are (height, width)."""
    (label_h, label_w), (image_h, image_w) = labels_shape, image_shape
    hint = "draw it again on that picture"
    if (label_h, label_w) == (image_w, image_h):
        hint = "turn it, or remove the EXIF orientation that turns the picture"
    return f"{path} is {label_w} x {label_h} pixels but its picture is {image_w} x {image_h}; {hint}"
