"""What training and evaluation of a head on embedded CT series need beyond single expressions of a configuration."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.head_checkpoint import HeadAbout, group_marks, head_shape, preprocessing_of, save_head
from dinomed.data.embedded_series import EmbeddedSeries, EmbedSeriesd, collate_bags
from dinomed.data.familiarity import measure_familiarity
from dinomed.data.features import FeatureExtractor
from dinomed.data.series_checks import Series, content_mark, doubtful_rows
from dinomed.data.series_table import read_series_table
from dinomed.data.splits import Split, group_names, keep_table, split_of, write_split, write_text
from dinomed.errors import InputError, WeightsError
from dinomed.handlers.processes import bare, rank
from dinomed.metrics.calibration import apply_platt, fit_platt
from dinomed.metrics.classification import YOUDEN, auroc, macro_mean, youden_threshold
from dinomed.networks.bags import BagHead

logger = logging.getLogger(__name__)

SERIES_NO_HU = "values are hardly Hounsfield units"

Items = list[dict[str, Any]]


def open_split(
    table: str | Path,
    data_root: str | Path | None,
    labels: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    output_dir: str | Path,
    check: str = "voxels",
) -> Split:
    """Read the table of a training, split it where it names no parts, and write the split into the output folder.

    Args:
        table: CSV of series.
        data_root: What its paths are relative to; None: its own folder.
        labels: Of the bundle.
        fractions: Sizes of the parts.
        seed: Of the split.
        output_dir: Where split.csv, split_summary.json and problems.csv go.
        check: What of a scan is read, see `read_series_table`.

    Raises:
        InputError: If the table cannot be used.
        OutputError: If the files cannot be written.
    """
    found = read_series_table(table, labels, data_root, check)
    keep_table(found.path, output_dir)
    split = split_of(found, fractions, seed)
    for part in ("train", "validation"):
        split.series(part)
    if rank() == 0:
        summary = write_split(split, output_dir, rebase=data_root is None)
        for part, counts in summary["parts"].items():
            logger.info("%s: %d series of %d patients or studies", part, counts["series"], counts["groups"])
        for remark in summary["remarks"]:
            logger.warning("split: %s", remark)
        if doubtful := doubtful_rows(found.problems):
            logger.warning("%d series are used whose %s; see %s/problems.csv", len(doubtful), SERIES_NO_HU, output_dir)
        if found.problems:
            left = found.rows - len(found.series)
            logger.warning("%d of %d rows are left out; see %s/problems.csv", left, found.rows, output_dir)
    return split


def part_items(split: Split, part: str) -> Items:
    """List the series of a part as items of an `EmbeddedSeries`.

    Raises:
        InputError: If there is no such part, or it is empty.
    """
    return items_of(split.series(part), split.groups)


def items_of(series: Sequence[Series], groups: Mapping[int, str]) -> Items:
    """List series as items of an `EmbeddedSeries`, with their study, and their patient where any is known.

    Args:
        series: Of a table.
        groups: Patient or study of each by row; the study stands for a patient that is not known beside others.
    """
    known = any(each.patient_id for each in series)
    return [
        {
            "image": str(each.path),
            "label": [float(value) for value in each.labels],
            "case": each.series_uid,
            "study": each.study_uid,
            "groups": group_names(each, groups[each.row]),
            **({"patient": groups[each.row].removeprefix("patient ")} if known else {}),
        }
        for each in series
    ]


def items_sha256(items: Sequence[Mapping[str, Any]]) -> str:
    """Checksum of cases, studies and labels, by which a resumed run knows its data again; 16 hexadecimal digits."""
    text = json.dumps([[item["case"], item["study"], item["label"]] for item in items])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def positive_weights(labels: Tensor, names: Sequence[str]) -> Tensor:
    """Weight of a label's positives in the loss: negatives / max(positives, 1), (K,) float32.

    Args:
        labels: Of the training part, (S, K).
        names: Of the labels.

    Raises:
        InputError: If no label has both values.
    """
    positives = labels.sum(dim=0)
    negatives = len(labels) - positives
    if not bool(((positives > 0) & (negatives > 0)).any()):
        raise InputError(
            f"every label has one value only in the {len(labels)} series of the training part, so there is nothing to "
            "learn; give series with and without a finding"
        )
    for name, with_it, without in zip(names, positives.tolist(), negatives.tolist(), strict=True):
        if not with_it or not without:
            which = "without" if not with_it else "that all have"
            logger.warning("the training part has only series %s %s: nothing can be learnt of it", which, name)
    return (negatives / positives.clamp(min=1)).float()


def prepare_bags(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Tensor]]:
    """Hand a batch of `collate_bags` to MONAI's engines: bags, labels, and which vectors of a bag count."""
    label = batch.get("label")
    bags, valid = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "valid"))
    return bags, None if label is None else label.to(device, non_blocking=non_blocking), (), {"valid": valid}


