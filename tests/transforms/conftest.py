"""Small scans of every format, made on the spot."""

from __future__ import annotations

from pathlib import Path

import nibabel
import pytest
import SimpleITK
from scan_samples import AFFINE, itk_image, scan_values, write_series


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small scan of each format that can be read, by a name for it."""
    folder = tmp_path_factory.mktemp("samples")
    values = scan_values()
    nifti = nibabel.Nifti1Image(values, AFFINE)
    nifti2 = nibabel.Nifti2Image(values, AFFINE)
    big = nibabel.Nifti1Image(values, AFFINE, nibabel.Nifti1Header(endianness=">"))
    mgh = nibabel.MGHImage(values, AFFINE)
    for image, name in (
        (nifti, "a.nii"),
        (nifti, "a.nii.gz"),
        (nifti2, "two.nii.gz"),
        (big, "big.nii"),
        (mgh, "a.mgh"),
        (mgh, "a.mgz"),
        (nibabel.Nifti1Pair(values, AFFINE), "pair.hdr"),
    ):
        nibabel.save(image, folder / name)
    for name in ("a.mha", "a.nrrd", "a.mhd", "a.nhdr"):
        SimpleITK.WriteImage(itk_image(values), str(folder / name), False)  # .mhd and .nhdr share a.raw
        SimpleITK.WriteImage(itk_image(values), str(folder / f"packed_{name}"), True)
    write_series(folder / "dicom")
    found = {path.name: path for path in folder.iterdir() if path.suffix not in (".img", ".raw", ".zraw", ".gz")}
    return found | {name: folder / name for name in ("a.nii.gz", "two.nii.gz")}
