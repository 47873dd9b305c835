"""From a scan's embeddings and its head's logits to a whole answer: probabilities, slices, and maps on request."""

from __future__ import annotations

import resource
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from dinomed.bundle.head_checkpoint import HeadAbout
from dinomed.bundle.scan_maps import CELL_PX, ScanMaps
from dinomed.data.familiarity import distance_to_known
from dinomed.data.features import FeatureExtractor, pool_slices
from dinomed.errors import InputError
from dinomed.handlers.timings import StageTimes
from dinomed.networks.backbones import ViTBackbone
from dinomed.networks.bags import BagHead
from dinomed.transforms.classification_results import Classification
from dinomed.transforms.heat_map_kinds import HEAT_MAP_KINDS
from dinomed.transforms.heat_maps import canonical_positions, pixel_mm, slice_grid
from dinomed.transforms.hounsfield import TO_HU, hounsfield_doubt
from dinomed.transforms.report import RunInfo, describe_run
from dinomed.transforms.similarity_map import choose_reference
from dinomed.transforms.volume_folders import case_name
from dinomed.transforms.volume_reading import Grid, read_grid, read_volume

FEW_SLICES = 5
ANY = "any"
OF_EACH_SLICE = (
    "What the head says of each slice; the scan's logit is a smooth maximum (log-mean-exp) of these slices' logits. "
    "Not calibrated."
)
OF_POOLED_SLICES = (
    "The head was trained on vectors pooled over whole scans and is here applied to single slices: a ranking of the "
    "slices, no probability of bleeding in a slice. Not calibrated."
)

Array = npt.NDArray[np.float32]


