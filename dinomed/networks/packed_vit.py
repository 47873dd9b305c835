"""A vision transformer's inference on CPUs that multiply bfloat16 matrices: the same features, several times sooner.

The matrix products are oneDNN's on weights packed once, and do bias, GELU and the sum with what came before as they
write; layer scale is multiplied into the weights. Queries and keys are rotated together, the class and storage tokens
by an angle of zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import Mlp
from torch import Tensor, nn

from dinomed.networks.backbones import LayerTokens, TimmBackbone, ViTBackbone, pad_to_multiple


class _PackedLinear:
    """A linear layer in bfloat16, its weight laid out for oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), None)
        self.bias = None if bias is None else bias.bfloat16().contiguous()

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        name, algorithm = ("gelu", "none") if gelu else ("none", "")  # "none": the exact GELU
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return y

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return y


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class _Block(NamedTuple):
    attention_norm: _Norm
    qkv: _PackedLinear
    projection: _PackedLinear
    mlp_norm: _Norm
    fc1: _PackedLinear
    fc2: _PackedLinear


class PackedViT:
    """What a ViT backbone's last layer says, in bfloat16 on a CPU; a copy of its weights as they are now.

    Args:
        backbone: A backbone that `can_pack` accepts.
    """

    def __init__(self, backbone: ViTBackbone) -> None:
        self.model: Any = backbone.model
        self.multiple = backbone.multiple
        with torch.no_grad():
            self.blocks = [_packed_block(block) for block in self.model.blocks]
            self.norm = _packed_norm(self.model.norm)
            patches = self.model.patch_embed.proj
            self.patch_weight, self.patch_bias = patches.weight.bfloat16(), patches.bias.bfloat16()
            self.prefix = torch.cat([self.model.cls_token, self.model.reg_token], dim=1).bfloat16()

    def forward_last(self, image: Tensor) -> LayerTokens:
        """Give map, class token and storage tokens of the last layer for the image (B, 3, H, W), in bfloat16."""
        image = pad_to_multiple(image.bfloat16(), self.multiple)
        patches = F.conv2d(image, self.patch_weight, self.patch_bias, stride=self.multiple)
        rows, columns = patches.shape[-2:]
        prefix = self.prefix.expand(len(image), -1, -1)
        x = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        count = prefix.shape[1]
        cosines, sines = self._rotation(rows, columns, count)
        for block in self.blocks:
            x = block.projection.plus(self._attend(block.qkv(block.attention_norm(x)), cosines, sines), x)
            x = block.fc2.plus(block.fc1(block.mlp_norm(x), gelu=True), x)
        x = self.norm(x)
        patch_map = x[:, count:].transpose(1, 2).unflatten(2, (rows, columns))
        return LayerTokens(patch_map, x[:, 0], x[:, 1:count])

    def _rotation(self, rows: int, columns: int, prefix: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for each token, (tokens, 1, 1, head width); no rotation for the first `prefix`."""
        sines, cosines = self.model.rope.get_embed((rows, columns)).chunk(2, dim=-1)
        half = sines.shape[-1] // 2
        sines = torch.cat([-sines[:, :half], sines[:, half:]], dim=-1)
        cosines, sines = F.pad(cosines, (0, 0, prefix, 0), value=1.0), F.pad(sines, (0, 0, prefix, 0))
        return cosines.bfloat16()[:, None, None], sines.bfloat16()[:, None, None]

    def _attend(self, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Rotate queries and keys and attend, (B, tokens, 3 * C) to (B, tokens, C)."""
        split = qkv.unflatten(-1, (3, self.model.blocks[0].attn.num_heads, -1))
        both = split[:, :, :2]
        rotated = torch.addcmul(both * cosines, both.roll(both.shape[-1] // 2, -1), sines)
        query, key, value = (x.transpose(1, 2) for x in (rotated[:, :, 0], rotated[:, :, 1], split[:, :, 2]))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def can_pack(backbone: TimmBackbone) -> bool:
    """Whether `PackedViT` takes a backbone: a ViT with plain GELU layers, where PyTorch has oneDNN's products."""
    if not isinstance(backbone, ViTBackbone) or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    return all(
        type(block.mlp) is Mlp
        and isinstance(block.mlp.act, nn.GELU)
        and block.mlp.act.approximate == "none"
        and isinstance(block.attn.qkv, nn.Linear)
        and block.gamma_1 is not None
        and block.gamma_2 is not None
        for block in backbone.model.blocks
    )


def _packed_norm(norm: Any) -> _Norm:
    return _Norm(norm.weight.detach().bfloat16(), norm.bias.detach().bfloat16(), norm.eps)


def _packed_block(block: Any) -> _Block:
    attention, mlp = block.attn, block.mlp
    parts = (attention.q_bias, attention.k_bias, attention.v_bias)
    bias = None if attention.q_bias is None else torch.cat([part.reshape(-1) for part in parts])
    return _Block(
        _packed_norm(block.norm1),
        _PackedLinear(attention.qkv.weight, bias),
        _PackedLinear(attention.proj.weight * block.gamma_1[:, None], attention.proj.bias * block.gamma_1),
        _packed_norm(block.norm2),
        _PackedLinear(mlp.fc1.weight, mlp.fc1.bias),
        _PackedLinear(mlp.fc2.weight * block.gamma_2[:, None], mlp.fc2.bias * block.gamma_2),
    )
