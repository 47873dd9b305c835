"""The file of a trained head: its weights, and all that must be the same where it is used.

A head knows nothing but vectors. Vectors of another backbone, or of slices that were prepared in another way, would
give it numbers that look like answers, so they are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.bundle.checkpoint import LFS_START, load_network
from dinomed.data.features import FeatureExtractor
from dinomed.errors import WeightsError
from dinomed.handlers.resume import save_atomically
from dinomed.networks.bags import BagHead
from dinomed.networks.weight_files import read_weights

FORMAT = 1
SHOWN_DIGITS = 12


@dataclass(frozen=True)
class HeadAbout:
    """What a head's file says of it.

    Attributes:
        labels: Of its logits, in order.
        pooling: How the slices of a scan become one answer.
        features: What a slice's embedding is: "cls", "patch" or "both".
        in_features: Length of an embedding.
        hidden_features: Width of the head; 0 for one linear layer.
        attention_features: Width of the attention; None where there is none.
        preprocessing: What decides the embeddings, see `FeatureExtractor.describe`.
        backbone: Its name.
        backbone_sha256: Checksum of its weights.
        calibration: Slope and offset by label: probability = sigmoid(slope * logit + offset); None where they could not
            be fitted, and the probability is sigmoid(logit).
        thresholds: Of these probabilities by label; None where none could be chosen.
        threshold_rule: How they were chosen, in words; empty in heads of earlier versions.
        validation: AUROC of the validation part by label, and their mean as "macro"; None where undefined.
        seed: Of the training.
        seen: Marks of the series that were trained on ("train") and of those that chose weights, calibration and
            thresholds ("validation"), see `dinomed.data.series_checks.content_mark`, and of their patients and studies
            ("train_groups", "validation_groups"), see `group_marks`; heads of earlier versions lack the latter.
        familiarity: Where the embeddings of these scans lie, see `dinomed.data.familiarity`; empty if not known.
    """

    labels: tuple[str, ...]
    pooling: str
    features: str
    in_features: int
    hidden_features: int
    attention_features: int | None
    preprocessing: dict[str, Any]
    backbone: str
    backbone_sha256: str
    calibration: dict[str, tuple[float, float] | None]
    thresholds: dict[str, float | None]
    validation: dict[str, float | None]
    seed: int
    seen: dict[str, list[str]] = field(default_factory=dict)
    familiarity: dict[str, Any] = field(default_factory=dict)
    threshold_rule: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Everything as numbers, texts, lists and dictionaries."""
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False))
        return plain

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (..., K) into calibrated probabilities (..., K) float32."""
        pairs = [self.calibration.get(label) or (1.0, 0.0) for label in self.labels]
        slope, offset = torch.tensor(pairs, dtype=torch.float32, device=logits.device).unbind(1)
        return torch.sigmoid(slope * logits.as_subclass(Tensor).float() + offset)


def preprocessing_of(extractor: FeatureExtractor) -> dict[str, Any]:
    """What decides embeddings, as plain values; precision is left out, which a head need not share."""
    described = {key: value for key, value in extractor.describe().items() if key != "precision"}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def group_marks(names: Iterable[str], scan_marks: Iterable[str]) -> list[str]:
    """Marks by which patients and studies are known again without their names: sorted, 32 hexadecimal digits each.

    The marks of the scans that were trained on are the salt: two heads mark one patient differently. Who has a list of
    names can still try them out.

    Args:
        names: As `dinomed.data.splits.group_names` gives them.
        scan_marks: Of the training part.
    """
    salt = hashlib.sha256("\n".join(sorted(set(scan_marks))).encode()).digest()[:16]
    return sorted({hashlib.blake2b(name.encode(), digest_size=16, salt=salt).hexdigest() for name in names})


def head_shape(head: BagHead) -> tuple[int, int | None]:
    """Hidden and attention features of a head."""
    hidden = head.classify[1].out_features if len(head.classify) > 1 else 0
    return int(hidden), None if head.attend is None else int(head.attend.value.out_features)  # type: ignore[arg-type]


def save_head(path: str | os.PathLike[str], head: nn.Module, about: HeadAbout) -> None:
    """Write a head's file in one step."""
    weights = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    save_atomically({"network": weights, "about": about.to_plain()}, Path(path))


