"""What a classification bundle's configurations need: heads, and weights that know their classes.

A file of weights is `{"network": state dict, "about": about}`; `about` holds plain values that say what the weights
were trained for. Weights are never used with other classes, features or normalisation than they were trained with.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinomed.bundle.checkpoint import load_network
from dinomed.data.datasets.labelled_images import LabelledImages
from dinomed.errors import InputError, WeightsError
from dinomed.networks.backbones import TimmBackbone
from dinomed.networks.classifier import ClassificationHead, features_width
from dinomed.networks.weight_files import read_weights

FORMAT = 1
NAMES = "label_names"
LISTED = 6
LATER = ("image_size", "evaluation_resize")
"""Settings that files of earlier trainings do not hold; they are compared where they are named."""

logger = logging.getLogger(__name__)

LabelNames = Sequence[str] | Mapping[str, Sequence[str]]


def make_heads(
    backbone: TimmBackbone,
    label_names: LabelNames,
    features: str = "both",
    hidden_features: int = 0,
    dropout: float = 0.0,
) -> nn.Module | dict[str, nn.Module]:
    """Make the head of a classifier, or one for each task.

    Args:
        backbone: Whose features the heads take.
        label_names: Names of the classes, or those of each task.
        features: As for `Classifier`.
        hidden_features: Width inside; 0 makes a head one linear layer.
        dropout: Before the last layer of a head with hidden features.

    Raises:
        ValueError: If the features are unknown or a number makes no sense.
    """
    width = features_width(backbone, features)
    if isinstance(label_names, Mapping):
        return {
            task: ClassificationHead(width, len(names), hidden_features, dropout) for task, names in label_names.items()
        }
    return ClassificationHead(width, len(label_names), hidden_features, dropout)


def describe_classifier(
    label_names: LabelNames, given_classes: Mapping[str, Any], kind: str, **settings: Any
) -> dict[str, Any]:
    """Say what weights are trained for, in plain values for their file.

    Args:
        label_names: Names of the classes in order, of several tasks by task.
        given_classes: Shown names by the names that the data have, of several tasks by task.
        kind: "multiclass", "multilabel" or "multitask".
        settings: What else must be the same wherever the weights are used: features, backbone, normalisation.
    """
    about = {"format": FORMAT, "task": kind, NAMES: label_names, "given_classes": given_classes, **settings}
    return {key: _plain(value) for key, value in about.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def label_names_of(path: str | os.PathLike[str], fallback: LabelNames) -> Any:
    """Read the names of the classes from a file of weights.

    Args:
        path: The file.
        fallback: Names where there is no such file, for looking at a configuration; loading refuses the absent file.

    Raises:
        WeightsError: If the file does not say its classes.
    """
    return read_about(path)[NAMES] if Path(path).is_file() else fallback


def given_classes_of(path: str | os.PathLike[str], fallback: Any) -> Any:
    """Read from a file of weights how the data's names of the classes become shown names; as `label_names_of`."""
    return read_about(path)["given_classes"] if Path(path).is_file() else fallback


