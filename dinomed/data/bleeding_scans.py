"""A data set of synthetic head CTs with a table of their series, to train and try classification without patients."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch

from dinomed.data.bleeding import KINDS, draw_bleedings, draw_mimics
from dinomed.data.bleeding_slices import draw_kinds, read_anatomy
from dinomed.data.synthetic_ct import draw_ct_parameters, kinds_shown, scan_slices
from dinomed.errors import InputError, OutputError
from dinomed.transforms.volume_folders import case_name

SIZE = 288
"""Rows and columns of a slice, as in training: the field of view is 190 to 258 mm."""


@dataclass(frozen=True, eq=False)
class BleedingScan:
    """One synthetic head CT.

    Attributes:
        array_hu: (X, Y, Z) int16, in HU.
        affine: (4, 4) voxel to RAS+ millimetres.
        shown: (Z, kinds) bool: which kinds of blood each slice shows.
    """

    array_hu: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    shown: npt.NDArray[np.bool_]

    @property
    def labels(self) -> dict[str, int]:
        """Whether any kind is shown, then each."""
        present = [int(self.shown[:, k].any()) for k in range(len(KINDS))]
        return {"any": max(present), **dict(zip(KINDS, present, strict=True))}


def draw_bleeding_scan(path: Path, seed: int, index: int = 0) -> BleedingScan:
    """Draw a head CT from a label map; the same for the same seed and index.

    Raises:
        VolumeError: If the label map cannot be used.
    """
    generator = np.random.default_rng([seed, index])
    anatomy = read_anatomy(path)
    drawn = draw_mimics(anatomy, draw_bleedings(anatomy, draw_kinds(generator), generator), generator)
    parameters = draw_ct_parameters(generator)
    solid_z = np.nonzero((anatomy.depth_mm > 8).any(axis=(0, 1)))[0]
    middle = (drawn.shape[2] - 1) / 2
    lowest, highest = solid_z[0] - middle + generator.uniform(0, 30), solid_z[-1] - middle + 12
    heights = np.arange(lowest, highest, parameters.slice_mm)
    slices, shown = scan_slices(torch.from_numpy(drawn), parameters, heights.tolist(), SIZE)
    affine = np.diag([parameters.in_plane_mm, parameters.in_plane_mm, parameters.slice_mm, 1.0])
    affine[:3, 3] = -affine[0, 0] * (SIZE - 1) / 2, -affine[0, 0] * (SIZE - 1) / 2, lowest
    array = slices.permute(1, 2, 0).round().to(torch.int16).numpy()
    return BleedingScan(array, affine, kinds_shown(shown, parameters.in_plane_mm).numpy())


def write_bleeding_scans(
    label_maps: Sequence[Path],
    folder: str | Path,
    scans_per_map: int,
    seed: int = 0,
    parts: Mapping[str, str] | None = None,
    progress: Callable[[], Any] | None = None,
) -> Path:
    """Draw scans of every label map and write them with their table.

    Args:
        label_maps: FreeSurfer label maps of 1 mm; each is one patient.
        folder: Gets `series.csv`, `slices.csv` (what every slice shows) and `scans/NAME.nii.gz`.
        scans_per_map: Of each label map.
        seed: Of everything drawn.
        parts: Part of a split by the file name of a label map ("train", "validation" or "test"), as a column `part`;
            what is not named trains. None leaves the column out.
        progress: Called after each scan.

    Returns:
        The table.

    Raises:
        InputError: If there is no label map, a name in `parts` is not among them, or the number is below 1.
        OutputError: If a file cannot be written.
    """
    if not label_maps or scans_per_map < 1:
        raise InputError(
            f"give one label map or more and one scan or more of each, not {len(label_maps)}, {scans_per_map}"
        )
    missing = set(parts or {}) - {path.name for path in label_maps}
    if missing:
        raise InputError(f"{', '.join(sorted(missing))} are not among the label maps; correct their names")
    root = Path(folder)
    rows: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    try:
        (root / "scans").mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(label_maps):
            for repeat in range(scans_per_map):
                scan = draw_bleeding_scan(path, seed, number * scans_per_map + repeat)
                name = f"{case_name(path)}_{repeat:03d}"
                _write_scan(scan, root / "scans" / f"{name}.nii.gz")
                row = {"rel_dir": "scans", "study_uid": name, "series_uid": f"{name}.1"}
                row |= {"nifti_path": f"scans/{name}.nii.gz", "patient_id": case_name(path)}
                row |= {f"label_{label}": str(value) for label, value in scan.labels.items()}
                rows.append(row if parts is None else {**row, "part": parts.get(path.name, "train")})
                for index, shown in enumerate(scan.shown):
                    seen = {"series_uid": row["series_uid"], "slice": index}
                    slices.append({**seen, **dict(zip(KINDS, shown.astype(int).tolist(), strict=True))})
                if progress is not None:
                    progress()
        _write_table(slices, root / "slices.csv")
        return _write_table(rows, root / "series.csv")
    except OSError as error:
        raise OutputError(f"{root} cannot be written ({error.strerror or error}); name another folder") from error


def _write_scan(scan: BleedingScan, path: Path) -> None:
    image = nibabel.Nifti1Image(scan.array_hu, scan.affine)
    image.set_sform(scan.affine, 1)
    image.set_qform(scan.affine, 1)
    image.header.set_xyzt_units("mm")
    temporary = path.with_name(f".{path.name.removesuffix('.nii.gz')}.tmp.nii.gz")
    nibabel.save(image, temporary)
    temporary.replace(path)


def _write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(stream.getvalue(), encoding="utf-8")
    temporary.replace(path)
    return path
