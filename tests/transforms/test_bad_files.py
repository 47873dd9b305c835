"""What bad input gets: one sentence that names the file, what is wrong and what to do; never anything else."""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_samples import AFFINE, itk_compressed, scan_values

from dinomed.errors import VolumeError
from dinomed.transforms import volume_checks
from dinomed.transforms.volumes import Volume, read_grid, read_volume

SAMPLE_NAMES = [
    "a.nii",
    "a.nii.gz",
    "two.nii.gz",
    "big.nii",
    "pair.hdr",
    "a.mgh",
    "a.mgz",
    "a.nrrd",
    "packed_a.nrrd",
    "a.nhdr",
    "a.mha",
    "packed_a.mha",
    "a.mhd",
    "packed_a.mhd",
    "dicom",
    "jpeg",
]


def refusal_of(path: Path | str, frame: int | None = None) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, frame)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "what to do follows what is wrong"
    assert os.path.basename(path) in message
    return message


def save_nifti(
    path: Path, values: np.ndarray, affine: Any = AFFINE, change: Callable[[Any], None] = lambda header: None
) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    change(image.header)
    nibabel.save(image, path)
    return path


def with_field(path: Path, position: int, value: np.ndarray) -> Path:
    """Overwrite bytes of a stored header, behind the back of every library."""
    raw = bytearray(path.read_bytes())
    raw[position : position + value.nbytes] = value.tobytes()
    path.write_bytes(raw)
    return path


# Known troubles


def test_absent_file_is_named(tmp_path: Path) -> None:
    assert "absent.nii.gz does not exist; check the path" in refusal_of(tmp_path / "absent.nii.gz")


def test_empty_path_is_no_folder() -> None:
    with pytest.raises(VolumeError, match="path is empty"):
        read_volume("")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.nii.gz", b"", "is empty"),
        ("text.nii", b"not an image at all\n" * 40, "no image that can be read"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is a PNG picture"),
        ("photo.nii", b"\xff\xd8\xff\xe0" + b"\0" * 100, "is a JPEG picture"),
        ("report.pdf", b"%PDF-1.7\n", "is a PDF document"),
        ("scans.zip", b"PK\x03\x04" + b"\0" * 100, "is a ZIP archive"),
        ("array.npy", b"\x93NUMPY\x01\0", "NumPy array"),
        ("one.mha", b"x", "no image that can be read"),
        ("zipped.nii.gz", gzip.compress(b"just text " * 100), "no image that can be read"),
    ],
)
def test_what_is_no_scan_is_called_by_its_kind(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    told = refusal_of(tmp_path / name)
    assert message in told
    assert "NIfTI, NRRD, MetaImage or MGH" in told or "copy" in told


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz", "packed_a.nrrd", "packed_a.mha", "a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("kept", [0.999, 0.95, 0.8])
def test_truncated_files_are_cut_short(samples: dict[str, Path], tmp_path: Path, name: str, kept: float) -> None:
    raw = samples[name].read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * kept)])
    message = refusal_of(tmp_path / name)
    assert "is cut short" in message
    assert "copy or download it again" in message


def test_damage_that_only_the_checksum_shows_is_found(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(save_nifti(tmp_path / "a.nii", scan_values()).read_bytes(), compresslevel=0))
    raw[-60] ^= 0xFF  # a stored byte: the stream can be inflated, but gives another voxel
    (tmp_path / "a.nii.gz").write_bytes(raw)
    assert "incorrect data check" in refusal_of(tmp_path / "a.nii.gz")


def test_two_dimensional_data_is_refused(tmp_path: Path) -> None:
    for shape in [(6, 7), (6, 7, 1), (1, 7, 5), (6, 7, 1, 4)]:
        path = save_nifti(tmp_path / "flat.nii", scan_values(shape))
        assert "two-dimensional" in refusal_of(path, frame=0)
        with pytest.raises(VolumeError, match="two-dimensional"):
            read_grid(path)


def test_four_dimensional_data_names_the_option(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "bold.nii.gz", scan_values((6, 7, 5, 8)))
    assert "holds 8 frames; choose one with --frame 0 to --frame 7" in refusal_of(path)
    for frame in (8, -1):
        assert f"has no frame {frame}: it holds 8 frames; choose one with --frame 0" in refusal_of(path, frame)
    single = save_nifti(tmp_path / "t1.nii.gz", scan_values())
    assert "only one frame; leave --frame out" in refusal_of(single, 1)


