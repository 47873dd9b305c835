"""`dinomed train` with settings that cannot be used: each is one sentence about the value that was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from photo_bundles import BUNDLES, TINY_TRAINING
from photo_sets import ADE_NAMES, make_ade_scenes

from dinomed.cli.main import main

WHOLE = "give a whole number"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ade_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("accumulation_steps=0", f"accumulation_steps is 0; {WHOLE} from 1 on"),
        ("accumulation_steps=-1", f"accumulation_steps is -1; {WHOLE} from 1 on"),
        ("max_epochs=x", f"max_epochs is 'x'; {WHOLE} from 1 on"),
        ("warmup_steps=x", f"warmup_steps is 'x'; {WHOLE} of optimiser steps"),
        ("pictures_per_batch=0", "samples_per_epoch is 0; give whole numbers from 1 on (in the bundles it is"),
        ("steps_per_epoch=0", "samples_per_epoch is 0; give whole numbers from 1 on (in the bundles it is"),
        ("pictures_per_batch=two", "samples_per_epoch is 'twotwotwo'; give whole numbers"),
        ("crop_size=[32]", "cannot cut pictures to the size [32] (crop_size in the bundles); give height and width"),
        ("crop_size=[0, 48]", "cannot cut pictures to the size [0, 48] (crop_size"),
        ("image_mean=[0.5]", "NormalizeIntensityd cannot be applied (img has 3 channels, but subtrahend has 1 comp"),
        ("image_mean=abc", "NormalizeIntensityd cannot be applied (unsupported operand"),
        ("learning_rate=abc", "learning_rate is 'abc'; give a number from 0 on, such as 1.0e-4"),
        ("learning_rate=-1", "learning_rate is -1; give a number from 0 on"),
        ("backbone_learning_rate=-1", "backbone_learning_rate is -1; give a number from 0 on"),
        ("device=cuda:99", "device is 'cuda:99', which cannot be used here ("),
        ("deterministic=maybe", "deterministic is 'maybe'; give true or false"),
        ("seed=abc", f"seed is 'abc'; {WHOLE}"),
        ("sampler=balanced", "'balanced' is no sampler or data set that can be told which epoch begins; write '@bal"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_sentence(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    given = {**TINY_TRAINING, "label_names": ADE_NAMES, "dataset_dir": scenes, "output_dir": tmp_path, "device": "cpu"}
    settings = [*(f"{key}={value}" for key, value in given.items()), setting]
    arguments = [word for each in settings for word in ("--set", each)]
    assert main(["train", str(BUNDLES / "ade20k_segmentation"), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dinomed: ")
    assert words in last
    assert "report" not in last
