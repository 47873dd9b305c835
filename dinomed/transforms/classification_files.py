"""The files of a classified CT and what each is; `docs/classification.md` describes every key of the summary."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import numpy.typing as npt

from dinomed.errors import OutputError
from dinomed.transforms.classification_picture import (
    MOST_SLICES,
    decisive_probability,
    draw_classification,
    slice_heading,
)
from dinomed.transforms.heat_map_kinds import SIMILARITY
from dinomed.transforms.heat_map_picture import MapText, ShownSlice, draw_map, map_scale
from dinomed.transforms.heat_maps import (
    FloatArray,
    HeatMap,
    extent_mm,
    heat_volume,
    pixel_mm,
    slice_grid,
    upright_slices,
    upright_values,
    write_heat_volume,
)
from dinomed.transforms.provenance import scan_sha256, software_versions, to_json
from dinomed.transforms.report import NOTICE, to_text
from dinomed.transforms.similarity_map import SimilarityMap
from dinomed.transforms.volume_checks import shown
from dinomed.transforms.volume_reading import read_volume

if TYPE_CHECKING:
    from dinomed.transforms.classification_results import Classification, TopSlice

SCHEMA = "dinomed-classification-1"
STALE = r"heat_[\w.-]+\.(?:npy|png|nii\.gz)|similarity_map\.(?:npy|png)"
"""Names of the files that not every run writes."""

ORIENTATION = "rows run from front to back, columns from the patient's left to the right"


def described_files(classification: Classification) -> dict[str, str]:
    """Say what each file of a case is, in a sentence each; the summary comes last."""
    files = {
        "slice_probs.npy": "float32 (slices, labels): probabilities of single slices, not calibrated.",
        "slice_indices.npy": "int64 (slices,): where each slice lies in the file's own voxels along the slice axis.",
        "slice_embeddings.npy": "float32 (slices, channels): one embedding a slice.",
        "volume_embedding.npy": "float32 (channels,): the embedding of the whole scan.",
        "summary.png": "Picture: probabilities and thresholds, those of single slices, and the highest slices.",
    }
    for heat, stem in zip(classification.maps, heat_stems(classification.maps), strict=True):
        named = f"{heat.about.title}{'' if heat.label is None else f' of {heat.label}'}"
        files[f"{stem}.npy"] = f"{named}: raw values, float32 (slices with a map, h, w); {ORIENTATION}."
        files[f"{stem}.nii.gz"] = f"{named}: the same on the scan's own voxels; 0 in slices without a map."
        files[f"{stem}.png"] = f"{named}: picture, plain slices on the left, the map over them on the right."
    if classification.similarity is not None:
        files["similarity_map.npy"] = f"{SIMILARITY.title}: raw values, float32 (h, w); {ORIENTATION}."
        files["similarity_map.png"] = f"{SIMILARITY.title}: picture, the reference patch framed."
    return files | {"summary.json": "This summary."}


def heat_stems(maps: Sequence[HeatMap]) -> list[str]:
    """Name each map's files without ending: heat_KIND_LABEL, all different; odd characters become underscores."""
    stems: list[str] = []
    for heat in maps:
        label = "" if heat.label is None else "_" + re.sub(r"[^\w.-]+", "_", heat.label)[:80]
        stem, number = f"heat_{heat.kind}{label}", 2
        while stem in stems:
            stem, number = f"heat_{heat.kind}{label}-{number}", number + 1
        stems.append(stem)
    return stems


def fill_folder(classification: Classification, folder: Path, started_s: float) -> None:
    """Write all files of a case into an empty folder.

    Args:
        classification: What to write.
        folder: There already.
        started_s: When writing began, by `time.perf_counter`.

    Raises:
        OutputError: If a file cannot be written, or the scan is no longer what was classified.
        VolumeError: If the scan has to be read again and cannot be.
    """
    image = classification.image_hu if classification.image_hu is not None else read_volume(classification.path).array
    if image.shape != tuple(classification.grid.shape):
        raise OutputError(f"{shown(classification.path)} has changed since it was classified; classify it again")
    np.save(folder / "slice_probs.npy", classification.slice_probs.astype(np.float32))
    np.save(folder / "slice_indices.npy", classification.slice_indices.astype(np.int64))
    np.save(folder / "slice_embeddings.npy", classification.slice_embeddings.astype(np.float32))
    np.save(folder / "volume_embedding.npy", classification.volume_embedding.astype(np.float32))
    for heat, stem in zip(classification.maps, heat_stems(classification.maps), strict=True):
        np.save(folder / f"{stem}.npy", heat.values)
        write_heat_volume(heat_volume(heat, classification.grid), classification.grid, folder / f"{stem}.nii.gz")
        _draw_heat(classification, heat, image, folder / f"{stem}.png")
    if classification.similarity is not None:
        np.save(folder / "similarity_map.npy", classification.similarity.values.astype(np.float32))
        _draw_similarity(classification, image, folder / "similarity_map.png")
    draw_classification(classification, image, folder / "summary.png")
    summary = build_summary(classification, time.perf_counter() - started_s)
    (folder / "summary.json").write_text(to_text(summary), encoding="utf-8")


