"""What building the package gives: a wheel with the CPU library for every Python, and sources that build it again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LIBRARY = "dinomed/ops/_ms_deform_attn_cpu.abi3.so"
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
# Run where only the wheel can be imported: the operator against plain PyTorch in float64.
USE = """
import torch
from dinomed.ops import kernel_status, ms_deform_attn
from dinomed.ops.ms_deform_attn import _reference
value, places, weights = torch.randn(2, 20, 3, 12), torch.rand(2, 7, 3, 1, 4, 2), torch.rand(2, 7, 3, 1, 4)
found = ms_deform_attn(value, [(5, 4)], places, weights)
exact = _reference(value.double(), [5], [4], places.double(), weights.double())
torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
print(kernel_status()["CPU"])
"""


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DINOMED_BUILD", "PYTHONPATH")}
    return subprocess.run(
        command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=600
    )


def build(source: Path, made: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(made), str(source)]
    return run(command, made.parent, **environment)


@pytest.fixture(scope="module")
def copy_source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Make a copy of what is built, without anything that was built before."""
    pytest.importorskip("build")

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("source")
        without = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
        for name in ("csrc", "dinomed"):
            shutil.copytree(repository / name, folder / name, ignore=without)
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(repository / name, folder / name)
        return folder

    return copy


@pytest.fixture(scope="module")
def built(copy_source: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources' archive and with the wheel that was built from that archive."""
    made = tmp_path_factory.mktemp("built") / "dist"
    done = build(copy_source(), made, DINOMED_BUILD="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def libraries(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dylib"))]


@needs_compiler
def test_the_wheel_is_for_this_platform_and_every_python_from_3_10_on(built: Path) -> None:
    wheel = only(built, "*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-cp310-abi3-{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        (facts,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        lines = archive.read(facts).decode().splitlines()
    assert "Root-Is-Purelib: false" in lines
    assert f"Tag: cp310-abi3-{platform}" in lines


@needs_compiler
def test_the_wheel_holds_the_cpu_library_alone_and_it_links_neither_python_nor_cuda(
    built: Path, tmp_path: Path
) -> None:
    wheel = only(built, "*.whl")
    assert libraries(wheel) == [LIBRARY]
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith(("csrc", "tests", "build"))]
        library = Path(archive.extract(LIBRARY, tmp_path))
    content = library.read_bytes()
    assert b"libtorch_cpu.so" in content
    for name in (b"libpython", b"PyObject", b"libtorch_cuda", b"libcudart", b"libc10.so"):
        assert name not in content
    if shutil.which("nm"):  # of PyTorch only plain C functions, which is what stays the same from version to version
        needed = run(["nm", "-D", "--undefined-only", str(library)], tmp_path).stdout.split()
        assert "torch_call_dispatcher" in needed
        assert not [name for name in needed if name.startswith("_Z") and ("2at" in name or "3c10" in name)]


@needs_compiler
def test_the_installed_wheel_runs_compiled_kernels_where_no_compiler_is(built: Path, tmp_path: Path) -> None:
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "installed")]
    done = run([sys.executable, *install, str(only(built, "*.whl"))], tmp_path)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n{USE}\nimport dinomed\n"
    program += "print(dinomed.__file__)"
    done = run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", program], tmp_path, PATH="")
    assert done.returncode == 0, done.stderr
    status, place = done.stdout.split("\n")[:2]
    assert status.startswith("compiled kernel (")
    assert place.startswith(str(tmp_path))


@needs_compiler
def test_the_archive_of_sources_holds_every_source_and_nothing_compiled(built: Path, repository: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for path in (repository / "csrc").rglob("*") if path.is_file()]
    assert len(sources) > 10
    assert {path.relative_to(repository).as_posix() for path in sources} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "dinomed/ops/kernels.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_asked_for_nothing_the_wheel_is_pure_python(copy_source: Callable[[], Path], tmp_path: Path) -> None:
    done = build(copy_source(), tmp_path / "dist", "--wheel", DINOMED_BUILD="none")
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = only(tmp_path / "dist", "*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert libraries(wheel) == []


def test_a_requested_library_that_does_not_compile_fails_the_build(
    copy_source: Callable[[], Path], tmp_path: Path
) -> None:
    done = build(copy_source(), tmp_path / "dist", "--wheel", DINOMED_BUILD="cpu", CXX="/bin/false")
    assert done.returncode != 0
    assert "/bin/false -std=c++20" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.whl"))


@pytest.mark.parametrize("compiler", ["/bin/false", "no_such_compiler"])
def test_unless_asked_for_a_library_that_does_not_compile_is_left_out_with_a_sentence(
    compiler: str, copy_source: Callable[[], Path], tmp_path: Path
) -> None:
    done = build(copy_source(), tmp_path / "dist", "--wheel", CXX=compiler)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on with the plain-PyTorch operators, since" in done.stdout + done.stderr
    assert libraries(only(tmp_path / "dist", "*.whl")) == []


def test_a_compiler_that_does_not_exist_is_named_when_a_library_was_asked_for(
    copy_source: Callable[[], Path], tmp_path: Path
) -> None:
    done = build(copy_source(), tmp_path / "dist", "--wheel", DINOMED_BUILD="cpu", CXX="no_such_compiler")
    assert done.returncode != 0
    assert "no_such_compiler" in done.stdout + done.stderr


def test_an_unknown_wish_is_refused(copy_source: Callable[[], Path], tmp_path: Path) -> None:
    done = build(copy_source(), tmp_path / "dist", "--wheel", DINOMED_BUILD="gpu")
    assert done.returncode != 0
    assert "DINOMED_BUILD='gpu' is unknown; choose from auto, none, cpu, cuda" in done.stdout + done.stderr