class ScanClassifier:
    """Puts together what a head says of scans.

    Args:
        network: The head, filled.
        head: What its file says.
        extractor: That made the embeddings.
        maps: Kinds of heat maps to make: "rollout", "gradient", "occlusion".
        map_slices: For how many of the highest slices.
        map_label: Label that maps explain, and whose highest slices are shown; None takes the first.
        reference: Patch of the highest slice that all its patches are compared with, "center" or "ROW,COLUMN"; None
            for none.
        top_k: How many slices are listed.

    Raises:
        InputError: If a kind, label or number is unknown.
    """

    def __init__(
        self,
        network: BagHead,
        head: HeadAbout,
        extractor: FeatureExtractor,
        maps: Sequence[str] = (),
        map_slices: int = 3,
        map_label: str | None = None,
        reference: str | None = None,
        top_k: int = 5,
    ) -> None:
        self.network = network
        self.head = head
        self.extractor = extractor
        self.top_k = _from_one("top_k", top_k)
        self.request = self._checked(maps, map_slices, map_label, reference)

    def _checked(
        self, maps: Sequence[str], map_slices: int, map_label: str | None, reference: str | None
    ) -> tuple[tuple[str, ...], int, str, str | None]:
        """Refuse what cannot be made, before a scan is read."""
        kinds = tuple(dict.fromkeys(maps))
        for kind in kinds:
            if kind not in HEAT_MAP_KINDS:
                raise InputError(f"there are no {kind!r} maps; choose from {', '.join(HEAT_MAP_KINDS)}")
            if kind != "occlusion" and not isinstance(self.extractor.backbone, ViTBackbone):
                raise InputError(f"{kind} maps need a transformer, and {self.extractor.backbone.name} is none")
        label = self.head.labels[0] if map_label is None else map_label
        if label not in self.head.labels:
            raise InputError(f"there is no label {label!r}; choose from {', '.join(self.head.labels)}")
        side = self.extractor.settings.resize
        if reference is not None and side is not None:
            choose_reference(reference, -(-side // CELL_PX), -(-side // CELL_PX))
        return kinds, _from_one("map_slices", map_slices), label, reference

    def check(self, **request: Any) -> tuple[tuple[str, ...], int, str, str | None]:
        """Complete a request and refuse what is not possible with any scan.

        Raises:
            InputError: If a kind, label or number is unknown.
        """
        wanted = dict(zip(("maps", "map_slices", "map_label", "reference"), self.request, strict=True))
        return self._checked(**{**wanted, **request})

    def assemble(
        self,
        item: Mapping[Hashable, Any],
        logits: Tensor,
        run: RunInfo,
        timings_s: Mapping[str, float | None] | None = None,
        case: str | None = None,
        **request: Any,
    ) -> Classification:
        """Make the answer for one scan.

        Args:
            item: "image" (N, C), "slice_indices" (N,), "slice_axis" and "image_path", as `EmbedSeriesd` leaves them.
            logits: Of the scan, (K,).
            run: Model, device and settings.
            timings_s: Seconds of the stages before.
            case: Name of the results; None names them after the scan.
            request: `maps`, `map_slices`, `map_label` and `reference` in the place of the constructor's.

        Raises:
            InputError: If the scan cannot be read again, or the request is not possible.
        """
        kinds, count, label, reference = self.check(**request)
        path = Path(str(item["image_path"]))
        bag = torch.as_tensor(item["image"]).as_subclass(Tensor).cpu()
        device = next(self.network.parameters()).device
        plain_logits = torch.as_tensor(logits).as_subclass(Tensor).float().cpu()
        with torch.no_grad():
            slice_probs = self.network.instance_logits(bag[None].to(device))[0].sigmoid().cpu().numpy()
        calibrated = self.head.probabilities(plain_logits)
        fitted = [self.head.calibration.get(name) is not None for name in self.head.labels]
        answer: dict[str, Any] = {
            "case": case or case_name(path),
            "path": path,
            "grid": read_grid(path),
            "label_names": self.head.labels,
            "probabilities": plain_logits.sigmoid().numpy(),
            "calibrated": tuple(float(p) if fit else None for p, fit in zip(calibrated, fitted, strict=True)),
            "thresholds": tuple(self.head.thresholds.get(name) for name in self.head.labels),
            "slice_probs": slice_probs,
            "slice_indices": np.asarray(torch.as_tensor(item["slice_indices"]).cpu(), dtype=np.int64),
            "slice_axis": int(item["slice_axis"]),
            "slice_note": OF_EACH_SLICE if self.network.pooling == "smoothmax" else OF_POOLED_SLICES,
            "slice_embeddings": bag.numpy(),
            "volume_embedding": pool_slices(bag.numpy(), self.extractor.settings.pool),
            "run": run,
            "timings_s": dict(timings_s or {}),
            "top_k": self.top_k,
        }
        extra: dict[str, Any] = {}
        volume = read_volume(path).array  # embeddings may come from a cache, so that nobody has looked at it
        if kinds or reference is not None:
            order = np.argsort(-slice_probs[:, self.head.labels.index(label)], kind="stable")[:count]
            native = answer["slice_indices"][order]
            positions = canonical_positions(native, answer["grid"])
            view = slice_grid(answer["grid"]).canonical_view(volume)
            columns, rows, _ = view.shape
            box = self.extractor.slice_box((rows, columns), pixel_mm(answer["grid"]))
            images = self.extractor.seen_slices(view[:, :, positions], pixel_mm(answer["grid"]))
            maps = ScanMaps(self.network, self.head, self.extractor)
            extra["maps"] = tuple(maps.heat_map(kind, label, images, box, native) for kind in kinds)
            if reference is not None:
                extra["similarity"] = maps.similarity(reference, images[:1], box, int(native[0]))
        made = Classification(
            **answer,
            **extra,
            image_hu=volume,
            warnings=self._warnings(bag.numpy(), answer["grid"]),
            peak_memory_bytes=_peak_memory(),
        )
        doubt = hounsfield_doubt(volume)
        first = () if doubt is None else (f"{doubt}; {TO_HU}. The probabilities mean nothing otherwise",)
        return replace(made, warnings=(*first, *made.warnings, *contradictions(made)))

    def _warnings(self, bag: Array, grid: Grid) -> tuple[str, ...]:
        words = []
        columns, rows, _ = slice_grid(grid).shape
        box = self.extractor.slice_box((rows, columns), pixel_mm(grid))
        if "proportions" not in self.head.preprocessing and box.height != box.width:
            words.append(
                "its slices are not square and keep their proportions, and the head is of a version that stretched "
                "such slices; train it anew if many scans are like that"
            )
        known = self.head.familiarity
        distance = distance_to_known(known, bag) if known else 0.0
        if known and distance > known["limit"]:
            words.append(
                f"unlike every scan that the head was trained on (distance {distance:.1f}, theirs at most "
                f"{known['limit']:.1f}): another body part, kind of scan or scanner; its probabilities mean little"
            )
        if len(bag) < FEW_SLICES:
            words.append(f"only {len(bag)} slices were looked at; the head was trained on whole scans")
        missing = [name for name in self.head.labels if self.head.thresholds.get(name) is None]
        if missing:
            words.append(
                f"no threshold could be chosen in training for {', '.join(missing)}, so nothing is decided there"
            )
        return tuple(words)


def contradictions(answer: Classification) -> tuple[str, ...]:
    """Say where a kind of bleeding is decided for and bleeding at all is not; each label is decided by itself."""
    decided = dict(zip(answer.label_names, answer.predicted, strict=True))
    kinds = [name for name, yes in decided.items() if yes and name != ANY]
    if decided.get(ANY) is False and kinds:
        return (f"contradictory: {', '.join(kinds)} reaches its threshold and {ANY} does not; look at the slices",)
    return ()


class SaveClassificationd(MapTransform):
    """Write the results of a scan inside a MONAI bundle, exactly as `Predictor.classify(...).save` does.

    Args:
        keys: Logits of the scan, (K,).
        classifier: Puts the results together.
        output_dir: Folder of the results; made if absent.
        bundle_name: Name of the model in the report.
        bundle_version: Its version.
        weights_path: File of the head, named and identified by its checksum in the report.
        overwrite: Replace results of the same name; without it they are an error.
        stage_times: What measured the stages before.
    """

    def __init__(
        self,
        keys: KeysCollection,
        classifier: ScanClassifier,
        output_dir: str | Path,
        bundle_name: str,
        bundle_version: str,
        weights_path: str | Path,
        overwrite: bool = True,
        stage_times: StageTimes | None = None,
    ) -> None:
        super().__init__(keys)
        self.classifier = classifier
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self.stage_times = stage_times
        self.run = classifier_run(classifier, bundle_name, bundle_version, weights_path)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the results of each key and pass the data on unchanged."""
        item = dict(data)
        valid = torch.as_tensor(item["valid"]).as_subclass(Tensor).cpu()
        for key in ("image", "slice_indices"):
            item[key] = torch.as_tensor(item[key]).as_subclass(Tensor).cpu()[valid]
        timings_s = None if self.stage_times is None else self.stage_times.timings_s
        for key in self.key_iterator(item):
            answer = self.classifier.assemble(item, item[key], self.run, timings_s)
            answer.save(self.output_dir, self.overwrite)
        return dict(data)


def classifier_run(
    classifier: ScanClassifier, bundle: str, version: str, weights: str | Path, overlay: str | None = None
) -> RunInfo:
    """What reports say of the model and how it runs."""
    described = classifier.extractor.describe()
    return describe_run(
        *(bundle, version, weights),
        overlay=overlay,
        device=classifier.extractor.device,
        precision=described.pop("precision"),
        preprocessing=[{"name": "FeatureExtractor", **described}],
        inference=[classifier.network],
    )


def _from_one(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a whole number from 1 on, not {value!r}")
    return value


def _peak_memory() -> int | None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
