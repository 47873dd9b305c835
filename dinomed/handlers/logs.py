"""What a training run tells: a line every few steps, a CSV beside it, scalars and pictures for TensorBoard."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Table:
    """A CSV file that grows by a row at a time.

    A run that goes on from a checkpoint repeats the steps after it, so the first row replaces the rows of its own step
    and of later ones, and whatever a kill left half written.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._started = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, which has the key "step"."""
        if self._started:
            with self.path.open("a", newline="") as stream:
                csv.DictWriter(stream, fieldnames=list(row)).writerow(row)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row), extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*self._rows_before(int(row["step"])), row])
        temporary.replace(self.path)
        self._started = True

    def _rows_before(self, step: int) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if None not in row and None not in row.values()]
        return [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) < step]


class TrainingLog:
    """Log loss, learning rate and time left; append them to `log.csv` and to TensorBoard.

    A line comes every few steps and at the end of each epoch. In a distributed run it tells of the first process.

    Args:
        folder: where `log.csv` and the TensorBoard events go.
        optimizer: whose first group's learning rate is logged.
        every: steps between two lines.
    """

    def __init__(self, folder: str | Path, optimizer: torch.optim.Optimizer, every: int = 20) -> None:
        self.folder = Path(folder)
        self.optimizer = optimizer
        self.every = every
        self.table = Table(self.folder / "log.csv")
        self.writer: SummaryWriter | None = None
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; only the first process of a distributed run writes."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        """Begin with an epoch: only then is it known at which step a resumed run goes on."""
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder), purge_step=engine.state.iteration + 1)
        self._begin_mean()

    def _begin_mean(self) -> None:
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def _step(self, engine: Engine) -> None:
        output = engine.state.output
        self._sum += float((output[0] if isinstance(output, list) else output)["loss"].detach())
        self._count += 1
        step, length = engine.state.iteration, engine.state.epoch_length
        if step % self.every and step % length:
            return
        seconds = (time.monotonic() - self._since) / self._count
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "step": step,
            "loss": round(self._sum / self._count, 5),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds_per_step": round(seconds, 3),
        }
        logger.info(
            "epoch %d step %d loss %.4f rate %.2e, %.2f s a step, about %d min left",
            *row.values(),
            round(seconds * (engine.state.max_epochs * length - step) / 60),
        )
        self.table.append(row)
        if self.writer is not None:
            self.writer.add_scalar("train/loss", row["loss"], step)
            self.writer.add_scalar("train/learning_rate", row["learning_rate"], step)
        self._begin_mean()

    def _finish(self, engine: Engine) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._finish(engine)
        raise error


class ValidationLog:
    """Log the validation metrics, append them to `validation.csv`, and show pictures in TensorBoard.

    Attach it to the evaluator. Its events lie in a folder of their own: TensorBoard follows the newest file of a folder
    only, and the trainer's must stay the newest of theirs.

    Args:
        folder: where `validation.csv` goes, and the TensorBoard events in `validation`.
        num_pictures: slices of the last batch that are shown: image, reference labels, predicted labels.
    """

    def __init__(self, folder: str | Path, num_pictures: int = 4) -> None:
        self.folder = Path(folder)
        self.num_pictures = num_pictures
        self.table = Table(self.folder / "validation.csv")
        self.writer: SummaryWriter | None = None
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Take epoch and step from this trainer."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator; only the first process of a distributed run writes."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write one row."""
        state = engine.state if self.trainer is None else self.trainer.state
        step = state.iteration
        metrics = {key: value for key, value in engine.state.metrics.items() if isinstance(value, (int, float))}
        logger.info("epoch %d: %s", state.epoch, ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        self.table.append({"epoch": state.epoch, "step": step, **metrics})
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder / "validation"), purge_step=step)
        for key, value in metrics.items():
            self.writer.add_scalar(f"validation/{key}", value, step)
        for index, item in enumerate(engine.state.output[: self.num_pictures]):
            self.writer.add_image(f"validation/slice_{index}", side_by_side(item), step)
        self.writer.flush()


def side_by_side(item: dict[str, Tensor]) -> Tensor:
    """Show an image beside its reference and predicted labels, (1, rows, 3 * columns) in [0, 1]."""
    image = torch.as_tensor(item["image"]).float().cpu()
    middle = image[image.shape[0] // 2]
    middle = (middle - middle.min()) / (middle.max() - middle.min()).clamp(min=1e-6)
    labels = [torch.as_tensor(item[key]).float().cpu()[0] for key in ("label", "pred")]
    top = max(float(label.max()) for label in labels) or 1.0
    return torch.cat([middle, *(label / top for label in labels)], dim=1)[None]
