from __future__ import annotations

import numpy as np
import pytest
import torch
from head_maps import LABEL_SOURCES, head_numbers
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd

from dinomed.data.scan_parameters import draw_scan_parameters
from dinomed.data.synthesis_transforms import RandSynthesizeScand, SynthesizeScand

SHAPE = (40, 44, 36)


def label_map(affine: np.ndarray | None = None) -> MetaTensor:
    affine = np.eye(4) if affine is None else affine
    return MetaTensor(torch.from_numpy(head_numbers())[None], affine=torch.from_numpy(affine))


def test_random_transform_does_what_its_twin_does_with_the_drawn_parameters() -> None:
    random = RandSynthesizeScand(LABEL_SOURCES, shape=SHAPE).set_random_state(seed=4)
    drawn = random({"label": label_map(), "other": 1})
    assert random.parameters is not None
    repeated = SynthesizeScand(random.parameters, LABEL_SOURCES, SHAPE)({"label": label_map()})
    assert torch.equal(drawn["image"], repeated["image"])
    assert torch.equal(drawn["label"], repeated["label"])
    assert drawn["other"] == 1


def test_compose_seeds_the_random_transform() -> None:
    transforms = Compose([RandSynthesizeScand(LABEL_SOURCES, shape=SHAPE)])
    first = transforms.set_random_state(seed=1)({"label": label_map()})["image"]
    following = transforms({"label": label_map()})["image"]
    again = transforms.set_random_state(seed=1)({"label": label_map()})["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, following)


def test_scan_and_labels_share_one_grid_about_the_centre_of_the_label_map() -> None:
    affine = np.array([[2.0, 0, 0, -7], [0, 1.8, -0.5, 3], [0, 0.6, 1.5, 11], [0, 0, 0, 1]])
    out = RandSynthesizeScand(LABEL_SOURCES, shape=SHAPE).set_random_state(seed=0)({"label": label_map(affine)})
    image, label = out["image"], out["label"]
    assert image.shape == label.shape == (1, *SHAPE)
    assert image.dtype == torch.float32
    assert label.dtype == torch.uint8
    assert int(label.max()) <= 7
    assert torch.equal(image.affine, label.affine)
    torch.testing.assert_close(image.affine[:3, :3].norm(dim=0), torch.ones(3, dtype=torch.float64))
    centre = torch.tensor([*((n - 1) / 2 for n in SHAPE), 1.0], dtype=torch.float64)
    expected = torch.from_numpy(affine) @ torch.tensor([23.5, 23.5, 23.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(image.affine @ centre, expected)


def test_input_dictionary_stays_as_it_was() -> None:
    data = {"label": label_map()}
    RandSynthesizeScand(LABEL_SOURCES, shape=SHAPE)(data)
    assert list(data) == ["label"]
    assert torch.equal(data["label"].as_tensor()[0], torch.from_numpy(head_numbers()))


def test_label_map_with_other_axes_is_refused() -> None:
    parameters = draw_scan_parameters(1, torch.Generator().manual_seed(0))
    turned = Flipd("label", spatial_axis=0)({"label": label_map()})
    with pytest.raises(ValueError, match="axes of 'label' are LAS; put Orientationd"):
        SynthesizeScand(parameters, LABEL_SOURCES, SHAPE)(turned)


@pytest.mark.parametrize("labels", [torch.zeros(1, 4, 4, 4), MetaTensor(torch.zeros(4, 4, 4))])
def test_label_map_without_grid_or_channel_is_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be a MetaTensor \(1, X, Y, Z\)"):
        RandSynthesizeScand(LABEL_SOURCES, shape=SHAPE)({"label": labels})
