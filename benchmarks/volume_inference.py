"""Time and peak memory of segmenting one volume, file to file: this package against plain MONAI transforms.

Both run the network and weights of one bundle on the axial slices of one scan, so both compute the same labels; the
last row looks along the bundle's own planes as well. The plain path is what MONAI's own parts give:
LoadImaged, Orientationd, Spacingd, neighbouring slices stacked as channels, SliceInferer in float32, softmax, Invertd,
argmax, SaveImaged. Each run is a process of its own; the clock starts when modules and weights are loaded and stops
when the label file is written. Memory is the peak of the process's resident set.

    OMP_NUM_THREADS=2 PYTHONPATH=. python benchmarks/volume_inference.py --repeats 3
    python benchmarks/volume_inference.py --scan t1.nii.gz --weights model.pt

Without `--scan` a drawn head of 256 x 256 x 256 voxels is segmented. Without weights the network is random: times and
memory hold, the agreement says little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
PATHS = {
    "plain": "MONAI, axial, float32",
    "ours": "dinomed, axial",
    "planes": "dinomed, all planes of the bundle",
}
GIB = 2**30


def draw_head(path: Path, size: int, spacing_mm: float) -> None:
    """Write a head of nested ellipsoids in noisy air, stored left-inferior-anterior as many scanners do."""
    rng = np.random.default_rng(0)
    position = np.stack(np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 3, indexing="ij"))
    values = np.zeros((size,) * 3, np.float32)
    for radii, intensity in [
        ((0.62, 0.80, 0.86), 700),  # skin and fat
        ((0.57, 0.75, 0.81), 90),  # skull
        ((0.53, 0.71, 0.76), 200),  # cerebrospinal fluid
        ((0.50, 0.67, 0.72), 480),  # grey matter
        ((0.42, 0.58, 0.62), 760),  # white matter
        ((0.10, 0.28, 0.14), 200),  # ventricles
    ]:
        values[sum((x / r) ** 2 for x, r in zip(position, radii, strict=True)) < 1] = intensity
    values *= 1 + 0.1 * position[1]
    noise = rng.normal(scale=12, size=(2, *values.shape)).astype(np.float32)
    values = np.hypot(values + noise[0], noise[1])
    affine = np.array([[-1.0, 0, 0, size / 2], [0, 0, 1, -size / 2], [0, -1, 0, size / 2], [0, 0, 0, 1]])
    affine[:3] *= spacing_mm
    nib.save(nib.Nifti1Image(values.transpose(0, 2, 1)[:, ::-1].astype(np.int16), affine), path)


def load(bundle: Path, weights: Path | None) -> tuple[Any, Any]:
    """Return a bundle's parsed inference config and its network, with weights where there are any."""
    import torch
    from monai.bundle import ConfigParser

    from dinomed.bundle.checkpoint import load_network

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = "cpu"
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    if weights is not None:
        load_network(network, weights)
    return parser, network


def run_ours(scan: Path, output: Path, parser: Any, network: Any, planes: list[str]) -> None:
    """Segment with the bundle's own transforms and inferer."""
    from dinomed.transforms.volumes import read_grid, write_labels

    parser["planes"] = planes
    data = parser.get_parsed_content("preprocessing")({"image": str(scan)})
    inferer = parser.get_parsed_content("inferer")
    data["pred"] = inferer(data["image"].as_tensor()[None], network)[0]
    labels = parser.get_parsed_content("decide")(data)["pred"]
    write_labels(labels.as_tensor()[0].numpy(), read_grid(scan), output)


def run_plain(scan: Path, output: Path, parser: Any, network: Any, batch_size: int) -> None:
    """Segment with MONAI's own transforms and inferer."""
    import torch
    from monai import transforms as mt
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import SliceInferer

    def stack_neighbours(image: Any) -> Any:
        before = torch.cat([image[..., :1], image[..., :-1]], dim=-1)
        after = torch.cat([image[..., 1:], image[..., -1:]], dim=-1)
        return torch.cat([before, image, after])

    spacing_mm = float(parser["spacing_mm"])
    intensity = parser.get_parsed_content("preprocessing").transforms[2:]  # after loading and resampling
    before = mt.Compose(
        [
            mt.LoadImaged("image", ensure_channel_first=True),
            mt.Orientationd("image", axcodes="PRS", labels=None),  # rows to the back, columns to the right: upright
            mt.Spacingd("image", pixdim=(spacing_mm,) * 3, mode="bilinear"),
            *intensity,
            mt.Lambdad("image", stack_neighbours),
        ]
    )
    save = {"separate_folder": False, "resample": False, "output_dtype": np.uint8}
    after = mt.Compose(
        [
            mt.Activationsd("pred", softmax=True),
            mt.Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            mt.AsDiscreted("pred", argmax=True),
            mt.SaveImaged("pred", output_dir=output.parent, output_postfix="plain", print_log=False, **save),
        ]
    )
    data = list_data_collate([before({"image": str(scan)})])
    inferer = SliceInferer(
        roi_size=data["image"].shape[2:4], sw_batch_size=batch_size, spatial_dim=2, cache_roi_weight_map=False
    )
    with torch.inference_mode():
        data["pred"] = inferer(data["image"], network)
        for item in decollate_batch(data):
            after(item)
    (output.parent / f"{scan.name.removesuffix('.gz').removesuffix('.nii')}_plain.nii.gz").rename(output)