def test_five_dimensional_data_is_refused(tmp_path: Path) -> None:
    assert "has 5 dimensions (6 x 7 x 5 x 1 x 3)" in refusal_of(
        save_nifti(tmp_path / "warp.nii", scan_values((6, 7, 5, 1, 3)))
    )


def test_colours_are_refused(tmp_path: Path) -> None:
    values = np.zeros((6, 7, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "holds colours (RGB)" in refusal_of(save_nifti(tmp_path / "rgb.nii", values))
    nrrd = (
        "NRRD0004\ntype: uchar\ndimension: 4\nsizes: 3 6 7 5\nkinds: RGB-color domain domain domain\nencoding: raw\n\n"
    )
    (tmp_path / "rgb.nrrd").write_bytes(nrrd.encode() + bytes(630))
    assert "holds colours" in refusal_of(tmp_path / "rgb.nrrd")
    mha = "NDims = 3\nDimSize = 6 7 5\nElementNumberOfChannels = 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "rgb.mha").write_bytes(mha.encode() + bytes(630))
    assert "holds 3 channels" in refusal_of(tmp_path / "rgb.mha")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    assert "complex numbers; give the magnitude" in refusal_of(
        save_nifti(tmp_path / "c.nii", scan_values(dtype=np.complex64))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(tmp_path: Path, bad: float) -> None:
    values = scan_values(dtype=np.float32)
    values[2, 3, 1:4] = bad
    message = refusal_of(save_nifti(tmp_path / "holes.nii.gz", values))
    assert "holds 3 NaN or infinite voxels" in message
    assert "nan_to_num" in message


def test_values_beyond_float32_count_as_infinite(tmp_path: Path) -> None:
    values = scan_values(dtype=np.float64)
    values[0, 0, 0] = 1e300
    assert "holds 1 NaN or infinite voxels" in refusal_of(save_nifti(tmp_path / "huge.nii", values))


def test_constant_image_is_refused(tmp_path: Path) -> None:
    assert "every voxel is 7" in refusal_of(save_nifti(tmp_path / "flat.nii", np.full((6, 7, 5), 7, np.int16)))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([0, 0, 0, 1.0]), "no length"),
        (np.diag([1, 1, 0, 1.0]), "no length"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "almost in one plane"),
        (np.diag([np.nan, 1, 1, 1.0]), "NaN or infinite"),
        (np.diag([np.inf, 1, 1, 1.0]), "NaN or infinite"),
        (np.diag([0.001, 1, 1, 1.0]), "0.001 x 1 x 1 mm, outside 0.05 to 50 mm"),
        (np.diag([1, 1, 60, 1.0]), "outside 0.05 to 50 mm"),
        (np.diag([1e30, 1e30, 1e30, 1.0]), "outside 0.05 to 50 mm"),
    ],
)
def test_grids_that_no_scanner_makes_are_refused(tmp_path: Path, affine: np.ndarray, message: str) -> None:
    path = save_nifti(tmp_path / "scan.nii", scan_values())
    with_field(path, 252, np.array([0, 1], "<i2"))  # qform off, sform on
    with_field(path, 280, affine[:3].astype("<f4"))
    assert message in refusal_of(path)
    with pytest.raises(VolumeError, match=re.escape(message)):
        read_grid(path)


def test_axes_without_a_length_are_called_damage(tmp_path: Path) -> None:
    path = with_field(save_nifti(tmp_path / "scan.nii", scan_values()), 44, np.array([-7], "<i2"))
    assert "claims a size of 6 x -7 x 5; its header is damaged" in refusal_of(path)


def test_absurd_extent_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "long.nii", scan_values((100, 4, 4)), np.diag([40.0, 1, 1, 1]))
    assert "would be 4.0 m long" in refusal_of(path)


def test_wrong_units_are_suspected_where_the_spacing_is_absurd(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "metres.nii", scan_values(), change=lambda header: header.set_xyzt_units("meter"))
    assert "its header says that its lengths are in meters" in refusal_of(path)