@torch.inference_mode()
def bag_logits(head: nn.Module, series: EmbeddedSeries, batch_size: int, device: torch.device | str) -> Tensor:
    """Logits of all series, (S, K) float32 on the CPU; the head is left in evaluation mode."""
    head.eval()
    batches = DataLoader(series, batch_size=batch_size, collate_fn=collate_bags)
    found = [head(batch["image"].to(device), batch["valid"].to(device)).float().cpu() for batch in batches]
    return torch.cat(found)


def finish_training(
    network: nn.Module,
    output_dir: str | Path,
    training: EmbeddedSeries,
    validation: EmbeddedSeries,
    embed: EmbedSeriesd,
    labels: Sequence[str],
    batch_size: int,
    device: torch.device | str,
    seed: int,
) -> HeadAbout | None:
    """Calibrate the best head on the validation part, choose its thresholds, and write all of it into best.pt.

    Of several processes the first one does it. Done twice it gives the same file.

    Args:
        network: The head, perhaps in a distributed wrapper; it takes the best weights on.
        output_dir: Of the training; best.pt there is replaced, and best.json says the same in words.
        training: Series that were trained on.
        validation: Series that chose the weights.
        embed: What embedded them.
        labels: Of the logits.
        batch_size: Bags at a time.
        device: Where the head is.
        seed: Of the training.

    Returns:
        What the file says; None in the other processes.

    Raises:
        WeightsError: If the training has left no best weights.
    """
    if rank() != 0:
        return None
    head = bare(network)
    assert isinstance(head, BagHead)
    path = Path(output_dir) / "best.pt"
    if not path.is_file():
        raise WeightsError(f"{path}: no validation took place, so there are no best weights; lower val_interval")
    load_network(head, path, device)
    logits = bag_logits(head, validation, batch_size, device).double().numpy()
    wanted = validation.labels().numpy()
    calibration, thresholds, scores = {}, {}, {}
    for k, name in enumerate(labels):
        calibration[name] = pair = fit_platt(logits[:, k], wanted[:, k])
        probs = apply_platt(logits[:, k], *(pair or (1.0, 0.0)))
        thresholds[name] = youden_threshold(probs, wanted[:, k])
        scores[name] = auroc(logits[:, k], wanted[:, k])
        if pair is None or thresholds[name] is None:
            logger.warning("%s: the validation part does not allow to choose calibration or threshold", name)
    hidden, attention = head_shape(head)
    extractor = embed.extractor
    about = HeadAbout(
        labels=tuple(labels),
        pooling=head.pooling,
        features=extractor.settings.pool,
        in_features=head.in_features,
        hidden_features=hidden,
        attention_features=attention,
        preprocessing=preprocessing_of(extractor),
        backbone=extractor.backbone.name,
        backbone_sha256=extractor.backbone_sha256,
        calibration=calibration,
        thresholds=thresholds,
        validation={**scores, "macro": macro_mean(list(scores.values()))},
        seed=seed,
        seen=_seen(training.items, validation.items),
        threshold_rule=YOUDEN,
        familiarity=measure_familiarity([item["image"].numpy() for item in (*training.items, *validation.items)]),
    )
    save_head(path, head, about)
    told = {key: value for key, value in about.to_plain().items() if key not in ("seen", "familiarity")}
    write_text(path.with_suffix(".json"), json.dumps(told, indent=2, allow_nan=False) + "\n")
    logger.info("%s: macro AUROC %s on the validation part", path, about.validation["macro"])
    return about


def _seen(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Marks of scans, and of their patients and studies, by which an evaluation knows them again."""
    parts = {"train": training, "validation": validation}
    marks = {part: [content_mark(item.get("image_path", item["image"])) for item in parts[part]] for part in parts}
    names = {part: [name for item in parts[part] for name in item.get("groups", ())] for part in parts}
    return marks | {f"{part}_groups": group_marks(names[part], marks["train"]) for part in parts}


def named_weights(weights: str | Path | None) -> str | Path:
    """Refuse a frozen backbone without weights, whose embeddings say nothing.

    Raises:
        WeightsError: If none are named.
    """
    if weights is None:
        raise WeightsError(
            "backbone_weights is null, and a frozen backbone with random weights sees nothing; name a file, or timm to "
            "download them"
        )
    return weights


def positive_number(name: str, value: Any) -> float:
    """Check a setting that must be a positive number.

    Raises:
        InputError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; give a positive number, such as 1.0e-3 (YAML takes 1e-3 for text)")
    return float(value)


def description(extractor: FeatureExtractor) -> str:
    """What decides the embeddings as one text, by which a resumed run knows its preprocessing again."""
    return json.dumps(extractor.describe(), sort_keys=True)
