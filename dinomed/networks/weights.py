"""Loading weights into a backbone: finds the layout by itself and says exactly what did not match."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinomed.errors import WeightsError
from dinomed.networks.hub_weights import fetch_hub_weights
from dinomed.networks.weight_files import damaged
from dinomed.networks.weight_files import read_weights as read_weights
from dinomed.networks.weight_layouts import LAYOUTS, Layout, Piece, find_layout, strip_prefix, unwrap

if TYPE_CHECKING:
    from dinomed.networks.backbones import TimmBackbone

_LISTED = 10
# Rounding the periods and their exponents to bfloat16, as some official files do, moves them by less than this.
_PERIOD_TOLERANCE = 0.03
_QKV_BIAS = re.compile(r".*\.(?:attn\.(?:qkv\.bias|[qkv]_bias)|attention\.[qkv]_proj\.bias)")


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded.

    Attributes:
        path: The file or folder.
        layout: The layout that it was recognised as.
        left_out: Keys of the file that are no part of the backbone's features, such as a mask token.
    """

    path: Path
    layout: str
    left_out: tuple[str, ...]


def load_weights(backbone: TimmBackbone, source: str | Path) -> LoadedWeights:
    """Fill a backbone made by `create_backbone`, every parameter or none.

    The official, Hugging Face, timm and MedDINOv3 layouts are recognised by their keys. A file whose name ends in
    "-" and eight hexadecimal digits, as the official ones do, is first checked against the start of its SHA-256.

    Args:
        backbone: The network to fill.
        source: A .pth or .safetensors file, a Hugging Face folder, or "timm" for timm's hub.

    Raises:
        WeightsError: The file is absent, damaged or unsafe, or holds anything missing, unexpected, of another shape or
            not finite; the backbone is then as it was.
    """
    path = fetch_hub_weights(backbone.name, backbone.spec.hub_model) if str(source) == "timm" else Path(source)
    whole = read_weights(path)
    content = unwrap(whole)
    found = find_layout(content)
    if found is None:
        raise WeightsError(
            f"{path} holds none of the DINOv3 layouts (its first keys: {_listed(list(content))}): "
            f"known are the {', '.join(layout.name for layout in LAYOUTS)}"
        )
    layout, prefix = found
    if layout.family != backbone.family:
        raise WeightsError(
            f"{path} is in the {layout.name}, which {backbone.name} cannot take; build the backbone that the file is of"
        )
    keys, strange = strip_prefix(content, layout, prefix)
    state: dict[str, Tensor] = {}
    for bare, key in keys.items():
        if isinstance(value := content[key], Tensor):
            state[bare] = value
        else:
            strange.append(key)
    if layout.family == "vit":
        _check_settings(path, backbone)
    fitted, left_out = _Fit(path, layout, backbone, state, strange).fit()
    backbone.model.load_state_dict(fitted)
    wrapped = content is not whole or prefix
    return LoadedWeights(path, f"{layout.name}{' in a training checkpoint' if wrapped else ''}", tuple(left_out))


def _check_settings(path: Path, backbone: TimmBackbone) -> None:
    """Compare the settings that no shape shows with the config.json of a Hugging Face folder, where there is one."""
    config_path = (path if path.is_dir() else path.parent) / "config.json"
    if not (path.is_dir() or path.name == "model.safetensors") or not config_path.is_file():
        return
    try:
        config = json.loads(config_path.read_text())
    except ValueError as error:
        raise damaged(config_path, error) from error
    model = backbone.model
    ours = {
        "layer_norm_eps": model.norm.eps,
        "rope_theta": model.rope.temperature,
        "num_attention_heads": model.blocks[0].attn.num_heads,
    }
    wrong = [
        f"{key} {config[key]} (network: {value})" for key, value in ours.items() if config.get(key, value) != value
    ]
    if wrong:
        raise WeightsError(f"{config_path} has {', '.join(wrong)}, so {backbone.name} would give other features")