def read_about(path: str | os.PathLike[str]) -> HeadAbout:
    """Read what a head's file says of it.

    Raises:
        WeightsError: If the file is absent or damaged, or says nothing.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(
            f"{file}: there is no such weights file; train the bundle, or name another file (--weights, or ckpt_path "
            "of the config)"
        )
    with file.open("rb") as stream:
        if stream.read(len(LFS_START)) == LFS_START:
            raise WeightsError(f"{file} is only a pointer to the weights (Git LFS); fetch the file with `git lfs pull`")
    about = read_weights(file).get("about")
    if not isinstance(about, Mapping):
        raise WeightsError(
            f"{file} does not say what the head was trained for; run its training to the end (the same command goes on "
            "where it stopped), or take the file of one that has ended"
        )
    if about.get("format") != FORMAT:
        raise WeightsError(
            f"{file} is of format {about.get('format')!r}, this version of dinomed reads format {FORMAT}; train it anew"
        )
    try:
        names = HeadAbout.__dataclass_fields__
        known: dict[str, Any] = {key: value for key, value in about.items() if key in names}
        known["calibration"] = {
            key: None if pair is None else (float(pair[0]), float(pair[1]))
            for key, pair in known["calibration"].items()
        }
        found = HeadAbout(**{**known, "labels": tuple(known["labels"])})
        _check_numbers(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise WeightsError(f"{file} is damaged: what it says of its training is incomplete; train it anew") from error
    return found


def _check_numbers(about: HeadAbout) -> None:
    """Refuse numbers that would turn into wrong answers.

    Raises:
        ValueError: If labels and numbers do not go together, or a number is none.
    """
    pairs = [number for pair in about.calibration.values() for number in pair or ()]
    thresholds = [float(value) for value in about.thresholds.values() if value is not None]
    named = set(about.calibration) == set(about.thresholds) == set(about.labels)
    if not named or not all(map(math.isfinite, pairs)) or not all(0 <= value <= 1 for value in thresholds):
        raise ValueError("labels, calibration and thresholds do not go together")
    if any(isinstance(value, str) for value in about.thresholds.values()) or not about.preprocessing:
        raise TypeError("a threshold is a text, or the preprocessing is missing")


def load_head(
    head: BagHead,
    path: str | os.PathLike[str],
    device: str | torch.device | None,
    labels: Sequence[str],
    extractor: FeatureExtractor,
) -> HeadAbout:
    """Fill a head from its file, strictly, and refuse one that was trained for something else.

    Args:
        head: Filled, moved and put into evaluation mode.
        path: File of a training's best head.
        device: Where the head goes; None leaves it.
        labels: Of the configuration.
        extractor: That makes the embeddings here.

    Returns:
        What the file says.

    Raises:
        WeightsError: If the file is absent or damaged, or labels, pooling, backbone or preprocessing differ.
    """
    about = read_about(path)
    if difference := _difference(about, head, labels, extractor):
        raise WeightsError(f"{path} does not belong here: {difference}")
    load_network(head, path, device)
    return about


def loaded(head: nn.Module, about: HeadAbout) -> nn.Module:
    """The head that `load_head` has filled; configurations name both, so that it is filled before it is used."""
    assert about is not None
    return head


def _difference(about: HeadAbout, head: BagHead, labels: Sequence[str], extractor: FeatureExtractor) -> str:
    """The first thing in which a head and its surroundings differ, empty if there is none."""
    if about.labels != tuple(labels):
        return (
            f"it was trained for the labels {', '.join(about.labels)}, and the configuration has {', '.join(labels)}; "
            "set labels to the former"
        )
    if about.pooling != head.pooling:
        return f"its pooling is {about.pooling}, and the configuration has {head.pooling}; set pooling to the former"
    if about.backbone != extractor.backbone.name:
        return (
            f"it was trained on the backbone {about.backbone}, and the configuration has {extractor.backbone.name}; "
            "set backbone_name and backbone_weights to what it was trained with"
        )
    here = preprocessing_of(extractor)
    # Heads from before this was said are used: square slices are the same to them, of others the results warn.
    said = {key for key in ("proportions",) if key not in about.preprocessing}
    for key in sorted({*here, *about.preprocessing} - {"backbone_sha256"} - said):
        then, now = about.preprocessing.get(key), here.get(key)
        if then != now:
            name = {"pool": "features"}.get(key, key)
            return f"its {name} was {then} in training, and is {now} here; set {name} to the former"
    if about.backbone_sha256 != extractor.backbone_sha256:
        return (
            f"its backbone had weights with the checksum {about.backbone_sha256[:SHOWN_DIGITS]}, and those here have "
            f"{extractor.backbone_sha256[:SHOWN_DIGITS]}; set backbone_weights to the file it was trained with"
        )
    for name, then, now in zip(
        ("in_features", "hidden_features", "attention_features"),
        (about.in_features, about.hidden_features, about.attention_features),
        (head.in_features, *head_shape(head)),
        strict=True,
    ):
        if then != now:
            return f"its {name} is {then}, and the configuration has {now}; set {name} to the former"
    return ""
