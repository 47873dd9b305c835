"""torch.export programs and AOTInductor packages against the networks they were made from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import make_adapter, make_full_segmenter
from torch import nn

from dinomed.errors import DinomedError, InputError, OutputError
from dinomed.export import export_aoti, export_program

LOAD = """
import sys, torch
import dinomed.ops
program = torch.export.load(sys.argv[1]).module()
image, expected = torch.load(sys.argv[2])
for one, other in zip(program(image), expected, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
print(dinomed.ops.kernel_status()["CPU"])
"""


def test_a_program_keeps_deformable_attention_whole_and_takes_any_batch_and_size(tmp_path: Path) -> None:
    adapter = make_adapter(extractors=2)
    exported = export_program(adapter, tmp_path / "a.pt2")
    assert exported.parity.max_relative_error < 1e-5
    program = torch.export.load(exported.path)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.dinomed.ms_deform_attn_fused.default) == 2
    assert torch.ops.aten.grid_sampler.default not in targets
    image = torch.randn(5, 3, 160, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(program.module()(image), adapter(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_program_runs_in_another_process_with_and_without_the_compiled_kernel(tmp_path: Path) -> None:
    adapter = make_adapter(extractors=1)
    exported = export_program(adapter, tmp_path / "a.pt2", size=(64, 64))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save((image, adapter(image)), tmp_path / "expected.pt")
    for kernel, said in (("none", "plain PyTorch"), ("", "")):
        command = [sys.executable, "-W", "ignore", "-c", LOAD, str(exported.path), str(tmp_path / "expected.pt")]
        environment = {**os.environ, "DINOMED_CPU_KERNEL": kernel}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


@pytest.mark.slow
def test_a_package_of_machine_code_gives_the_networks_logits_for_any_size(tmp_path: Path) -> None:
    network = make_full_segmenter()
    exported = export_aoti(network, tmp_path / "a.pt2")
    assert exported.parity.label_agreement == 1.0
    image = torch.randn(4, 3, 96, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch._inductor.aoti_load_package(str(exported.path))(image)
        torch.testing.assert_close(found, network(image), rtol=1e-4, atol=1e-5)


def test_a_wrong_size_and_a_wrong_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        export_program(make_adapter(1), tmp_path / "a.pt2", size=(64, 50))
    with pytest.raises(OutputError, match=r"must end in \.pt2"):
        export_program(nn.Conv2d(3, 2, 1), tmp_path / "a.onnx")


def test_a_network_that_cannot_be_captured_is_said_to_be_so(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if image.sum() > 0 else -image

    with pytest.raises(DinomedError, match=r"cannot be captured by torch\.export"):
        export_program(Branching(), tmp_path / "a.pt2")
