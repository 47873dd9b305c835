"""Whole networks: any size, frozen backbones, training, half precision, tracing and saving."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.networks import DINOv3Adapter, Segmenter, create_backbone
from dinomed.networks.blocks import LogitsResize
from dinomed.networks.decoders import LinearDecoder, UNetDecoder, UNetFullDecoder

NUM_CLASSES = 3
KINDS = ["unet", "adapter_unet_full", "convnext_unet_full"]


def make_segmenter(kind: str, frozen: bool = False, drop_path: float = 0.0) -> Segmenter:
    torch.manual_seed(0)
    if kind == "convnext_unet_full":
        convnext = create_backbone("dinov3_convnext_tiny", frozen=frozen, depths=[1, 1, 1, 1], dims=[16, 24, 32, 40])
        decoder = UNetFullDecoder(convnext.channels, convnext.strides, decoder_channels=(32, 24, 16, 8))
        return Segmenter(convnext, decoder, NUM_CLASSES)
    vit = create_backbone("dinov3_vit_tiny16", frozen=frozen, embed_dim=64, depth=4, num_heads=2)
    if kind == "unet":
        return Segmenter(vit, UNetDecoder(vit.channels, vit.strides), NUM_CLASSES)
    adapter = DINOv3Adapter(vit, stem_width=16, drop_path=drop_path)
    decoder = UNetFullDecoder(adapter.channels, adapter.strides, decoder_channels=(32, 24, 16, 8))
    return Segmenter(adapter, decoder, NUM_CLASSES)


def make_batch(batch: int = 2, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose labels can be told from their own pixels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 1, 4, 4, generator=generator)
    picture = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    labels = (picture[:, 0] > 0.4).long() + (picture[:, 0] > 0.6).long()
    return picture.expand(-1, 3, -1, -1) * 4 - 2, labels


@pytest.fixture(params=KINDS)
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return make_segmenter(request.param).eval()


@pytest.mark.parametrize("size", [(64, 96), (65, 47), (17, 130), (1, 1)])
def test_logits_have_the_images_size(segmenter: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = segmenter(torch.randn(2, 3, *size))
    assert logits.shape == (2, NUM_CLASSES, *size)
    assert logits.isfinite().all()


def test_an_odd_image_gives_the_cropped_logits_of_the_padded_image() -> None:
    network = make_segmenter("unet").eval()
    padded = torch.zeros(1, 3, 64, 48)
    padded[..., :50, :37] = torch.randn(1, 3, 50, 37)
    with torch.no_grad():
        torch.testing.assert_close(network(padded[..., :50, :37])[..., :49, :36], network(padded)[..., :49, :36])


def test_logits_are_enlarged_by_their_scale_and_cropped_not_squeezed_to_the_image() -> None:
    logits = torch.randn(1, 2, 3, 4)
    expected = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=True)
    assert torch.equal(LogitsResize(scale=4, align_corners=True)(logits, 10, 13), expected[..., :10, :13])
    assert torch.equal(LogitsResize(scale=1)(logits, 2, 3), logits[..., :2, :3])


def test_each_image_is_segmented_alone(segmenter: Segmenter) -> None:
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(segmenter(images)[1:2], segmenter(images[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_reduce_the_loss(kind: str) -> None:
    network = make_segmenter(kind, drop_path=0.3).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    image, labels = make_batch()
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(network(image), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_trainable_parameter(kind: str) -> None:
    network = make_segmenter(kind).train()
    image, labels = make_batch(size=96)
    F.cross_entropy(network(image), labels).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_gradients_of_the_adapter_are_not_zero_after_the_first_step() -> None:
    network = make_segmenter("adapter_unet_full").train()
    image, labels = make_batch(size=96)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(network(image), labels).backward()
        optimiser.step()
    own = {name: p.grad for name, p in network.backbone.named_parameters() if not name.startswith("backbone.")}
    assert "extractors.5.attention.sampling_offsets.weight" in own
    assert [name for name, grad in own.items() if grad is None or not grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_backbone_stays_in_eval_mode_and_gets_no_gradient(kind: str) -> None:
    network = make_segmenter(kind, frozen=True).train()
    frozen = network.backbone.backbone if kind == "adapter_unet_full" else network.backbone
    assert network.decoder.training
    assert not any(module.training for module in frozen.modules())
    before = copy.deepcopy(frozen.state_dict())
    image, labels = make_batch()
    F.cross_entropy(network(image), labels).backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None for p in trainable)


def test_bfloat16_autocast_is_finite_and_close_to_single_precision(segmenter: Segmenter) -> None:
    image, labels = make_batch()
    with torch.no_grad():
        expected = segmenter(image)
    with torch.autocast("cpu", torch.bfloat16):
        logits = segmenter(image)
    F.cross_entropy(logits.float(), labels).backward()
    assert (logits.float() - expected).norm() <= 0.05 * expected.norm()
    assert all(p.grad.isfinite().all() for p in segmenter.parameters() if p.grad is not None)


def test_channels_last_gives_the_same_logits(segmenter: Segmenter) -> None:
    image, _ = make_batch()
    with torch.no_grad():
        expected = segmenter(image)
        ours = segmenter.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (65, 47)])
def test_exported_program_takes_any_batch(segmenter: Segmenter, size: tuple[int, int]) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(segmenter, (torch.randn(2, 3, *size),), dynamic_shapes={"image": {0: batch}})
    with torch.no_grad():
        for count in (1, 3):
            image = torch.randn(count, 3, *size)
            torch.testing.assert_close(program.module()(image), segmenter(image), rtol=1e-4, atol=1e-4)


def test_compiled_network_is_one_graph_and_trains(segmenter: Segmenter) -> None:
    torch._dynamo.reset()
    image, labels = make_batch()
    twin = copy.deepcopy(segmenter)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    losses = [F.cross_entropy(network(image), labels) for network in (segmenter, compiled)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(segmenter.named_parameters(), twin.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip_gives_the_same_logits(kind: str) -> None:
    network, other = make_segmenter(kind).eval(), make_segmenter(kind).eval()
    nn.init.normal_(network.head.weight)
    image, _ = make_batch()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        assert not torch.equal(network(image), other(image))
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(network(image), other(image))


def test_a_deep_copy_is_independent(segmenter: Segmenter) -> None:
    image, _ = make_batch()
    twin = copy.deepcopy(segmenter)
    with torch.no_grad():
        expected = segmenter(image)
        for parameter in segmenter.parameters():
            parameter.zero_()
        assert torch.equal(twin(image), expected)


def test_head_follows_the_decoder() -> None:
    assert make_segmenter("unet").head.kernel_size == (3, 3)
    assert make_segmenter("adapter_unet_full").head.kernel_size == (1, 1)


def test_no_class_at_all_is_refused() -> None:
    vit = create_backbone("dinov3_vit_tiny16", embed_dim=64, depth=4, num_heads=2)
    with pytest.raises(ValueError, match="num_classes=0"):
        Segmenter(vit, UNetDecoder(vit.channels, vit.strides), 0)


def test_a_decoder_made_for_other_maps_is_refused() -> None:
    vit = create_backbone("dinov3_vit_tiny16", embed_dim=64, depth=4, num_heads=2)
    for decoder in (UNetDecoder([32] * 4, vit.strides), LinearDecoder(vit.channels, [8] * 4)):
        with pytest.raises(ValueError, match=r"the decoder was made for (channels|strides) .* build it with"):
            Segmenter(vit, decoder, 2)
