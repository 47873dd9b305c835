"""The layouts in which DINOv3 weights are kept, each as a recipe from timm's parameter names to the file's keys.

Going from the network's names to the file's means that an error can name the keys as the file's owner knows them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_BLOCK = r"blocks\.\d+\."
_STAGE = r"stages\.\d+\."


@dataclass(frozen=True)
class Piece:
    """Where a parameter, or one part of it, lies in the file.

    Attributes:
        key: Key in the file, without the layout's prefix.
        third: Which third of the first dimension (query 0, key 1, value 2), or None for the whole tensor.
    """

    key: str
    third: int | None = None


@dataclass(frozen=True)
class Layout:
    """One way of naming the same weights.

    Attributes:
        name: For messages.
        family: "vit" or "convnext".
        marks: Matches keys that only this layout has.
        renames: (pattern on timm's name, replacement) pairs, applied in turn; gives the file's key.
        split: (timm's suffix, the file's suffixes) pairs of parameters that the file keeps in pieces.
        thirds: (timm's suffix, the file's suffix, third) of parameters that the file keeps joined.
        ignored: Matches keys that are no part of the backbone's features.
        gated_renames: Further renames for a gated (SwiGLU) feed-forward; they go first.
    """

    name: str
    family: str
    marks: str
    renames: tuple[tuple[str, str], ...] = ()
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    thirds: tuple[tuple[str, str, int], ...] = ()
    ignored: str = r"(?!)"
    gated_renames: tuple[tuple[str, str], ...] = ()

    def pieces(self, parameter: str, gated: bool) -> list[Piece]:
        """Say where timm's `parameter` lies; `gated` tells whether the feed-forward is a SwiGLU."""
        for suffix, joined, third in self.thirds:
            if parameter.endswith(suffix):
                return [Piece(self._renamed(parameter.removesuffix(suffix) + joined, gated), third)]
        for suffix, parts in self.split:
            if parameter.endswith(suffix):
                return [Piece(self._renamed(parameter.removesuffix(suffix) + part, gated)) for part in parts]
        return [Piece(self._renamed(parameter, gated))]

    def _renamed(self, parameter: str, gated: bool) -> str:
        for pattern, replacement in (self.gated_renames if gated else ()) + self.renames:
            parameter = re.sub(pattern, replacement, parameter)
        return parameter


LAYOUTS = (
    Layout(
        "official transformer layout",
        "vit",
        marks=rf"storage_tokens|rope_embed\.periods|{_BLOCK}(?:ls[12]\.gamma|attn\.qkv\.bias(?:_mask)?|mlp\.w[123]\.\w+)",
        renames=(
            (r"^reg_token$", "storage_tokens"),
            (r"^rope\.periods$", "rope_embed.periods"),
            (r"\.gamma_([12])$", r".ls\1.gamma"),
        ),
        gated_renames=((r"\.mlp\.fc1_g\.", ".mlp.w1."), (r"\.mlp\.fc1_x\.", ".mlp.w2."), (r"\.mlp\.fc2\.", ".mlp.w3.")),
        thirds=(("attn.q_bias", "attn.qkv.bias", 0), ("attn.v_bias", "attn.qkv.bias", 2)),
        # The mask of the key bias is NaN until it is filled, and only says that the key bias counts as zero. The class
        # token's norm for local crops is used in pretraining alone.
        ignored=rf"mask_token|{_BLOCK}attn\.qkv\.bias_mask|local_cls_norm\..+|projectors\..+",
    ),
    Layout(
        "Hugging Face transformer layout",
        "vit",
        marks=r"embeddings\.(?:cls_token|register_tokens|mask_token|patch_embeddings\.\w+)"
        r"|layer\.\d+\.(?:attention\.[qkvo]_proj|layer_scale[12]|mlp\.\w+_proj|norm[12])\.\w+",
        renames=(
            (r"^cls_token$", "embeddings.cls_token"),
            (r"^reg_token$", "embeddings.register_tokens"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
            (r"^blocks\.", "layer."),
            (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.attn\.([qkv])_bias$", r".attention.\1_proj.bias"),
            (r"\.attn\.([qkv])_weight$", r".attention.\1_proj.weight"),
            (r"\.mlp\.fc1\.", ".mlp.up_proj."),
            (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        ),
        gated_renames=((r"\.mlp\.fc1_g\.", ".mlp.gate_proj."), (r"\.mlp\.fc1_x\.", ".mlp.up_proj.")),
        split=(("attn.qkv.weight", ("attn.q_weight", "attn.k_weight", "attn.v_weight")),),
        ignored=r"embeddings\.mask_token",
    ),
    Layout(
        "timm transformer layout",
        "vit",
        marks=rf"reg_token|{_BLOCK}(?:gamma_[12]|attn\.[qv]_bias|mlp\.fc1_[gx]\.\w+)",
    ),
    Layout(
        "official ConvNeXt layout",
        "convnext",
        marks=rf"downsample_layers\.\d+\.\d+\.\w+|{_STAGE}\d+\.(?:gamma|(?:dwconv|norm|pwconv[12])\.\w+)",
        renames=(
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"^head\.norm\.", "norm."),
        ),
        # The last of `norms` is a second name of `norm`; the first three are empty.
        ignored=r"norms\.\d+\.\w+|projectors\..+",
    ),
    Layout(
        "Hugging Face ConvNeXt layout",
        "convnext",
        marks=rf"{_STAGE}(?:downsample_layers\.\d+|layers\.\d+\.\w+)(?:\.\w+)?",
        renames=(
            (r"^stem\.", "stages.0.downsample_layers."),
            (r"^stages\.(\d+)\.downsample\.", r"stages.\1.downsample_layers."),
            (r"^stages\.(\d+)\.blocks\.", r"stages.\1.layers."),
            (r"\.conv_dw\.", ".depthwise_conv."),
            (r"(\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
            (r"\.mlp\.fc([12])\.", r".pointwise_conv\1."),
            (r"^head\.norm\.", "layer_norm."),
        ),
    ),
    Layout(
        "timm ConvNeXt layout",
        "convnext",
        marks=rf"stem\.\d+\.\w+|{_STAGE}(?:downsample\.\d+\.\w+|blocks\.\d+\.(?:gamma|\w+\.\w+|mlp\.\w+\.\w+))",
    ),
)

# What a training checkpoint keeps beside the backbone that is used.
_BESIDE_BACKBONE = frozenset({"dino_head", "ibot_head", "student", "gram_backbone", "gram_teacher"})


def find_layout(keys: Iterable[str]) -> tuple[Layout, str] | None:
    """Tell the layout of a file's keys, and the prefix that all of the backbone's keys carry, or None."""
    found: Counter[tuple[Layout, str]] = Counter()
    for key in keys:
        for layout in LAYOUTS:
            # Newer Hugging Face versions put the blocks, but not the embeddings, behind "model.".
            optional = r"(?:model\.)?" if layout.name.startswith("Hugging Face") else ""
            if match := re.fullmatch(rf"((?:[^\s]*?\.)??){optional}(?:{layout.marks})", key):
                found[layout, match[1]] += 1
    if not found:
        return None
    # A training checkpoint holds student and teacher: the teacher is what gives features.
    return max(found, key=lambda choice: ("teacher" in choice[1].split("."), found[choice]))


def strip_prefix(keys: Iterable[str], layout: Layout, prefix: str) -> tuple[dict[str, str], list[str]]:
    """Sort a file's keys.

    Returns:
        The backbone's keys by their name without prefix, and the keys that are neither the backbone's nor known to
        stand beside one in a training checkpoint.
    """
    own: dict[str, str] = {}
    strange: list[str] = []
    for key in keys:
        if key.startswith(prefix) and not _BESIDE_BACKBONE & set(key.removeprefix(prefix).split(".")):
            bare = key.removeprefix(prefix)
            own[bare.removeprefix("model.") if layout.name.startswith("Hugging Face") else bare] = key
        elif not _BESIDE_BACKBONE & set(key.split(".")):
            strange.append(key)
    return own, strange


def unwrap(content: Mapping[str, object]) -> Mapping[str, object]:
    """Go down into the part of a checkpoint that holds the network."""
    for _ in range(4):
        inner = next(
            (content[k] for k in ("teacher", "model", "state_dict") if isinstance(content.get(k), Mapping)), None
        )
        if inner is None:
            break
        content = inner  # type: ignore[assignment]
    return content
