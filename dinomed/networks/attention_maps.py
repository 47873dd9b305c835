"""Maps over an image that say where a backbone looks, what a score hangs on, and what is alike.

None of them segments anything. They work on the image as the backbone sees it; an image that is no multiple of the
patch is padded at the bottom and the right as in the backbone, so a map has ceil(H / patch) by ceil(W / patch) cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from dinomed.networks.backbones import TimmBackbone, ViTBackbone, pad_to_multiple

Score = Callable[[Tensor, Tensor], Tensor]
"""From class tokens (B, C) and patch maps (B, C, h, w) to one score an image, (B,)."""


@torch.no_grad()
def attention_rollout(backbone: TimmBackbone, images: Tensor, batch_size: int = 4) -> Tensor:
    """Follow the class token's attention through all layers down to the patches.

    Each layer's weights are averaged over its heads, the identity is added for the residual connection, rows are
    normalised, and the layers are multiplied. A map's values are shares of 1; what is missing to 1 fell on the class
    and storage tokens.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, "attention rollout".

    Args:
        backbone: A vision transformer in evaluation mode.
        images: (B, 3, H, W), normalised.
        batch_size: Images at a time; memory grows with this times heads times tokens squared.

    Returns:
        (B, h, w) float32.

    Raises:
        ValueError: If the backbone is no transformer, or the images do not fit it.
    """
    return torch.cat([_rollout(backbone, part) for part in images.split(batch_size)])


def _rollout(backbone: TimmBackbone, images: Tensor) -> Tensor:
    tokens, rope, (rows, columns) = _first_tokens(backbone, images, "attention rollout")
    count = tokens.shape[1]
    identity = torch.eye(count, device=tokens.device)
    flow = identity.expand(len(tokens), -1, -1)
    for block in backbone.model.blocks:
        weights, _ = attention_weights(block.attn, block.norm1(tokens), rope)
        step = weights.float().mean(dim=1) + identity
        with torch.autocast(tokens.device.type, enabled=False):
            flow = (step / step.sum(dim=-1, keepdim=True)) @ flow
        tokens = block(tokens, rope=rope)
    return flow[:, 0, count - rows * columns :].unflatten(1, (rows, columns))


def attention_weights(attention: Any, tokens: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the weights that one of timm's attention layers gives its tokens, and the values that it weighs.

    Args:
        attention: An `EvaAttention` with one projection for queries, keys and values.
        tokens: Its input (B, N, C).
        rope: Position table of the patches, (patches, 2 * head width); None for none.

    Returns:
        Weights (B, heads, N, N), rows sum to 1, and values (B, heads, N, head width).
    """
    parts = (attention.q_bias, attention.k_bias, attention.v_bias)
    bias = None if attention.q_bias is None else torch.cat(parts)
    projected = F.linear(tokens, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = (each.transpose(1, 2) for each in projected.unbind(dim=2))
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rope is not None:
        prefix = attention.num_prefix_tokens
        query, key = (
            torch.cat(
                [each[:, :, :prefix], apply_rot_embed_cat(each[:, :, prefix:], rope, half=attention.rotate_half)], dim=2
            ).type_as(value)
            for each in (query, key)
        )
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return logits.softmax(dim=-1), value


def token_gradients(backbone: TimmBackbone, score: Score, images: Tensor, batch_size: int = 4) -> Tensor:
    """Weigh each patch by what it says for a score: gradient times activation, its positive part.

    Taken at the patch tokens that enter the last block, so that a score of the class token alone has a map too: the
    last block's attention carries it there. Works on frozen backbones and in inference mode; the backbone is left as
    it is, and no parameter keeps a gradient.

    Args:
        backbone: A vision transformer in evaluation mode.
        score: From the last layer's class tokens (B, C) and patch maps (B, C, h, w), normed as `forward_last` gives
            them, to one differentiable score an image, (B,).
        images: (B, 3, H, W), normalised.
        batch_size: Images at a time.

    Returns:
        (B, h, w) float32, 0 or more, in units of the score.

    Raises:
        ValueError: If the backbone is no transformer, or the images or the score do not fit.
    """
    with torch.inference_mode(False):
        # A tensor made in inference mode cannot be saved for a gradient; a copy can.
        images = images.clone() if images.is_inference() else images
        return torch.cat([_token_gradients(backbone, score, part) for part in images.split(batch_size)])


def _token_gradients(backbone: TimmBackbone, score: Score, images: Tensor) -> Tensor:
    with torch.no_grad():
        tokens, rope, (rows, columns) = _first_tokens(backbone, images, "token gradients")
        *blocks, last = backbone.model.blocks
        for block in blocks:
            tokens = block(tokens, rope=rope)
    with torch.enable_grad():
        prefix = tokens.shape[1] - rows * columns
        patches = tokens[:, prefix:].detach().requires_grad_()
        final = backbone.model.norm(last(torch.cat([tokens[:, :prefix], patches], dim=1), rope=rope))
        patch_map = final[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
        scores = score(final[:, 0], patch_map)
        if scores.shape != (len(images),) or not scores.requires_grad:
            raise ValueError(
                f"the score must be one differentiable number an image, ({len(images)},), not "
                f"{tuple(scores.shape)}{'' if scores.requires_grad else ' without a gradient'}; do not detach it"
            )
        (gradient,) = torch.autograd.grad(scores.sum(), patches)
    weighed = (gradient.float() * patches.detach().float()).sum(dim=-1).clamp(min=0.0)
    return weighed.unflatten(1, (rows, columns))


@torch.no_grad()
def occlusion(
    score_images: Callable[[Tensor], Tensor],
    images: Tensor,
    patch: int = 32,
    stride: int = 16,
    *,
    fill: Sequence[float] | float,
    batch_size: int = 16,
) -> Tensor:
    """Hide a window of the image and see how far the score falls, window by window.

    Cell (i, j) stands for the `stride` by `stride` pixels at (i * stride, j * stride); its window of `patch` by
    `patch` pixels has the same centre. Works with any network.

    Args:
        score_images: From images (n, C, H, W) to scores (n,).
        images: (B, C, H, W), normalised.
        patch: Side of the window in pixels.
        stride: Pixels from window to window.
        fill: What stands in the window, a value a channel or one for all, normalised as the images are.
        batch_size: Images at a time.

    Returns:
        (B, ceil(H / stride), ceil(W / stride)) float32: the score of the whole image less that of the occluded one;
        negative where hiding raises the score.

    Raises:
        ValueError: If a number makes no sense or `fill` does not fit the images.
    """
    if images.ndim != 4 or batch_size < 1 or stride < 1 or patch < stride or (patch - stride) % 2:
        raise ValueError(
            "occlusion needs images (B, C, H, W), a batch size of 1 or more, and a patch that is as large as the "
            f"stride or larger by an even number, not {tuple(images.shape)}, {batch_size}, {patch} and {stride}"
        )
    channels, height, width = images.shape[1:]
    value = torch.as_tensor(fill, dtype=images.dtype, device=images.device).flatten()
    if len(value) not in (1, channels):
        raise ValueError(f"fill has {len(value)} values for {channels} channels; give one each, or one for all")
    value = value.view(-1, 1, 1).expand(channels, 1, 1)
    margin = (patch - stride) // 2
    corners = [(r - margin, c - margin) for r in range(0, height, stride) for c in range(0, width, stride)]
    maps = []
    for image in images:
        whole = score_images(image[None]).float()
        drops = []
        for first in range(0, len(corners), batch_size):
            part = corners[first : first + batch_size]
            hidden = image.repeat(len(part), 1, 1, 1)
            for copy, (row, column) in zip(hidden, part, strict=True):
                copy[:, max(row, 0) : row + patch, max(column, 0) : column + patch] = value
            drops.append(whole - score_images(hidden).float())
        maps.append(torch.cat(drops).unflatten(0, (-(-height // stride), -1)))
    return torch.stack(maps) if maps else images.new_zeros((0, -(-height // stride), -(-width // stride)))


def patch_similarity(patch_map: Tensor, row: int, column: int) -> Tensor:
    """Compare all patches of an image with one of them.

    Args:
        patch_map: (B, C, h, w).
        row: Row of the reference patch, from 0.
        column: Its column, from 0.

    Returns:
        (B, h, w) float32: cosine similarity, -1 to 1, 1 at the reference; 0 for a patch of zeros.

    Raises:
        ValueError: If the reference lies outside the map.
    """
    rows, columns = patch_map.shape[-2:]
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"the reference patch ({row}, {column}) lies outside the map; rows are 0..{rows - 1}, columns "
            f"0..{columns - 1}"
        )
    unit = F.normalize(patch_map.float(), dim=1)
    return (unit * unit[:, :, row, column, None, None]).sum(dim=1).clamp(-1.0, 1.0)


def _first_tokens(backbone: TimmBackbone, images: Tensor, wanted: str) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
    """Give the tokens (B, N, C) that enter the first block, the position table, and the patches' rows and columns."""
    if not isinstance(backbone, ViTBackbone):
        raise ValueError(
            f"{backbone.name} is no transformer and has no attention, so there is no {wanted}; take occlusion or patch "
            "similarity, or a transformer such as dinov3_vits16"
        )
    model = backbone.model
    if images.ndim != 4 or images.shape[1] != model.in_chans:
        raise ValueError(f"the images must have the shape (B, {model.in_chans}, H, W), not {tuple(images.shape)}")
    patches = model.patch_embed(pad_to_multiple(images, backbone.multiple))
    rows, columns = patches.shape[1:3]
    prefix = [each.expand(len(images), -1, -1) for each in (model.cls_token, model.reg_token) if each is not None]
    tokens = model.norm_pre(torch.cat([*prefix, patches.flatten(1, 2)], dim=1))
    return tokens, model.rope.get_embed((rows, columns)), (rows, columns)
