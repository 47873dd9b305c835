"""The names of the backbones and how each is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneSpec:
    """How a name is built.

    Attributes:
        timm_model: timm's architecture.
        hub_model: Its name on timm's hub; None where the hub has no weights for it.
        layers: Tapped layers; None taps the ends of four equal parts.
        norm_eps: Epsilon of every LayerNorm; None keeps timm's (1e-5 for a transformer, 1e-6 for a ConvNeXt).
        rope_bfloat16: Whether the position table and the rotation are in bfloat16.
        zero_qkv_bias: Whether the released qkv biases are all zero, so that a file may come without them.
    """

    timm_model: str
    hub_model: str | None = None
    layers: tuple[int, ...] | None = None
    norm_eps: float | None = None
    rope_bfloat16: bool = False
    zero_qkv_bias: bool = False


def _vit(
    timm_model: str, tag: str = "lvd1689m", layers: tuple[int, ...] | None = None, zero_qkv_bias: bool = False
) -> BackboneSpec:
    return BackboneSpec(timm_model, f"{timm_model}.{tag}", layers, zero_qkv_bias=zero_qkv_bias)


def _convnext(size: str) -> BackboneSpec:
    return BackboneSpec(f"convnext_{size}", f"convnext_{size}.dinov3_lvd1689m")


# The architectures with a qkv bias are taken wherever the official network has one. The released B, L and H+ weights
# have only zeros there, so nothing is lost; the 7B network and MedDINOv3 have no such bias.
BACKBONES: dict[str, BackboneSpec] = {
    "dinov3_vit_tiny16": _vit("vit_tiny_patch16_dinov3_qkvb", tag="eupe_lvd1689m"),
    "dinov3_vits16": _vit("vit_small_patch16_dinov3_qkvb"),
    "dinov3_vits16plus": _vit("vit_small_plus_patch16_dinov3_qkvb"),
    "dinov3_vitb16": _vit("vit_base_patch16_dinov3_qkvb", zero_qkv_bias=True),
    "dinov3_vitl16": _vit("vit_large_patch16_dinov3_qkvb", layers=(4, 11, 17, 23), zero_qkv_bias=True),
    "dinov3_vith16plus": _vit("vit_huge_plus_patch16_dinov3_qkvb", zero_qkv_bias=True),
    "dinov3_vit7b16": _vit("vit_7b_patch16_dinov3"),
    "dinov3_convnext_tiny": _convnext("tiny"),
    "dinov3_convnext_small": _convnext("small"),
    "dinov3_convnext_base": _convnext("base"),
    "dinov3_convnext_large": _convnext("large"),
    "meddinov3_vitb16": BackboneSpec("vit_base_patch16_dinov3", norm_eps=1e-6, rope_bfloat16=True),
}
