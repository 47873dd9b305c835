"""Parts of small scans, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

AFFINE = np.array([[-0.9, 0.1, 0.2, 30.0], [0.1, 1.1, -0.3, -20.0], [0.1, 0.2, 2.0, 10.0], [0, 0, 0, 1.0]])
IS_PYDICOM_3 = int(pydicom.__version__.split(".")[0]) >= 3


def scan_values(shape: tuple[int, ...] = (6, 7, 5), dtype: Any = np.int16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


def itk_image(values: np.ndarray) -> SimpleITK.Image:
    """Oblique image whose array (X, Y, Z) is `values`."""
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    cosine, sine = np.cos(0.3), np.sin(0.3)
    image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))
    image.SetSpacing((0.8, 1.2, 2.5))
    image.SetOrigin((12.5, -30.25, 7.0))
    return image


def save_dicom(dataset: Dataset, path: Path) -> None:
    options = {"enforce_file_format": True} if IS_PYDICOM_3 else {"write_like_original": False}
    pydicom.dcmwrite(path, dataset, **options)


def dicom_slice(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """CT slice (rows, columns) with whatever attributes are wanted; None takes one away."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = attributes.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    if not IS_PYDICOM_3:
        dataset.is_little_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian
        dataset.is_implicit_VR = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    uid = attributes.pop("SOPInstanceUID", "1.2.3.4")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    values = {
        "PatientName": "Doe^Jane",
        "PatientID": "secret-17",
        "SeriesDescription": "head of Jane",
        "Modality": "CT",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "SeriesNumber": 4,
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": [1.5, 0.75],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-10, 20, 5],
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "PixelData": pixels.tobytes(),
    } | attributes
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def write_series(
    folder: Path,
    values: np.ndarray | None = None,
    step_mm: tuple[float, float, float] = (0, 0, 3.0),
    order: Callable[[int], int] = lambda index: index,
    change: Callable[[int], dict[str, Any]] = lambda index: {},
    prefix: str = "slice",
    **attributes: Any,
) -> Path:
    """Write (X, Y, Z) stored values as one file per slice; `order` numbers the files, `change` differs by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    values = scan_values() if values is None else values
    for index in range(values.shape[2]):
        position = (np.array([-10.0, 20.0, 5.0]) + index * np.array(step_mm)).tolist()
        own = {"SOPInstanceUID": f"1.2.3.{index + 1}", "ImagePositionPatient": position} | attributes | change(index)
        save_dicom(dicom_slice(values[:, :, index].T, **own), folder / f"{prefix}{order(index):03d}.dcm")
    return folder


def itk_compressed(folder: Path, compressor: str, **attributes: str) -> Path:
    """Series compressed by the GDCM inside SimpleITK, with slope 1 and intercept -1000."""
    folder.mkdir()
    for index in range(5):
        image = SimpleITK.GetImageFromArray(scan_values((20, 16, 5), np.uint16)[:, :, index].T[None])
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0060": "CT",
            "0020|000e": "1.2.3.4",
            "0020|0032": f"0\\0\\{3 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1000",
            "0028|1053": "1",
        }
        for tag, value in (tags | attributes).items():
            image.SetMetaData(tag, value)
        image.SetOrigin((0, 0, 3 * index))
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)
    return folder