class _Fit:
    """Fits a file's tensors to a backbone's parameters and collects all that does not match."""

    def __init__(
        self, path: Path, layout: Layout, backbone: TimmBackbone, state: dict[str, Tensor], strange: list[str]
    ) -> None:
        self.path, self.layout, self.backbone, self.state = path, layout, backbone, state
        self.unexpected = list(strange)
        self.missing: list[str] = []
        self.misshaped: list[str] = []
        self.not_finite: list[str] = []
        self.used: set[str] = set()
        self.hint = ""

    def fit(self) -> tuple[dict[str, Tensor], list[str]]:
        """Give the parameters under timm's names, and the keys that were left out on purpose."""
        wanted: dict[str, Tensor] = self.backbone.model.state_dict()
        gated = any(".fc1_g." in parameter for parameter in wanted)
        fitted: dict[str, Tensor] = {}
        for parameter, current in wanted.items():
            pieces = self.layout.pieces(parameter, gated)
            absent = [piece.key for piece in pieces if piece.key not in self.state]
            self.used |= {piece.key for piece in pieces} - set(absent)
            if not absent:
                fitted[parameter] = self._joined(pieces, current)
            elif self._may_lack(parameter):
                fitted[parameter] = torch.zeros_like(current) if "_bias" in parameter else current
            else:
                self.missing += [key for key in absent if key not in self.missing]
        left_out = self._sort_rest()
        self._report()
        self._check_periods(fitted, wanted)
        return fitted, left_out

    def _joined(self, pieces: Sequence[Piece], current: Tensor) -> Tensor:
        """Put a parameter together; what has the wrong shape is noted and `current` is given back."""
        parts = []
        for piece in pieces:
            tensor = self.state[piece.key]
            rows = current.shape[0] // len(pieces) * (1 if piece.third is None else 3)
            expected = (rows, *current.shape[1:])
            if tuple(tensor.shape) != expected:
                note = f"{piece.key}: {tuple(tensor.shape)} in the file, {expected} in the network"
                self.misshaped += [note] if note not in self.misshaped else []
                return current
            part = tensor if piece.third is None else tensor.chunk(3)[piece.third]
            if not torch.isfinite(part).all() and piece.key not in self.not_finite:
                self.not_finite.append(piece.key)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _may_lack(self, parameter: str) -> bool:
        """Say whether the file may do without a parameter.

        RoPE periods follow from the settings; only the official network keeps them. timm holds the released B, L and
        H+ weights with and without their qkv biases, which are zero.
        """
        if parameter == "rope.periods":
            return not self.layout.name.startswith("official")
        return (
            self.backbone.spec.zero_qkv_bias
            and self.layout.name.startswith("timm")
            and _QKV_BIAS.fullmatch(parameter) is not None
            and not any(_QKV_BIAS.fullmatch(key) for key in self.state)
        )

    def _sort_rest(self) -> list[str]:
        """Note the keys that found no place, except those that are left out on purpose; give the latter."""
        left_out = []
        for key, tensor in self.state.items():
            if _QKV_BIAS.fullmatch(key):
                self._check_dropped_bias(key, tensor)
            if key in self.used:
                continue
            if re.fullmatch(self.layout.ignored, key) or _QKV_BIAS.fullmatch(key):
                left_out.append(key)
            else:
                self.unexpected.append(key)
        return left_out

    def _check_dropped_bias(self, key: str, tensor: Tensor) -> None:
        """Refuse a bias that has no place in the network, unless it is zero or masked.

        The key bias never has one: DINOv3 masks it, which the official layout shows by a `bias_mask` beside it.
        """
        if key.endswith("qkv.bias"):
            query, middle, value = tensor.tensor_split(3)
            dropped = [] if f"{key}_mask" in self.state else [middle]
            dropped += [] if key in self.used else [query, value]
        else:
            dropped = [] if key in self.used else [tensor]
        if any(part.any() for part in dropped):
            self.unexpected.append(f"{key} (not zero)")

    def _report(self) -> None:
        problems = [
            f"{len(keys)} {what} ({_listed(keys)})"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.misshaped),
                ("not finite", self.not_finite),
            )
            if keys
        ]
        if not problems:
            return
        hint = "build the backbone that the file is of"
        if self.missing and all(_QKV_BIAS.fullmatch(key) for key in self.missing):
            hint = "a transformer without qkv biases is MedDINOv3, build meddinov3_vitb16, or the 7B, dinov3_vit7b16"
        elif any(key.endswith("(not zero)") for key in self.unexpected):
            hint = "biases that are not zero would be lost, build a backbone that has them"
        elif self.not_finite and len(problems) == 1:
            hint = "the training that wrote them had failed, take another file"
        raise WeightsError(
            f"{self.path} ({self.layout.name}) does not fit {self.backbone.name}: {'; '.join(problems)}; {hint}"
        )

    def _check_periods(self, fitted: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        if "rope.periods" not in wanted:
            return
        theirs, ours = fitted["rope.periods"].float().cpu(), wanted["rope.periods"].float().cpu()
        if not torch.allclose(theirs, ours, rtol=_PERIOD_TOLERANCE, atol=0):
            raise WeightsError(
                f"{self.path} was trained with other RoPE periods ({_listed([f'{p:.3g}' for p in theirs.tolist()])}) "
                f"than {self.backbone.name} has ({_listed([f'{p:.3g}' for p in ours.tolist()])})"
            )


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
