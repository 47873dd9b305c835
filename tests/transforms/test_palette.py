from __future__ import annotations

import numpy as np

from dinomed.transforms.palette import colour_labels, voc_colours

PUBLISHED = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    7: (128, 128, 128),
    8: (64, 0, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}


def test_colours_are_those_of_pascal_voc() -> None:
    colours = voc_colours()
    assert {label: tuple(int(value) for value in colours[label]) for label in PUBLISHED} == PUBLISHED


def test_no_two_labels_share_a_colour() -> None:
    assert len(np.unique(voc_colours(4000), axis=0)) == 4000


def test_label_maps_are_painted_label_by_label() -> None:
    painted = colour_labels(np.array([[0, 1], [300, 2]], dtype=np.int32))
    assert painted.shape == (2, 2, 3)
    np.testing.assert_array_equal(painted[1, 0], voc_colours(301)[300])
    np.testing.assert_array_equal(painted[0, 1], [128, 0, 0])
