"""The contract of the networks: any decoder goes with any backbone whose maps fit, and what does not fit is refused.

A new decoder needs one line in `DECODERS` and its pairs in `FITTING` or `REFUSED`.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.networks import Backbone, DINOv3Adapter, Segmenter, create_backbone, decoders

NUM_CLASSES = 3


def make_vit(frozen: bool) -> Backbone:
    return create_backbone("dinov3_vit_tiny16", frozen=frozen, embed_dim=32, depth=4, num_heads=2)


def make_adapter(frozen: bool) -> Backbone:
    return DINOv3Adapter(make_vit(frozen), stem_width=8, drop_path=0.0, num_extra_extractors=0)


def make_convnext(frozen: bool) -> Backbone:
    return create_backbone("dinov3_convnext_tiny", frozen=frozen, depths=[1, 1, 1, 1], dims=[8, 12, 16, 20])


BACKBONES: dict[str, Callable[[bool], Backbone]] = {
    "vit": make_vit,
    "adapter": make_adapter,
    "convnext": make_convnext,
}
DECODERS: dict[str, Callable[[Backbone], nn.Module]] = {
    "LinearDecoder": lambda b: decoders.LinearDecoder(b.channels, b.strides),
    "UNetDecoder": lambda b: decoders.UNetDecoder(b.channels, b.strides),
    "UNetFullDecoder": lambda b: decoders.UNetFullDecoder(b.channels, b.strides, decoder_channels=(12, 10, 8, 6)),
    "DPTDecoder": lambda b: decoders.DPTDecoder(b.channels, b.strides, features=6, project_channels=(8, 9, 10, 11)),
    "FAPMDecoder": lambda b: decoders.FAPMDecoder(b.channels, b.strides, rank=12, stage_channels=(4, 6, 8, 10)),
    "PrimusDecoder": lambda b: decoders.PrimusDecoder(b.channels, b.strides),
}
FITTING = [
    ("vit", "LinearDecoder"),
    ("vit", "UNetDecoder"),
    ("vit", "DPTDecoder"),
    ("vit", "PrimusDecoder"),
    ("adapter", "LinearDecoder"),
    ("adapter", "UNetFullDecoder"),
    ("adapter", "DPTDecoder"),
    ("adapter", "FAPMDecoder"),
    ("convnext", "LinearDecoder"),
    ("convnext", "UNetFullDecoder"),
    ("convnext", "DPTDecoder"),
]
REFUSED = {
    ("vit", "UNetFullDecoder"): "wrap a ViT backbone in DINOv3Adapter",
    ("vit", "FAPMDecoder"): "wrap a ViT backbone in DINOv3Adapter",
    ("adapter", "UNetDecoder"): "UNetFullDecoder for strides",
    ("adapter", "PrimusDecoder"): "UNetFullDecoder for strides",
    ("convnext", "UNetDecoder"): "UNetFullDecoder for strides",
    ("convnext", "PrimusDecoder"): "UNetFullDecoder for strides",
    ("convnext", "FAPMDecoder"): "use UNetFullDecoder",
}
pairs = pytest.mark.parametrize(("family", "decoder"), FITTING, ids=[f"{f}-{d}" for f, d in FITTING])


def make_network(family: str, decoder: str, frozen: bool = False) -> Segmenter:
    torch.manual_seed(0)
    backbone = BACKBONES[family](frozen)
    return Segmenter(backbone, DECODERS[decoder](backbone), NUM_CLASSES)


def make_image(batch: int = 2, height: int = 65, width: int = 47) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def loss_of(logits: Tensor) -> Tensor:
    labels = torch.arange(logits[:, 0].numel()).view_as(logits[:, 0]) % NUM_CLASSES
    return F.cross_entropy(logits.float(), labels)


def test_every_pair_is_either_fitting_or_refused() -> None:
    assert set(DECODERS) == set(decoders.__all__)
    assert sorted([*FITTING, *REFUSED]) == sorted((family, decoder) for family in BACKBONES for decoder in DECODERS)


@pytest.mark.parametrize(("family", "decoder"), REFUSED, ids=[f"{f}-{d}" for f, d in REFUSED])
def test_a_pair_that_cannot_fit_is_refused_in_the_constructor_with_the_fix(family: str, decoder: str) -> None:
    backbone = BACKBONES[family](True)
    with pytest.raises(ValueError, match=f"^{decoder} .*{REFUSED[family, decoder]}"):
        DECODERS[decoder](backbone)


@pairs
def test_the_decoder_says_what_it_makes(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    image = make_image()
    with torch.no_grad():
        maps = network.backbone(image)
        features = network.decoder(maps, image)
    for x, channels, stride in zip(maps, network.backbone.channels, network.backbone.strides, strict=True):
        assert x.shape == (2, channels, -(-65 // stride), -(-47 // stride))
    scale = network.decoder.logits_resize.scale
    assert features.shape[:2] == (2, network.decoder.out_channels)
    assert features.shape[-2] * scale >= 65
    assert features.shape[-1] * scale >= 47
    assert network.head.kernel_size == (network.decoder.head_kernel_size,) * 2


@pairs
def test_logits_have_the_size_of_any_image(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    with torch.no_grad():
        for size in ((64, 96), (65, 47), (17, 130), (1, 1)):
            logits = network(make_image(1, *size))
            assert logits.shape == (1, NUM_CLASSES, *size)
            assert logits.isfinite().all(), size


@pairs
def test_logits_follow_every_part_of_the_image(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    image = make_image(1, 64, 64)
    with torch.no_grad():
        logits = network(image)
        image[..., 32:, 32:] += 2 * torch.randn(1, 3, 32, 32)
        changed = (network(image) - logits).abs().amax(dim=(0, 1))
    assert changed[48:, 48:].mean() > 1.5 * changed[:16, :16].mean(), "the changed corner changes the most"


@pairs
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_gradients_reach_what_is_trainable_and_nothing_frozen(family: str, decoder: str, frozen: bool) -> None:
    network = make_network(family, decoder, frozen).train()
    inner = network.backbone.backbone if family == "adapter" else network.backbone
    before = copy.deepcopy(inner.state_dict())
    loss_of(network(make_image())).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    assert not [name for name, p in network.decoder.named_parameters() if not p.requires_grad]
    assert any(p.requires_grad for p in inner.parameters()) == (not frozen)
    if frozen:
        assert not any(module.training for module in inner.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in inner.state_dict().items())


@pairs
def test_a_few_steps_reduce_the_loss(family: str, decoder: str) -> None:
    network = make_network(family, decoder).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    coarse = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    picture = F.interpolate(coarse, size=(48, 48), mode="bilinear", align_corners=False)
    labels = (picture[:, 0] > 0.5).long()
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(network(picture.expand(-1, 3, -1, -1) * 4 - 2), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


@pairs
def test_bfloat16_autocast_is_close_to_single_precision_and_trains(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    image = make_image()
    with torch.no_grad():
        expected = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    loss_of(logits).backward()
    assert (logits.float() - expected).norm() <= 0.05 * expected.norm()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pairs
def test_a_network_cast_to_bfloat16_gives_bfloat16_logits(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    image = make_image()
    with torch.no_grad():
        expected = network(image)
        logits = network.bfloat16()(image.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() <= 0.1 * expected.norm()


@pairs
def test_channels_last_gives_the_same_logits(family: str, decoder: str) -> None:
    network = make_network(family, decoder).eval()
    image = make_image()
    with torch.no_grad():
        expected = network(image)
        ours = network.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pairs
def test_saved_and_loaded_the_network_gives_the_same_logits(family: str, decoder: str) -> None:
    network = make_network(family, decoder)
    loss_of(network.train()(make_image())).backward()  # moves the running statistics
    torch.manual_seed(9)
    other = Segmenter(BACKBONES[family](False), DECODERS[decoder](network.backbone), NUM_CLASSES).eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    image = make_image()
    with torch.no_grad():
        expected = network.eval()(image)
        assert not torch.equal(other(image), expected)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(image), expected)


@pairs
def test_exported_program_takes_any_batch(family: str, decoder: str) -> None:
    network = make_network(family, decoder, frozen=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (make_image(),), dynamic_shapes={"image": {0: batch}})
    with torch.no_grad():
        for count in (1, 3):
            image = make_image(count)
            torch.testing.assert_close(program.module()(image), network(image), rtol=1e-4, atol=1e-4)


@pairs
def test_compiled_network_is_one_graph_and_trains(family: str, decoder: str) -> None:
    torch._dynamo.reset()
    network = make_network(family, decoder, frozen=True).train()
    twin = copy.deepcopy(network)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    image = make_image()
    losses = [loss_of(network(image)), loss_of(compiled(image))]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "decoder"), [("vit", "DPTDecoder"), ("adapter", "FAPMDecoder")])
def test_inductor_gives_the_same_logits(family: str, decoder: str) -> None:
    torch._dynamo.reset()
    network = make_network(family, decoder).eval()
    image = make_image()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network)(image), network(image), rtol=1e-3, atol=1e-4)
