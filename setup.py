"""Build of the optional compiled operators; everything else about the package stands in pyproject.toml.

The environment variable DINOMED_BUILD says what is compiled: `auto` (the default) tries the CPU library and goes on
without it, saying so once; `none` compiles nothing; `cpu` and `cuda` (which is both) fail loudly where they cannot be
built. PyTorch must be importable: an isolated build fetches it, `pip install --no-build-isolation .` and
`python -m build --no-isolation` take the one that is there. CXX names the C++ compiler, if not g++ or clang++.
TORCH_CUDA_ARCH_LIST says for which GPUs the CUDA library is compiled, as for PyTorch's own extensions.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("csrc") / "ms_deform_attn"
CHOICES = ("auto", "none", "cpu", "cuda")
# The oldest PyTorch that the libraries run on: 2.11.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"
# Only the kernels' files get flags of an instruction set; which of them runs is decided at run time.
INSTRUCTION_SETS = {
    "kernels_portable": [],
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ],
}
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0+PTX"


def torch_folder() -> Path:
    """Find PyTorch without importing it.

    Raises:
        RuntimeError: If it is not installed where this build runs, or too old.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("PyTorch is not installed where this build runs")
    folder = Path(spec.origin).parent
    if not (folder / "include/torch/headeronly/version.h").is_file():
        raise RuntimeError(f"the PyTorch in {folder} has no headers of the stable ABI; PyTorch 2.11 or newer is needed")
    return folder


def cuda_flags() -> list[str]:
    """Turn TORCH_CUDA_ARCH_LIST into nvcc's flags."""
    flags = []
    for name in filter(None, os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES).replace(" ", ";").split(";")):
        number = name.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


class BuildLibraries(build_ext):
    """Compile the operators' libraries: shared libraries for the dispatcher, not Python modules."""

    def run(self) -> None:
        """Build every library; under `auto` go on without those that fail."""
        try:
            super().run()
        except Exception as error:
            if os.environ.get("DINOMED_BUILD", "auto") != "auto":
                raise
            say_without(error)

    def build_extension(self, ext: Extension) -> None:
        """Compile each source with its own flags and link them."""
        folder = torch_folder()
        objects = Path(self.build_temp) / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        compile_one = self._compile_cuda if ext.name.endswith("_cuda") else self._compile_cpu
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(lambda source: compile_one(Path(source), objects, folder), ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        libraries = ["-ltorch_cpu", "-ltorch"]
        if ext.name.endswith("_cuda"):
            libraries = ["-ltorch_cuda", "-lc10_cuda", *libraries, *cuda_runtime()]
        unfinished = target.with_name(target.name + ".new")
        command = [*compiler(), "-shared", *map(str, made), f"-L{folder / 'lib'}", *libraries, "-o", str(unfinished)]
        execute(command)
        unfinished.replace(target)  # a process may have the old library open

    def _compile_cpu(self, source: Path, objects: Path, torch: Path) -> Path:
        made = objects / f"{source.stem}.o"
        flags = ["-std=c++20", "-O2", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
        if source.stem.startswith("kernels_"):
            flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-maybe-uninitialized"]
            flags += INSTRUCTION_SETS[source.stem]
        else:
            flags += [TORCH_TARGET, "-isystem", str(torch / "include")]
        execute([*compiler(), *flags, "-c", str(source), "-o", str(made)])
        return made

    def _compile_cuda(self, source: Path, objects: Path, torch: Path) -> Path:
        made = objects / f"{source.stem}.cu.o"
        flags = ["-std=c++20", "-O3", "-DNDEBUG", "-DUSE_CUDA", TORCH_TARGET, "-isystem", str(torch / "include")]
        flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr"]
        execute([str(cuda_home() / "bin" / "nvcc"), *flags, *cuda_flags(), "-c", str(source), "-o", str(made)])
        return made


def cuda_home() -> Path:
    """Find the CUDA toolkit.

    Raises:
        RuntimeError: If there is none.
    """
    nvcc = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or ("/usr/local/cuda" if Path("/usr/local/cuda").exists() else None)
    if home is None and nvcc is not None:
        home = str(Path(nvcc).resolve().parents[1])
    if home is None or not (Path(home) / "bin" / "nvcc").exists():
        raise RuntimeError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    return Path(home)


def cuda_runtime() -> list[str]:
    """Give the linker's arguments for CUDA's runtime, inside the library and hidden in it.

    The runtime that PyTorch brings has its version's name (libcudart.so.12 or .13), and a library linked with one loads
    beside no other. With its own runtime it loads beside each; both work in the device's one context. The driver must
    be as new as the toolkit, which the library checks when it is loaded.
    """
    folder = cuda_home() / "lib64"
    if not (folder / "libcudart_static.a").is_file():
        folder = cuda_home() / "lib"  # as packages for conda and pip lay it out
    own = ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    return [f"-L{folder}", *own, "-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-Wl,-z,defs"]


def compiler() -> list[str]:
    """Name the C++ compiler, with what CXX puts before or after it.

    Raises:
        RuntimeError: If there is none, or not the one that CXX names.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named and shutil.which(named[0]) is None:
        raise RuntimeError(f"the C++ compiler that CXX names was not found: {named[0]}")
    for command in (named, ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise RuntimeError("no C++ compiler was found (g++ 12 or clang++ 15, or newer)")


def execute(command: list[str]) -> None:
    """Run a compiler and say what it said if it fails.

    Raises:
        RuntimeError: If it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def say_without(reason: Exception) -> None:
    """Say once that the package goes without compiled operators."""
    print(f"dinomed: going on with the plain-PyTorch operators, since {reason}", file=sys.stderr)  # noqa: T201


def extension_modules() -> list[Extension]:
    """Say which libraries to compile."""
    choice = os.environ.get("DINOMED_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"DINOMED_BUILD={choice!r} is unknown; choose from {', '.join(CHOICES)}")
    if choice == "none":
        return []
    try:
        torch_folder()
        compiler()
        if choice == "cuda":
            cuda_home()
        for name in ("cpu.cpp", "cuda.cu") if choice == "cuda" else ("cpu.cpp",):
            if not (SOURCES / name).is_file():
                raise RuntimeError(f"there is no file {SOURCES / name} to compile")
    except RuntimeError as error:
        if choice != "auto":
            sys.exit(f"DINOMED_BUILD={choice} was asked for, but {error}")
        say_without(error)
        return []
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    names = ["cpu", *(INSTRUCTION_SETS if is_x86 else ["kernels_portable"])]
    libraries = {"cpu": [str(SOURCES / f"{name}.cpp") for name in names]}
    if choice == "cuda":
        libraries["cuda"] = [str(SOURCES / "cuda.cu")]
    headers = [str(path) for pattern in ("*.h", "*.cuh") for path in sorted(SOURCES.glob(pattern))]
    return [
        Extension(f"dinomed.ops._ms_deform_attn_{device}", sources, depends=headers, py_limited_api=True)
        for device, sources in libraries.items()
    ]


extensions = extension_modules()
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildLibraries},
    # The libraries do not use Python at all, so one wheel serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