def setting_of(path: str | os.PathLike[str], key: str, fallback: Any) -> Any:
    """Read a setting of the training from a file of weights, such as "task" or "seed".

    Args:
        path: The file.
        key: Of `about`.
        fallback: Value where there is no such file, or it does not say.

    Raises:
        WeightsError: As `read_about`.
    """
    return read_about(path).get(key, fallback) if Path(path).is_file() else fallback


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a file of weights says of itself.

    Raises:
        WeightsError: If it says nothing, or what only another version of dinomed understands.
    """
    if not Path(path).is_file():
        read_weights(Path(path))  # says what is wrong
    state = os.stat(path)
    # Configurations ask for many settings of one large file.
    about = copy.deepcopy(_about_in(os.fspath(path), state.st_mtime_ns, state.st_size))
    if not isinstance(about, Mapping) or not about.get(NAMES) or "given_classes" not in about:
        raise WeightsError(
            f"{path} does not say which classes its weights have; take best.pt of a training of this bundle, which does"
        )
    if about.get("format") != FORMAT:
        raise WeightsError(
            f"{path} was written by another version of dinomed (format {about.get('format')}, this one reads "
            f"{FORMAT}); train again, or use that version"
        )
    return dict(about)


@lru_cache(maxsize=4)
def _about_in(path: str, changed_ns: int, size_bytes: int) -> Any:
    return read_weights(Path(path)).get("about")


def load_classifier(
    network: nn.Module,
    path: str | os.PathLike[str],
    device: str | torch.device | None,
    label_names: LabelNames,
    kind: str,
    **settings: Any,
) -> nn.Module:
    """Fill a classifier with the weights of a file, if they were trained for the same classes and settings.

    Args:
        network: The classifier, in any mode.
        path: The file.
        device: Where the network goes; None leaves it.
        label_names: Names of the classes in order, of several tasks by task.
        kind: "multiclass", "multilabel" or "multitask".
        settings: As for `describe_classifier`.

    Returns:
        The same network in eval mode.

    Raises:
        WeightsError: If the file is absent, damaged or unsafe, or belongs to another network, classes or settings.
    """
    if Path(path).is_file():
        about = read_about(path)
        for key, wanted in {"task": kind, NAMES: label_names, **settings}.items():
            if key in LATER and key not in about:
                continue
            if about.get(key) != _plain(wanted):
                raise WeightsError(_difference(path, key, about.get(key), _plain(wanted)))
    return load_network(network, path, device)


def _difference(path: str | os.PathLike[str], key: str, trained: Any, wanted: Any) -> str:
    hint = (
        "leave label_names as it is, so that the weights name their classes, or take other weights"
        if key == NAMES
        else f"set {key} to what it was in training, or take other weights"
    )
    return f"{path} was trained with the {key} {_short(trained)}, not {_short(wanted)}; {hint}"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > LISTED and not isinstance(value[0], (int, float)):
        return f"[{', '.join(map(str, value[:LISTED]))}, ... {len(value)} in all]"
    return str(value)


def describe_evaluation(
    data: LabelledImages, path: str | os.PathLike[str], seed: int, validation_share: float
) -> dict[str, Any]:
    """Say what the scores of a data set are worth, given what the weights were trained on.

    Args:
        data: What is evaluated.
        path: File of the weights.
        seed: Of the held-out part.
        validation_share: Of the held-out part.

    Returns:
        "pictures", what is scored, in words; and "warnings", a list of sentences, each also logged.

    Raises:
        InputError: If pictures were held out that the training did not hold out.
        WeightsError: As `read_about`.
    """
    about = read_about(path) if Path(path).is_file() else {}
    trained, now = about.get("data") or {}, data.division
    same = bool(trained) and trained.get("training_mark") == now.get("training_mark")
    drawn = data.split == "validation" and now.get("held_out", False)
    if drawn and trained and not same:
        was = f"seed {about.get('seed')} and validation_share {about.get('validation_share')}"
        raise InputError(
            f"{data.source} has no validation part, and what would be held out of it is not what the training of "
            f"{path} held out (with {was}, here {seed} and {validation_share}), so that pictures could be scored that "
            "were trained on; set part to all if these are new pictures, else seed, validation_share, dataset_dir and "
            "targets to those of the training"
        )
    words = f"{len(data)} of the part {data.split}"
    if drawn:
        whole = now["training_pictures"] + now["validation_pictures"]
        words = f"{len(data)} of {whole} held out for validation (seed {seed}, validation_share {validation_share})"
    warnings = [*_warnings_of_seen(data, trained, same, drawn), *_warnings_of_left_out(data)]
    logger.info("scored pictures: %s", words)
    for warning in warnings:
        logger.warning("%s", warning)
    return {"pictures": words, "warnings": warnings}


def _warnings_of_seen(data: LabelledImages, trained: Mapping[str, Any], same: bool, drawn: bool) -> list[str]:
    """Say whether pictures that are scored were trained on."""
    count = data.division.get("training_pictures", 0)
    if not trained:
        unsure = drawn or data.split in ("training", "all")
        return (
            ["The weights do not say which pictures they were trained on; some may be scored here."] if unsure else []
        )
    if data.split in ("training", "all"):
        if same:
            return [
                f"{min(count, len(data))} of {len(data)} pictures were trained on: their scores flatter the weights."
            ]
        return [
            "These are not exactly the pictures that the weights were trained on, but some may be among them, and "
            "their scores would flatter the weights."
        ]
    if count and not same:
        return [
            f"The training part of {data.source} is not what the weights were trained on, so that it is not known "
            f"whether pictures of its part {data.split} were."
        ]
    return []


def _warnings_of_left_out(data: LabelledImages) -> list[str]:
    """Say what is not in the scores."""
    if not data.problems:
        return []
    kinds = Counter(problem.kind for problem in data.problems)
    counted = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    first = data.problems[0]
    return [
        f"What {len(data.problems)} problems of the data affect was left out and is not in the scores ({counted}); the "
        f"first: {first.file} {first.reason}."
    ]