def memory(field: str) -> int:
    """Return a field of this process's status in bytes: VmRSS, or its peak VmHWM."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def run_one(arguments: argparse.Namespace) -> None:
    """Run one path in this process and print what it took as JSON."""
    import monai.transforms  # noqa: F401
    import SimpleITK  # noqa: F401
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    parser, network = load(arguments.bundle, arguments.weights)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    loaded = memory("VmRSS")
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    if arguments.run == "plain":
        run_plain(arguments.scan, arguments.output, parser, network, arguments.plain_batch_size)
    else:
        planes = ["axial"] if arguments.run == "ours" else list(parser["planes"])
        run_ours(arguments.scan, arguments.output, parser, network, planes)
    result = {
        "seconds": time.perf_counter() - started_s,
        "cpu_seconds": time.process_time() - started_cpu_s,
        "loaded": loaded,
        "peak": memory("VmHWM"),
    }
    print(json.dumps(result))


def measure(path: str, arguments: argparse.Namespace, scan: Path, output: Path) -> dict[str, float]:
    """Run one path in a process of its own."""
    command = [sys.executable, __file__, "--run", path, "--scan", str(scan), "--output", str(output)]
    command += ["--bundle", str(arguments.bundle), "--plain-batch-size", str(arguments.plain_batch_size)]
    if arguments.weights is not None:
        command += ["--weights", str(arguments.weights)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, list[dict[str, float]]], folder: Path) -> None:
    """Print the table, and how far the two axial label maps agree."""
    medians = {
        path: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for path, runs in results.items()
    }
    print(f"{'path':<36}{'seconds':>9}{'cpu s':>8}{'peak GiB':>10}{'above loaded':>14}{'time':>9}{'peak':>8}")
    plain = medians.get("plain")
    for path, run in medians.items():
        row = f"{PATHS[path]:<36}{run['seconds']:9.1f}{run['cpu_seconds']:8.1f}{run['peak'] / GIB:10.2f}"
        row += f"{(run['peak'] - run['loaded']) / GIB:14.2f}"
        if plain is not None:
            row += f"{'1/' + format(plain['seconds'] / run['seconds'], '.1f'):>9}"
            row += f"{'1/' + format(plain['peak'] / run['peak'], '.1f'):>8}"
        print(row)
    if {"plain", "ours"} <= results.keys():
        plain_labels, labels = (np.asarray(nib.load(folder / f"{path}.nii.gz").dataobj) for path in ("plain", "ours"))
        agree = plain_labels == labels
        either = (plain_labels > 0) | (labels > 0)
        print(
            f"label agreement, axial: {agree.mean():.3%} of all voxels, {agree[either].mean():.3%} outside background"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / "bundles" / "mri_head_segmentation")
    parser.add_argument("--scan", type=Path, help="a NIfTI scan; by default a drawn head")
    parser.add_argument("--weights", type=Path, help="by default the bundle's models/model.pt, if it is there")
    parser.add_argument("--size", type=int, default=256, help="voxels along each side of the drawn head")
    parser.add_argument("--spacing-mm", type=float, default=1.0, help="voxel size of the drawn head")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each path; the table shows medians")
    parser.add_argument("--plain-batch-size", type=int, default=1, help="slices at a time on MONAI's path")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS), help="what to run")
    parser.add_argument("--run", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shipped = arguments.bundle / "models" / "model.pt"
    if arguments.weights is None and shipped.is_file():
        arguments.weights = shipped
    if arguments.run:
        run_one(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = arguments.scan
        if scan is None:
            scan = folder / "head.nii.gz"
            draw_head(scan, arguments.size, arguments.spacing_mm)
        results: dict[str, list[dict[str, float]]] = {path: [] for path in arguments.paths}
        for _ in range(arguments.repeats):
            for path in arguments.paths:
                results[path].append(measure(path, arguments, scan, folder / f"{path}.nii.gz"))
                print(f"{path}: {results[path][-1]['seconds']:.1f} s", file=sys.stderr)
        shape = "x".join(map(str, nib.load(scan).shape))
        weights = arguments.weights.name if arguments.weights else "random weights"
        load_average = os.getloadavg()[0]
        print(f"{scan.name} {shape}, {weights}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, "
              f"median of {arguments.repeats}, load average {load_average:.1f}")  # fmt: skip
        report(results, folder)


if __name__ == "__main__":
    main()