def build_summary(classification: Classification, write_s: float) -> dict[str, Any]:
    """Return the summary of a case, made of strict JSON values only."""
    grid, names = classification.grid, classification.label_names
    affine = np.asarray(grid.affine, dtype=np.float64)
    timings = dict(classification.timings_s) | {"write": write_s}
    try:
        checksum = scan_sha256(classification.path)
    except OSError:  # the scan may have been moved since it was read
        checksum = None
    top = {label: _top_rows(classification, classification.top_slices_of(label)) for label in names}
    flipped = slice_grid(grid).flips[2]
    summary = {
        "schema": SCHEMA,
        "case": shown(classification.case),
        "notice": NOTICE,
        "input": {"name": shown(classification.path.name), "format": grid.format, "sha256": checksum},
        "labels": list(names),
        "probabilities": dict(zip(names, classification.probabilities, strict=True)),
        "calibrated_probabilities": dict(zip(names, classification.calibrated, strict=True)),
        "threshold": dict(zip(names, classification.thresholds, strict=True)),
        "predicted": dict(zip(names, classification.predicted, strict=True)),
        "main_label": names[0],
        "top_slices": top[names[0]],
        "top_slices_by_label": top,
        "slices": {
            "used": len(classification.slice_indices),
            "in_scan": int(grid.shape[classification.slice_axis]),
            "axis": classification.slice_axis,
            "first_is_nearest_to": "head" if flipped else "feet",
            "probabilities_are": classification.slice_note,
        },
        "heat_maps": [
            _heat_entry(classification, heat, stem)
            for heat, stem in zip(classification.maps, heat_stems(classification.maps), strict=True)
        ],
        "similarity": _similarity_entry(classification),
        "model": classification.run.model(),
        "run": {"device": classification.run.device, "precision": classification.run.precision},
        "software": software_versions(),
        "preprocessing": list(classification.run.preprocessing),
        "inference": list(classification.run.inference),
        "grid": {
            "shape": list(grid.shape),
            "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0),
            "orientation": "".join(code or "?" for code in nibabel.aff2axcodes(affine)),
            "affine": affine,
        },
        "elapsed_seconds": sum(seconds for seconds in timings.values() if seconds is not None),
        "timings_s": timings,
        "peak_memory_bytes": classification.peak_memory_bytes,
        "warnings": list(classification.warnings),
        "files": described_files(classification),
    }
    clean: dict[str, Any] = to_json(summary)
    return clean


def _top_rows(classification: Classification, top: Sequence[TopSlice]) -> list[dict[str, Any]]:
    """Rank, place and probability of slices, and where in the patient the middle of each lies."""
    affine = np.asarray(classification.grid.affine, dtype=np.float64)
    middle = (np.array(classification.grid.shape) - 1) / 2
    rows = []
    for each in top:
        middle[classification.slice_axis] = each.index
        centre_mm = affine[:3, :3] @ middle + affine[:3, 3]
        rows.append(
            {"rank": each.rank, "index": each.index, "probability": each.probability, "centre_ras_mm": centre_mm}
        )
    return rows


