"""SegFormer, around the network of the package transformers.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
https://arxiv.org/abs/2105.15203, tables 1 and 6 for the sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from dinomed.errors import InputError, WeightsError
from dinomed.networks.backbones import pad_to_multiple
from dinomed.networks.blocks import LogitsResize
from dinomed.networks.weight_files import read_weights

_WIDE: dict[str, Any] = {"hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
SIZES: dict[str, dict[str, Any]] = {
    "b0": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256},
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], **_WIDE},
    "b3": {"depths": [3, 4, 18, 3], **_WIDE},
    "b4": {"depths": [3, 8, 27, 3], **_WIDE},
    "b5": {"depths": [3, 6, 40, 3], **_WIDE},
}
_MULTIPLE = 32  # the coarsest stride; finer maps then also fit the strides at which keys and values are thinned out
_CLASSIFIER = "decode_head.classifier."
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_LISTED = 5


class SegFormer(nn.Module):
    """Semantic segmentation of images of any size, with logits at the image's size.

    The image is padded at bottom and right to a multiple of 32; the logits, at stride 4, are enlarged bilinearly and
    cropped back. `torch.compile` takes the network in one graph once it has run, since transformers prepares its layers
    in the first call.

    Args:
        num_classes: Number of classes, the background included.
        size: "b0" to "b5".
        weights: A file or folder as transformers writes it, a state dict of this class, or the name of a repository
            that `hf download` has brought here, such as "nvidia/segformer-b5-finetuned-ade-640-640"; None for a random
            start. All must fit, except that the last layer starts at random where the number of classes differs, and
            the whole decode head where the weights are an encoder's alone ("nvidia/mit-b5"). No network is needed.
        image_channels: Channels of the image.
        frozen: Keep the encoder in evaluation mode and without gradients.
        gradient_checkpointing: Trade time for memory in training, see `set_grad_checkpointing`.
        **options: For transformers' `SegformerConfig`, e.g. `drop_path_rate`, or `depths` and `hidden_sizes` for small
            tests.

    Attributes:
        model: transformers' `SegformerForSemanticSegmentation`.
        random_parameters: Names in `model` that started at random although weights were given.

    Raises:
        InputError: The package transformers is not installed.
        ValueError: Unknown size.
        WeightsError: The weights cannot be had or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        size: str = "b5",
        weights: str | Path | None = None,
        image_channels: int = 3,
        gradient_checkpointing: bool = False,
        frozen: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"there is no SegFormer {size!r}; take one of {', '.join(SIZES)}")
        transformers = _import_transformers()
        settings = {**SIZES[size], **options, "num_channels": image_channels, "num_labels": num_classes}
        config = transformers.SegformerConfig(**settings)
        self.model: Any
        if weights is None:
            self.model = transformers.SegformerForSemanticSegmentation(config)
            self.random_parameters: list[str] = []
        else:
            self.model, self.random_parameters = _load(transformers, config, weights, size)
            self.model.train()
        self.logits_resize = LogitsResize(scale=4)
        if gradient_checkpointing:
            self.set_grad_checkpointing()
        self.frozen = frozen
        if frozen:
            self.model.segformer.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> SegFormer:
        """Set the mode, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.segformer.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes, H, W)."""
        height, width = image.shape[-2:]
        logits = self.model(pixel_values=pad_to_multiple(image, _MULTIPLE)).logits
        return self.logits_resize(logits, height, width)

    def parameter_groups(self, learning_rate: float, encoder_factor: float = 0.1) -> list[dict[str, Any]]:
        """Give an optimiser's two groups: the encoder at a part of the learning rate, the decode head at all of it.

        Args:
            learning_rate: The decode head's.
            encoder_factor: The encoder's, relative to it.
        """
        parts = (
            ("encoder", self.model.segformer, encoder_factor * learning_rate),
            ("head", self.model.decode_head, learning_rate),
        )
        return [
            {"name": name, "params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
            for name, part, rate in parts
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> SegFormer:
        """Trade time for memory in training: recompute each block's activations in the backward pass."""
        # transformers renamed these methods during its version 5
        kind = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        getattr(self.model, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()
        return self


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            'SegFormer is built by the package transformers, which is not installed: pip install "transformers>=4.56"'
        ) from error
    return transformers


def _load(transformers: Any, config: Any, weights: str | Path, size: str) -> tuple[nn.Module, list[str]]:
    """Build the network with weights and give the names of the parameters that they left at random."""
    state = _read(_find(weights))
    try:
        with _quiet(transformers):
            # transformers knows how its own names for the layers have changed from version to version.
            model, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a strange file fails in many ways, all of them the file's fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(f"{weights} cannot be loaded into SegFormer {size} ({reason}): give another file") from error
    return model, _check(report, model, weights, size)


def _find(weights: str | Path) -> Path:
    """Give the file or folder, which for the name of a repository is looked for among the hub's downloads."""
    path = Path(weights)
    if path.is_dir():
        return next((path / file for file in _FILES if (path / file).is_file()), path)
    if path.is_file() or path.suffix in _SUFFIXES or _REPOSITORY.fullmatch(str(weights)) is None:
        return path
    for file in _FILES:
        if isinstance(cached := try_to_load_from_cache(str(weights), file), str):
            return Path(cached)
    raise WeightsError(
        f"{weights} is no file or folder, and not among the downloads from the hub: run `hf download {weights}` where "
        "there is a network, and copy that cache here"
    )


def _read(path: Path) -> dict[str, Tensor]:
    state = {key: value for key, value in read_weights(path).items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors by name: give a network's state_dict")
    own = all(key.startswith("model.") for key in state)
    return {key.removeprefix("model."): value for key, value in state.items()} if own else state


def _check(report: Any, model: nn.Module, weights: str | Path, size: str) -> list[str]:
    """Refuse what did not fit; give the parameters that were left at random on purpose."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    misshaped = {mismatch[0] for mismatch in report["mismatched_keys"]}
    encoder_alone = {name for name, _ in model.named_parameters() if name.startswith("decode_head.")} <= missing
    if encoder_alone:
        missing = {key for key in missing if not key.startswith("decode_head.")}
        unexpected = {key for key in unexpected if not key.startswith("classifier.")}  # of an image classifier
    problems = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:_LISTED])}{', ...' if len(keys) > _LISTED else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", {key for key in misshaped if not key.startswith(_CLASSIFIER)}),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{weights} does not fit SegFormer {size}: {'; '.join(problems)}; build the size that they are of"
        )
    prefix = "decode_head." if encoder_alone else _CLASSIFIER
    at_random = encoder_alone or bool(misshaped)
    return [name for name, _ in model.named_parameters() if at_random and name.startswith(prefix)]


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' table of keys and its progress bar off the terminal; `_check` says what matters."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
