"""Random changes of flat pictures for training: torchvision's transforms, in presets for kinds of pictures.

A preset is a YAML file in MONAI's configuration language beside this module. Labels move with their picture, by nearest
neighbour, and what comes from beyond the picture's edge is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform
from torchvision import tv_tensors
from torchvision.transforms import v2

from dinomed.errors import InputError
from dinomed.transforms.natural_images import IGNORE_INDEX, size_difference

IMAGENET_MEAN = (0.485, 0.456, 0.406)


class RandTorchvisiond(Randomizable, Transform):
    """Pass a picture, and its label map if there is one, through transforms of `torchvision.transforms.v2`.

    Both go through the same draws. torchvision draws from PyTorch's global generator; here it is seeded from MONAI's
    random state for the call and put back afterwards, so that `set_random_state` decides alone.

    Args:
        transforms: Applied in order; those that move pixels should fill with `fill_values`.
        image_key: Entry with the picture, (3, H, W) float32 in [0, 1].
        label_key: Entry with the label map, (1, H, W) integers; absent, or a class number, is left as it is.
    """

    def __init__(
        self, transforms: Sequence[Callable[..., Any]], image_key: str = "image", label_key: str = "label"
    ) -> None:
        self.transform = v2.Compose(list(transforms))
        self.image_key = image_key
        self.label_key = label_key
        self.seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next call."""
        self.seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with picture and label map changed.

        Raises:
            InputError: If the two differ in size.
        """
        self.randomize()
        out = dict(data)
        image, labels = out[self.image_key], out.get(self.label_key)
        parts: dict[str, Any] = {self.image_key: tv_tensors.Image(_plain(image))}
        if isinstance(labels, torch.Tensor) and labels.ndim >= 2:
            if labels.shape[-2:] != image.shape[-2:]:
                name = getattr(labels, "meta", {}).get("filename_or_obj", f"the entry {self.label_key!r}")
                raise InputError(size_difference(str(name), tuple(labels.shape[-2:]), tuple(image.shape[-2:])))
            parts[self.label_key] = tv_tensors.Mask(_plain(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            changed = self.transform(parts)
        for key in parts:
            out[key] = _like(changed[key].as_subclass(torch.Tensor), out[key])
        return out


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _like(tensor: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    if isinstance(original, MetaTensor):
        return MetaTensor(tensor.contiguous(), meta=original.meta, applied_operations=original.applied_operations)
    return tensor.contiguous()


def fill_values(
    ignore_index: int = IGNORE_INDEX, image_fill: Sequence[float] = IMAGENET_MEAN
) -> dict[type, float | list[float]]:
    """Say what lies beyond the edge: in pictures a colour that normalisation makes 0, in label maps the ignored label.

    Args:
        ignore_index: For label maps.
        image_fill: Red, green and blue in [0, 1]; by default ImageNet's mean.
    """
    return {tv_tensors.Image: [float(value) for value in image_fill], tv_tensors.Mask: ignore_index}


def preset_names() -> list[str]:
    """Name the presets that come with the package."""
    folder = files("dinomed.transforms") / "presets"
    return sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml"))


def load_preset(name: str, **settings: Any) -> RandTorchvisiond:
    """Make the augmentation of a preset.

    Args:
        name: One of `preset_names()`, or the path of a YAML file that is built like them.
        settings: Values for the ids at the top of the file, such as `size` (height, width), `ignore_index`,
            `image_key`, `label_key`.

    Raises:
        InputError: If there is no such preset, file or setting, or `size` is no height and width.
    """
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise InputError(f"there is no file {path}; name a preset ({', '.join(preset_names())}) or a YAML file")
        config = ConfigParser.load_config_file(path)
    else:
        if text not in preset_names():
            raise InputError(f"there is no augmentation preset {text!r}; choose from {', '.join(preset_names())}")
        config = ConfigParser.load_config_file(str(files("dinomed.transforms") / "presets" / f"{text}.yaml"))
    if "augmentation" not in config:
        raise InputError(f"{text} has no id `augmentation`; build it like the presets of dinomed/transforms/presets")
    known = [key for key in config if key not in ("augmentation", "fill")]
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"the augmentation preset {text} has no setting {key!r}; it has {', '.join(known)}")
        config[key] = list(value) if isinstance(value, tuple) else value
    size = config["size"] if "size" in settings else [1, 1]
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise InputError(
            f"the augmentation preset {text} cannot cut pictures to the size {size!r} (crop_size in the bundles); give "
            "height and width in pixels, such as [512, 512]"
        )
    return ConfigParser(config).get_parsed_content("augmentation")
