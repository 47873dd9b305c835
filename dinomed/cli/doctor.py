"""`dinomed doctor`: what this machine offers, and which part of dinomed uses what."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("torch", "torchvision", "monai", "timm", "numpy", "nibabel", "SimpleITK", "pydicom", "pytorch-ignite"),
    *("safetensors", "matplotlib", "PyYAML", "tqdm"),
)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("doctor", help="say what works on this machine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the state of everything; exit status 2 if something needed is missing."""
    from dinomed.cli.quiet import quiet

    with quiet():
        report = {name: _tried(look) for name, look in LOOKS.items()}
    problems = find_problems(report)
    report["problems"] = problems
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' ')}:{_shown(value)}")
    return 2 if problems else 0


def find_problems(report: dict[str, Any]) -> list[str]:
    """Turn what is missing into sentences that say what to do."""
    problems = [f"{package} is not installed; reinstall dinomed" for package, v in report["packages"].items() if not v]
    problems += [
        f"{name} cannot be told ({value})" for name, value in report.items() if str(value).startswith("error: ")
    ]
    if report.get("temporary_folder", {}).get("writable") is False:
        problems.append("the folder for temporary files cannot be written; set TMPDIR to one that can")
    return problems


def _tried(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:  # a broken part must not hide the others
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"\n    {key.replace('_', ' ')}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "".join(f"\n    {_text(each)}" for each in value) or " none"
    return f" {_text(value)}"


def _text(value: Any) -> str:
    if value is None:
        return "not installed"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _dinomed() -> dict[str, Any]:
    import dinomed

    return {"version": dinomed.__version__, "folder": os.path.dirname(dinomed.__file__)}


def _system() -> dict[str, Any]:
    return {"python": platform.python_version(), "platform": platform.platform()}


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu() -> dict[str, Any]:
    import torch

    from dinomed.inferers.precision import native_bfloat16

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": _cpu_model(),
        "cores_usable": usable,
        "threads_of_torch": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_native": native_bfloat16(torch.device("cpu")),
        "memory_gib": _memory_gib(),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def _memory_gib() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _gpus() -> list[str]:
    import torch

    from dinomed.inferers.precision import native_bfloat16

    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bfloat16 = "native" if native_bfloat16(torch.device("cuda", index)) else "not native"
        gpus.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, bfloat16 {bfloat16}")
    return gpus


def _kernels() -> dict[str, str]:
    from dinomed.ops import kernel_status

    return kernel_status()


def _bundles() -> list[str]:
    from dinomed.bundle.locate import list_bundles

    return [
        f"{info.name} {info.version}, {'weights' if info.weights else 'no weights'}, {info.root}"
        for info in list_bundles()
    ]


def _temporary_folder() -> dict[str, Any]:
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder):
            return {"folder": folder, "writable": True}
    except OSError:
        return {"folder": folder, "writable": False}


LOOKS: dict[str, Callable[[], Any]] = {
    "dinomed": _dinomed,
    "system": _system,
    "packages": _packages,
    "cpu": _cpu,
    "gpus": _gpus,
    "deformable_attention": _kernels,
    "bundles": _bundles,
    "temporary_folder": _temporary_folder,
}
