from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from ignite.metrics import Metric

from dinomed.metrics import LabelDice, SegmentationScores, VolumeScores

CASES = 7  # an odd number for two processes
WORKER = """
import json, sys
from collections.abc import Iterable
import torch
from ignite.metrics import Metric
from torch import distributed
from dinomed.metrics import LabelDice, SegmentationScores, VolumeScores

{functions}
rank = int(sys.argv[1])
torch.set_num_threads(1)
distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
metrics = count(range(rank, {cases}, 2), [] if rank else range({cases}))
results, again = ([metric.compute() for metric in metrics] for _ in range(2))
gathered = [None, None]
distributed.all_gather_object(gathered, results)
assert gathered == [again, again], (gathered, again)  # both know all, and nothing is counted twice
distributed.destroy_process_group()
print(json.dumps(results) if rank == 0 else "")
"""


def case(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Label maps of a size of their own; class 4 occurs in the last case alone."""
    generator = torch.Generator().manual_seed(index)
    shape = (1, 6 + index, 5, 4)
    reference = torch.randint(4, shape, generator=generator)
    predicted = torch.where(torch.rand(shape, generator=generator) < 0.5, reference, 1)
    reference[torch.rand(shape, generator=generator) < 0.1] = 255
    if index == 6:
        reference[0, 0] = 4
    return predicted, reference


def count(indices: Iterable[int], indices_of_last: Iterable[int]) -> list[Metric]:
    """Metrics that saw the cases; the last one sees cases of its own choice, perhaps none."""
    metrics = [
        SegmentationScores(5, ignore_index=255),
        LabelDice(5, ignore_index=255),
        VolumeScores(5, 1.0, (1.0, 2.0, 0.5), ignore_index=255, missed_mm=50.0),
        LabelDice(5, ignore_index=255),
    ]
    for index in indices:
        for metric in metrics[:3]:
            metric.update(case(index))
    for index in indices_of_last:
        metrics[3].update(case(index))
    return metrics


def test_two_processes_find_what_one_finds(tmp_path: Path, repository: Path) -> None:
    script = tmp_path / "worker.py"
    functions = "\n".join(inspect.getsource(function) for function in (case, count))
    script.write_text(WORKER.format(functions=functions, cases=CASES))
    variables = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    variables |= {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(tmp_path / "meeting")],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    two = json.loads(outputs[0][0])
    one = [metric.compute() for metric in count(range(CASES), range(CASES))]
    assert two[:2] == one[:2]
    assert two[2] == pytest.approx(one[2], rel=1e-12)
    assert two[3] == one[3] == one[1]
    assert 0 < one[0]["mean_iou"] < 1
