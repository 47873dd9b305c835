"""SegFormer: sizes, logits at the image's size, two learning rates, and weights without a network."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.errors import InputError, WeightsError
from dinomed.networks import SegFormer

transformers = pytest.importorskip("transformers", reason="SegFormer needs the package transformers")

SMALL: dict[str, Any] = {
    "size": "b0",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}


def make(num_classes: int = 5, seed: int = 0, **options: Any) -> SegFormer:
    torch.manual_seed(seed)
    network = SegFormer(num_classes, **{**SMALL, **options})
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # all zero otherwise, which would hide a bias that was not loaded
    return network


def small_config(num_labels: int = 5) -> Any:
    options = {key: value for key, value in SMALL.items() if key != "size"}
    return transformers.SegformerConfig(num_labels=num_labels, **options)


def logits_of(network: SegFormer, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(image)


@pytest.mark.parametrize(
    ("size", "million"), [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)]
)
def test_sizes_have_the_published_numbers_of_parameters(size: str, million: float) -> None:
    with torch.device("meta"):
        network = SegFormer(150, size)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == million


def test_the_largest_size_is_the_default() -> None:
    with torch.device("meta"):
        assert SegFormer(150).model.config.depths == [3, 6, 40, 3]


@pytest.mark.parametrize("size", [(64, 96), (65, 47), (17, 130), (1, 1)])
def test_logits_have_the_images_size(size: tuple[int, int]) -> None:
    logits = logits_of(make(), torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


def test_logits_are_those_of_transformers_enlarged() -> None:
    network, image = make().eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        coarse = network.model(image).logits
    expected = F.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    assert torch.equal(logits_of(network, image), expected)


def test_an_odd_image_gives_the_cropped_logits_of_the_padded_image() -> None:
    network = make()
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :50, :37] = torch.randn(1, 3, 50, 37)
    torch.testing.assert_close(
        logits_of(network, padded[..., :50, :37].contiguous()), logits_of(network, padded)[..., :50, :37]
    )


def test_two_groups_hold_every_trainable_parameter_once_at_their_rates() -> None:
    network = make()
    network.model.segformer.stages[0].requires_grad_(False)
    encoder, head = network.parameter_groups(learning_rate=1e-3)
    assert encoder["lr"] == pytest.approx(1e-4)
    assert head["lr"] == 1e-3
    grouped = [*encoder["params"], *head["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in head["params"]} == {id(p) for p in network.model.decode_head.parameters()}
    assert len(torch.optim.AdamW(network.parameter_groups(1e-3, encoder_factor=0.5)).param_groups) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(checkpointing: bool) -> None:
    network = make(drop_path_rate=0.0, gradient_checkpointing=checkpointing).train()
    calls: list[int] = []
    network.model.segformer.stages[1].blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    F.cross_entropy(network(torch.randn(2, 3, 65, 47)), torch.zeros(2, 65, 47, dtype=torch.long)).backward()
    assert len(calls) == (2 if checkpointing else 1), "a checkpointed block runs again in the backward pass"
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_frozen_encoder_stays_in_evaluation_mode_without_gradients() -> None:
    network = make(frozen=True).train()
    assert not network.model.segformer.training
    assert network.model.decode_head.training
    F.cross_entropy(network(torch.randn(2, 3, 65, 47)), torch.zeros(2, 65, 47, dtype=torch.long)).backward()
    assert all(parameter.grad is None for parameter in network.model.segformer.parameters())
    assert all(parameter.grad is not None for parameter in network.model.decode_head.parameters())


def test_a_new_network_is_in_training_mode_with_and_without_weights(tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "own.pth")
    assert make().model.training
    assert make(weights=tmp_path / "own.pth").model.training


@pytest.mark.parametrize("layout", ["folder", "safetensors", "bin", "own"])
def test_weights_from_a_file_or_folder_give_the_same_logits(layout: str, tmp_path: Path) -> None:
    network, image = make(), torch.randn(1, 3, 64, 64)
    path = tmp_path
    if layout == "own":
        path = tmp_path / "model.pt"
        torch.save(network.state_dict(), path)
    else:
        network.model.save_pretrained(tmp_path)
        if layout == "safetensors":
            path = tmp_path / "model.safetensors"
        if layout == "bin":  # how the published files of some sizes come
            torch.save(transformers.modeling_utils.load_state_dict(tmp_path / "model.safetensors"), tmp_path / "x")
            (tmp_path / "model.safetensors").unlink()
            (tmp_path / "x").rename(tmp_path / "pytorch_model.bin")
    loaded = SegFormer(5, **SMALL, weights=path)
    assert loaded.random_parameters == []
    assert torch.equal(logits_of(loaded, image), logits_of(network, image))


def test_another_number_of_classes_leaves_the_last_layer_alone_at_random(tmp_path: Path) -> None:
    network = make()
    network.model.save_pretrained(tmp_path)
    loaded = SegFormer(7, **SMALL, weights=tmp_path)
    assert loaded.random_parameters == ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    theirs = network.model.state_dict()
    for name, tensor in loaded.model.state_dict().items():
        if name not in loaded.random_parameters:
            assert torch.equal(tensor, theirs[name]), name


def test_an_encoder_alone_leaves_the_decode_head_at_random(tmp_path: Path) -> None:
    classifier = transformers.SegformerForImageClassification(small_config())
    classifier.save_pretrained(tmp_path)
    loaded = SegFormer(5, **SMALL, weights=tmp_path)
    assert set(loaded.random_parameters) == {
        f"decode_head.{name}" for name, _ in loaded.model.decode_head.named_parameters()
    }
    theirs = classifier.segformer.state_dict()
    for name, tensor in loaded.model.segformer.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    network = make()
    torch.save({key: value.half() for key, value in network.state_dict().items()}, tmp_path / "half.pth")
    loaded = SegFormer(5, **SMALL, weights=tmp_path / "half.pth")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_weights_of_another_size_or_with_holes_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = make()
    network.model.save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(WeightsError, match=r"does not fit SegFormer b0: 22 missing.*build the size"):
        SegFormer(5, **{**SMALL, "depths": [1, 1, 2, 1]}, weights=tmp_path)
    state = network.state_dict()
    state.pop("model.decode_head.batch_norm.weight")
    state["model.stray"] = torch.zeros(1)
    torch.save(state, tmp_path / "holes.pth")
    with pytest.raises(WeightsError, match=r"1 missing \(decode_head.batch_norm.weight\); 1 unexpected \(stray\)"):
        SegFormer(5, **SMALL, weights=tmp_path / "holes.pth")
    assert capfd.readouterr() == ("", ""), "the error says it all; transformers' own table stays away"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pth", "there is no file nowhere.pth"),
        ("nvidia/segformer-b0-of-nobody", "run `hf download nvidia/segformer-b0-of-nobody`"),
    ],
)
def test_weights_that_are_not_here_are_named_without_asking_a_network(weights: str, message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        SegFormer(5, **SMALL, weights=weights)


def test_a_repository_that_was_downloaded_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = make(), torch.randn(1, 3, 64, 64)
    network.model.save_pretrained(tmp_path)
    found = {("nvidia/segformer-b0", "model.safetensors"): str(tmp_path / "model.safetensors")}
    monkeypatch.setattr("dinomed.networks.segformer.try_to_load_from_cache", lambda *key: found.get(key))
    loaded = SegFormer(5, **SMALL, weights="nvidia/segformer-b0")
    assert torch.equal(logits_of(loaded, image), logits_of(network, image))


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no SegFormer 'b6'; take one of b0, b1, b2, b3, b4, b5"):
        SegFormer(5, "b6")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_transformers(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(InputError, match="transformers, which is not installed: pip install"):
        SegFormer(5, "b0")


def test_bfloat16_autocast_is_close_to_single_precision() -> None:
    network, image = make(), torch.randn(2, 3, 65, 47)
    expected = logits_of(network, image)
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(network, image)
    assert (logits.float() - expected).norm() <= 0.05 * expected.norm()


def test_channels_last_gives_the_same_logits() -> None:
    network, image = make(), torch.randn(2, 3, 64, 96)
    expected = logits_of(network, image)
    ours = logits_of(network.to(memory_format=torch.channels_last), image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_exported_program_takes_any_batch() -> None:
    network = make().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 65, 47),), dynamic_shapes={"image": {0: batch}})
    image = torch.randn(3, 3, 65, 47)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), network(image), rtol=1e-4, atol=1e-4)


def test_compiled_network_is_one_graph_after_the_first_run() -> None:
    network, image = make().eval(), torch.randn(2, 3, 64, 64)
    expected = logits_of(network, image)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits_of(compiled, image), expected)