def _heat_entry(classification: Classification, heat: HeatMap, stem: str) -> dict[str, Any]:
    return {
        "kind": heat.kind,
        "label": heat.label,
        "what_it_is": heat.what_it_is,
        "what_it_is_not": heat.what_it_is_not,
        "score_is": None if heat.label is None else classification.slice_note,
        "unit": heat.unit or heat.about.unit,
        "range": [heat.values.min(), heat.values.max()],
        "picture_scale": map_scale(heat.inside, heat.about),
        "cells": list(heat.values.shape[1:]),
        "cell_mm": extent_mm(heat.cell_px, heat.place.size, classification.grid),
        "patch_mm": extent_mm(heat.patch_px, heat.place.size, classification.grid),
        "cells_run": ORIENTATION,
        **_place_entry(heat),
        "slices": heat.slice_indices,
        "slices_without_a_map": "0 in the NIfTI file, whatever the scan shows there",
        "files": [f"{stem}.nii.gz", f"{stem}.npy", f"{stem}.png"],
    }


def _place_entry(made: HeatMap | SimilarityMap) -> dict[str, Any]:
    """Where the slice lies in the picture that the cells cover."""
    return {"image_px": list(made.image_size), "slice_box_px": asdict(made.place)}


def _similarity_entry(classification: Classification) -> dict[str, Any] | None:
    similarity = classification.similarity
    if similarity is None:
        return None
    return {
        "reference": {"row": similarity.row, "col": similarity.column, "slice": similarity.slice_index},
        "what_it_is": SIMILARITY.what_it_is,
        "what_it_is_not": SIMILARITY.what_it_is_not,
        "unit": SIMILARITY.unit,
        "range": [similarity.values.min(), similarity.values.max()],
        "cells": list(similarity.values.shape),
        "patch_mm": extent_mm(similarity.cell_px, similarity.place.size, classification.grid),
        "cells_run": ORIENTATION,
        **_place_entry(similarity),
        "files": ["similarity_map.npy", "similarity_map.png"],
    }


def _scan_words(classification: Classification, label: str) -> str:
    place = classification.label_names.index(label)
    calibrated = "" if classification.calibrated[place] is None else "calibrated "
    return f"whole scan: {label} {calibrated}probability {decisive_probability(classification, place):.2f}"


def _square(pixels: int, size: tuple[int, int], classification: Classification) -> str:
    height_mm, width_mm = extent_mm(pixels, size, classification.grid)
    return f"{height_mm:.1f} x {width_mm:.1f} mm"


def _draw_heat(classification: Classification, heat: HeatMap, image: npt.NDArray[Any], path: Path) -> None:
    label = heat.label or classification.label_names[0]
    chosen = heat.slice_indices[:MOST_SLICES]
    slices = [
        ShownSlice(
            hu,
            slice_heading(classification, int(index), label),
            upright_values(values, hu.shape, heat.place, heat.cell_px),
        )
        for index, hu, values in zip(
            chosen, upright_slices(image, classification.grid, chosen), heat.values, strict=False
        )
    ]
    resolution = f"one value {_square(heat.cell_px, heat.place.size, classification)}"
    if heat.patch_px != heat.cell_px:
        resolution += f", window {_square(heat.patch_px, heat.place.size, classification)}"
    text = MapText(
        case=shown(classification.case),
        title=f"{heat.about.title}: {heat.label or 'belongs to no label'}",
        about=f"{_scan_words(classification, label)}, {resolution}",
        unit=heat.unit or heat.about.unit,
        left_out=len(heat.values) - len(slices),
    )
    draw_map(path, slices, pixel_mm(classification.grid), map_scale(heat.inside, heat.about), heat.about, text)


def _draw_similarity(classification: Classification, image: npt.NDArray[Any], path: Path) -> None:
    similarity = classification.similarity
    assert similarity is not None
    hu: FloatArray = upright_slices(image, classification.grid, [similarity.slice_index])[0]
    place, cell = similarity.place, similarity.cell_px
    down, across = (n / px for n, px in zip(hu.shape, place.size, strict=True))
    each = ShownSlice(
        hu,
        slice_heading(classification, similarity.slice_index, classification.label_names[0]),
        upright_values(similarity.values, hu.shape, place, cell),
        (
            (similarity.row * cell - place.top) * down,
            (similarity.column * cell - place.left) * across,
            cell * down,
            cell * across,
        ),
    )
    text = MapText(
        case=shown(classification.case),
        title=f"{SIMILARITY.title}: row {similarity.row}, column {similarity.column} (framed)",
        about=f"one value {_square(similarity.cell_px, similarity.place.size, classification)}",
        unit=SIMILARITY.unit,
    )
    draw_map(path, [each], pixel_mm(classification.grid), map_scale(similarity.values, SIMILARITY), SIMILARITY, text)
