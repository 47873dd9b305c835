"""What a training run tells: a line every few steps, a CSV beside it, scalars and pictures for TensorBoard."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class TrainingLog:
    """Log loss, learning rate and time left; append them to `log.csv` and to TensorBoard.

    Args:
        folder: where `log.csv` and the TensorBoard events go.
        optimizer: whose first group's learning rate is logged.
        every: steps between two lines.
    """

    def __init__(self, folder: str | Path, optimizer: torch.optim.Optimizer, every: int = 20) -> None:
        self.folder = Path(folder)
        self.optimizer = optimizer
        self.every = every
        self.writer: SummaryWriter | None = None
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; only the first process of a distributed run writes."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.folder), purge_step=engine.state.iteration + 1)
        self._since = time.monotonic()

    def _step(self, engine: Engine) -> None:
        output = engine.state.output
        self._sum += float((output[0] if isinstance(output, list) else output)["loss"].detach())
        self._count += 1
        step = engine.state.iteration
        if step % self.every:
            return
        seconds = (time.monotonic() - self._since) / self._count
        left = seconds * (engine.state.max_epochs * engine.state.epoch_length - step)
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "step": step,
            "loss": round(self._sum / self._count, 5),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds_per_step": round(seconds, 3),
        }
        logger.info(
            "epoch %d step %d loss %.4f rate %.2e, %.2f s a step, about %d min left",
            *(row[key] for key in ("epoch", "step", "loss", "learning_rate", "seconds_per_step")),
            round(left / 60),
        )
        append_row(self.folder / "log.csv", row)
        if self.writer is not None:
            self.writer.add_scalar("train/loss", row["loss"], step)
            self.writer.add_scalar("train/learning_rate", row["learning_rate"], step)
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def _finish(self, engine: Engine) -> None:
        if self.writer is not None:
            self.writer.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._finish(engine)
        raise error


class ValidationLog:
    """Log the validation metrics, append them to `validation.csv`, and show pictures in TensorBoard.

    Attach it to the evaluator.

    Args:
        folder: where `validation.csv` and the TensorBoard events go.
        trainer: the trainer whose epoch and step belong to the metrics; may be set later through `follow`.
        num_pictures: slices of the last batch that are shown: image, reference labels, predicted labels.
    """

    def __init__(self, folder: str | Path, num_pictures: int = 4) -> None:
        self.folder = Path(folder)
        self.num_pictures = num_pictures
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Take epoch and step from this trainer."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write one row."""
        state = engine.state if self.trainer is None else self.trainer.state
        metrics = {key: value for key, value in engine.state.metrics.items() if isinstance(value, (int, float))}
        logger.info("epoch %d: %s", state.epoch, ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        append_row(self.folder / "validation.csv", {"epoch": state.epoch, "step": state.iteration, **metrics})
        with SummaryWriter(str(self.folder), filename_suffix=".validation") as writer:
            for key, value in metrics.items():
                writer.add_scalar(f"validation/{key}", value, state.iteration)
            for index, item in enumerate(engine.state.output[: self.num_pictures]):
                writer.add_image(f"validation/slice_{index}", side_by_side(item), state.iteration)


def side_by_side(item: dict[str, Tensor]) -> Tensor:
    """Show an image beside its reference and predicted labels, (1, rows, 3 * columns) in [0, 1]."""
    image = torch.as_tensor(item["image"]).float().cpu()
    middle = image[image.shape[0] // 2]
    middle = (middle - middle.min()) / (middle.max() - middle.min()).clamp(min=1e-6)
    labels = [torch.as_tensor(item[key]).float().cpu()[0] for key in ("label", "pred")]
    top = max(float(label.max()) for label in labels) or 1.0
    return torch.cat([middle, *(label / top for label in labels)], dim=1)[None]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, with the header first where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
