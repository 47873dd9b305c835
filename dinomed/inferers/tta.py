"""A 2-D network over pictures, whole or window by window, with test-time augmentation: scales and the mirrored picture.

Each view of the picture goes through the network by itself; its probabilities are turned back, brought to the picture's
own grid and averaged. A resized view covers exactly the picture's area, edge to edge, whatever its size, so nothing
shifts and nothing is padded by this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional

from dinomed.errors import DinomedError
from dinomed.inferers.precision import PRECISIONS, resolve_precision

Network = Callable[..., Any]
Progress = Callable[[int, int], None]


class TTAInferer(Inferer):
    """Average a network's probabilities over views of a picture: scales, and each of them mirrored left to right.

    The defaults are plain inference: one view, the picture as it is. The network should be in eval mode; it may live on
    another device than the picture.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        multiple: int = 16,
        window: int | Sequence[int] | None = None,
        overlap: float = 0.5,
        batch_size: int = 4,
        precision: str = "auto",
        progress: bool | Progress = False,
    ) -> None:
        """Choose the views.

        Args:
            scales: Sizes of the views relative to the picture's. Each is rounded to `multiple`, except 1, which leaves
                the picture alone; networks pad it by themselves.
            flip: Also look at each view mirrored left to right.
            multiple: Pixels of which the sides of resized views are a multiple; the network's patch.
            window: Side, or height and width, of the window that slides over larger views; None takes them whole.
            overlap: Part of a window that the next one covers again, 0 to below 1.
            batch_size: Windows at a time.
            precision: "float32", "bfloat16", or "auto", which takes bfloat16 where the device multiplies it natively.
            progress: A function that is called with the views done and their number; True means nothing here.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__()
        scales = (scales,) if isinstance(scales, (int, float)) else tuple(scales)
        if not scales or not all(isinstance(scale, (int, float)) and 0 < scale < 100 for scale in scales):
            raise ValueError(f"scales must be one or more numbers above 0, such as [0.75, 1, 1.25], not {scales!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        if batch_size < 1 or multiple < 1:
            raise ValueError(f"batch_size and multiple must be 1 or more, not {batch_size} and {multiple}")
        sides = (window, window) if isinstance(window, int) else window
        if not 0 <= overlap < 1 or (sides is not None and (len(sides) != 2 or min(sides) < 1)):
            raise ValueError(f"overlap must lie in [0, 1) and window be one or two sides, not {overlap}, {window}")
        self.scales = scales
        self.flip = bool(flip)
        self.multiple = multiple
        self.window = None if sides is None else tuple(sides)
        self.overlap = overlap
        self.batch_size = batch_size
        self.precision = precision
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Segment pictures of one size.

        Args:
            inputs: (B, C, H, W) floating point, normalised.
            network: Maps (B, C, h, w) of any size to logits (B, K, h, w).
            *args: Further arguments of the network.
            **kwargs: Further arguments of the network.

        Returns:
            Probabilities (B, K, H, W) float32 on the device of `inputs`, of two classes where the network gives one
            logit; a MetaTensor with the meta data of `inputs` if that is one.

        Raises:
            ValueError: If the input or the network's output has another shape or type.
            DinomedError: If the network's output is not finite.
        """
        if inputs.ndim != 4 or 0 in inputs.shape or not inputs.is_floating_point():
            raise ValueError(
                f"inputs must be floating point of shape (B, C, H, W), not {inputs.dtype} of {tuple(inputs.shape)}; "
                "load and normalise pictures first"
            )
        values = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        device = values.device if parameter is None else parameter.device
        dtype = resolve_precision(self.precision, device)
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

        def predict(image: Tensor) -> Tensor:
            return _probabilities(network(image, *args, **kwargs), image)

        with torch.inference_mode(), autocast:
            probs = self._average(values.to(device, torch.float32), predict)
        probs = probs.to(values.device).clone()  # out of inference mode, as an ordinary tensor
        return MetaTensor(probs).copy_meta_from(inputs, copy_attr=True) if isinstance(inputs, MetaTensor) else probs

    def view_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return height and width of the view of each scale, for a picture of this size."""
        sizes = []
        for scale in self.scales:
            rounded = [max(1, round(side * scale / self.multiple)) * self.multiple for side in (height, width)]
            sizes.append((height, width) if scale == 1 else (rounded[0], rounded[1]))
        return sizes

    def _average(self, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of the views' probabilities on the picture's grid."""
        height, width = image.shape[-2:]
        mirrors = (False, True) if self.flip else (False,)
        number = len(self.scales) * len(mirrors)
        total: Tensor | None = None
        done = 0
        for size in self.view_sizes(height, width):
            view = resize(image, size, antialias=True)
            for mirrored in mirrors:
                probs = self._look(view.flip(-1) if mirrored else view, predict)
                probs = resize(probs.flip(-1) if mirrored else probs, (height, width))
                total = probs if total is None else total.add_(probs)
                done += 1
                if callable(self.progress):
                    self.progress(done, number)
        assert total is not None
        return total.div_(number) if number > 1 else total

    def _look(self, view: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the probabilities of one view, from windows where it is larger than one."""
        height, width = view.shape[-2:]
        if self.window is None or (height <= self.window[0] and width <= self.window[1]):
            return predict(view)
        roi = (min(self.window[0], height), min(self.window[1], width))
        probs = sliding_window_inference(view, roi, self.batch_size, predict, self.overlap, mode="gaussian")
        assert isinstance(probs, Tensor)
        return probs


def resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Resize maps (B, C, h, w) bilinearly so that they cover the same area, edge to edge; the same size is a no-op."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    shrinks = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    return functional.interpolate(
        maps, size=size, mode="bilinear", align_corners=False, antialias=antialias and shrinks
    )


def _probabilities(logits: Any, image: Tensor) -> Tensor:
    """Turn a network's output into float32 probabilities, after checking it."""
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[-2:] != image.shape[-2:]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network must map {tuple(image.shape)} to logits (B, K, H, W), not to {shape}")
    logits = logits.float()
    if logits.shape[1] == 1:  # the logit of class 1 against class 0
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    probs = logits.softmax(dim=1)
    if not bool(torch.isfinite(probs.sum())):
        raise DinomedError("the network's output is not finite; try precision float32, or check input and weights")
    return probs