def test_variants_that_are_not_read_say_so(tmp_path: Path, samples: dict[str, Path]) -> None:
    nrrd, mha = samples["a.nrrd"].read_bytes(), samples["a.mha"].read_bytes()
    for name, content, message in (
        ("text.nrrd", nrrd.replace(b"encoding: raw", b"encoding: text"), "is encoded as text"),
        ("block.nrrd", nrrd.replace(b"type: short", b"type: block"), "voxels of type block"),
        ("lacking.nrrd", nrrd.replace(b"sizes:", b"seizes:"), "lacks sizes"),
        ("whole.nrrd.gz", gzip.compress(nrrd), "compressed as a whole; unpack it"),
        ("skip.nrrd", nrrd.replace(b"encoding:", b"line skip: 2\nencoding:"), "line skip"),
        ("text.mha", mha.replace(b"BinaryData = True", b"BinaryData = False"), "voxels as text"),
        ("list.mha", mha.replace(b"LOCAL", b"LIST"), "in many files"),
        ("lacking.mha", mha.replace(b"DimSize", b"DumSize"), "lacks DimSize"),
        ("outside.mhd", mha.replace(b"LOCAL", b"../../etc/passwd"), "which is not beside it"),
        ("absolute.mhd", mha.replace(b"LOCAL", b"/etc/passwd"), "which is not beside it"),
    ):
        (tmp_path / name).write_bytes(content)
        assert message in refusal_of(tmp_path / name), name


def test_half_of_a_pair_is_refused(tmp_path: Path, samples: dict[str, Path]) -> None:
    for suffix in (".hdr", ".img"):
        path = tmp_path / f"alone{suffix}"
        path.write_bytes(samples["pair.hdr"].with_suffix(suffix).read_bytes())
        assert "is half of a pair" in refusal_of(path)
        path.unlink()


def test_header_that_claims_too_much_costs_no_memory(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "liar.nii", scan_values(), np.diag([0.08, 0.08, 0.08, 1]))
    with_field(path, 42, np.array([30000, 30000, 30000], "<i2"))
    packed = tmp_path / "liar.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    try:
        for liar in (path, packed):
            assert "is cut short: its header claims 54000000000352 bytes" in refusal_of(liar)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_volume_larger_than_the_machine_is_refused(
    tmp_path: Path, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_checks, "physical_memory_bytes", lambda: 800)
    for name in ("a.nii", "dicom"):
        assert "claims 6 x 7 x 5 voxels" in refusal_of(samples[name])


