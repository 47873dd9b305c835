"""Running a classifier: float32 logits whatever the arithmetic, of one task or of several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinomed.inferers.classifier import ClassifierInferer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_float32_and_computed_in_the_chosen_precision(precision: str) -> None:
    seen = []
    network = nn.Linear(4, 3)
    network.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    image = torch.randn(2, 4)
    with torch.no_grad():
        logits = ClassifierInferer(precision)(image, network)
        tasks = ClassifierInferer(precision)(image, lambda inputs: {"a": network(inputs), "b": network(inputs)[:, :2]})
    assert seen == [getattr(torch, precision)] * 3
    assert logits.dtype == tasks["a"].dtype == tasks["b"].dtype == torch.float32
    torch.testing.assert_close(tasks["b"], logits[:, :2])


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from auto, float32, bfloat16, float16"):
        ClassifierInferer("half")