def test_lack_of_memory_is_one_sentence(samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", exhausted)
    assert "needs more memory than there is" in refusal_of(samples["a.nii"])


def test_missing_rights_are_one_sentence(samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    for name in ("a.nii", "a.nrrd", "a.mha", "a.mgz"):
        assert "permission denied" in refusal_of(samples[name]).lower()
    monkeypatch.setattr(Path, "stat", forbidden)
    assert "permission denied" in refusal_of(samples["a.nii"]).lower()


def test_special_files_are_refused_without_waiting_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    assert "neither a file nor a folder" in refusal_of(tmp_path / "pipe.nii")
    assert "neither a file nor a folder" in refusal_of("/dev/null")


def test_strange_names_can_be_printed(tmp_path: Path) -> None:
    for name in ("größe mit leerzeichen.nii", "a" * 240 + ".nii"):
        assert "does not exist" in refusal_of(tmp_path / name)
    for name in (os.fsdecode(b"bad\xff.nii"), "two\nlines.nii", "nul\0.nii", "a" * 300):
        with pytest.raises(VolumeError) as caught:
            read_volume(tmp_path / name)
        str(caught.value).encode("utf-8")
        assert str(caught.value).isprintable()


# Mutated files


def flip(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    for _ in range(rng.integers(1, 6)):
        raw[rng.integers(min(end, len(raw)))] = rng.integers(256)


def overwrite_field(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    """Put an extreme number where a header may keep one."""
    kind = rng.choice(["<i2", ">i2", "<i4", ">i4", "<f4", ">f4", "<i8", "<f8"])
    extremes = [0, 1, -1, np.iinfo("i2").max, np.iinfo("i2").min]
    if kind[1] == "f":
        extremes += [np.nan, np.inf, -np.inf, 1e30, 1e-30]
    elif kind[2] != "2":
        extremes += [np.iinfo("i4").max, np.iinfo("i4").min]
    value = np.array([extremes[rng.integers(len(extremes))]], kind).tobytes()
    start = int(rng.integers(max(1, min(end, len(raw)) // 2))) * 2
    raw[start : start + len(value)] = value


NASTY_WORDS = [b"", b"-1", b"0", b"nan", b"inf", b"1e308", b"9" * 30, b"none", b"(1,2)", b"\xff\xfe", b"17", b"x" * 300]


NASTY_WORDS = [b"", b"-1", b"0", b"nan", b"inf", b"1e308", b"9" * 30, b"none", b"(1,2)", b"\xff\xfe", b"17", b"x" * 300]


def overwrite_word(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    """Put a nasty word in the place of a word of a text header (or of bytes that look like one)."""
    words = list(re.finditer(rb"[\w.+-]+", bytes(raw[:end])))
    if words:
        word = words[rng.integers(len(words))]
        raw[word.start() : word.end()] = NASTY_WORDS[rng.integers(len(NASTY_WORDS))]


def cut(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    del raw[rng.integers(len(raw)) :]


def remove(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    start = rng.integers(min(end, len(raw)))
    del raw[start : start + rng.integers(1, 40)]


def insert(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    start = rng.integers(min(end, len(raw)))
    raw[start:start] = rng.bytes(rng.integers(1, 40))


def empty(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    raw.clear()


def swap_gzip(raw: bytearray, rng: np.random.Generator, end: int) -> None:
    raw[:] = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else gzip.compress(raw)


MUTATIONS = [flip, overwrite_field, overwrite_word] * 2 + [cut, remove, insert, swap_gzip, empty]


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file: mostly its header, and that of a compressed file mostly inside the compression."""
    inside = raw[:2] == b"\x1f\x8b" and rng.random() < 0.7
    data = bytearray(gzip.decompress(raw) if inside else raw)
    mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
    mutation(data, rng, end=[90, 400, 1200, len(data)][rng.integers(4)])
    return gzip.compress(bytes(data)) if inside else bytes(data)


def parts_of(path: Path) -> list[Path]:
    """The files that make up a sample."""
    if path.is_dir():
        return sorted(path.iterdir())
    suffixes = {
        "packed_a.nhdr": ".raw.gz",
        "packed_a.mhd": ".zraw",
        "a.nhdr": ".raw",
        "a.mhd": ".raw",
        "pair.hdr": ".img",
    }
    return [path, path.with_suffix(suffixes[path.name])] if path.name in suffixes else [path]


def check_outcome(path: Path) -> bool:
    """Read a damaged scan; whether it was refused. Anything but a refusal or a sound volume fails the test."""
    refused = []
    for reader in (read_grid, read_volume):
        try:
            result = reader(path)
        except VolumeError as error:
            message = str(error)
            assert message.isprintable(), message
            assert ";" in message, message
            assert len(message) < 700, message
            refused.append(True)
        else:
            refused.append(False)
            assert np.isfinite(result.affine).all()
            assert abs(np.linalg.det(result.affine[:3, :3])) > 0
    if not refused[-1]:
        assert isinstance(result, Volume)
        assert result.array.dtype == np.float32
        assert result.array.ndim == 3
        assert min(result.array.shape) >= 2
        assert np.isfinite(result.array).all()
        assert result.array.min() < result.array.max()
    return refused[-1]


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_nothing_but_a_refusal_comes_out_of_a_damaged_file(
    samples: dict[str, Path], tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(SAMPLE_NAMES.index(name))
    source = itk_compressed(tmp_path / "jpeg", "JPEG") if name == "jpeg" else samples[name]
    folder = tmp_path / "damaged"
    folder.mkdir()
    target = folder if source.is_dir() else folder / source.name
    parts = parts_of(source)
    for part in parts:
        shutil.copy(part, folder / part.name)
    assert not check_outcome(target)
    outcomes = []
    started = time.monotonic()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(60):
            victim = parts[rng.integers(len(parts))]
            sound = victim.read_bytes()
            (folder / victim.name).write_bytes(mutate(sound, rng))
            outcomes.append(check_outcome(target))
            (folder / victim.name).write_bytes(sound)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr().err == ""
    assert sum(outcomes) >= 12, "too few mutations hit anything: the fuzz has lost its teeth"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    assert time.monotonic() - started < 60


HEADS = [b"", b"NRRD0004\n", b"NDims = 3\n", b"\x1f\x8b\x08\0", b"\0" * 128 + b"DICM", b"\0\0\0\1", b"\\\1\0\0"]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(head=st.sampled_from(HEADS), body=st.binary(max_size=600))
def test_arbitrary_bytes_are_refused(tmp_path: Path, head: bytes, body: bytes) -> None:
    path = tmp_path / "anything.nii.gz"
    path.write_bytes(head + body)
    assert check_outcome(path)
