"""What a training tells: a line every few steps, CSV and JSON lines beside it, scalars and pictures for TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from dinomed.handlers.ending import when_ended
from dinomed.handlers.processes import sums
from dinomed.handlers.row_files import JsonLines, Table
from dinomed.handlers.tensorboard import open_events, require_tensorboard

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


def last_loss(engine: Engine) -> Tensor:
    """Return the loss of the trainer's last batch, a scalar without gradient."""
    output = engine.state.output
    return (output[0] if isinstance(output, list) else output)["loss"].detach()


class TrainingLog:
    """Log loss, learning rate and time left; append them to `log.csv`, `log.jsonl` and to TensorBoard.

    A line comes every few steps and at the end of each epoch. In a distributed run the loss is the mean over the
    processes, all of which attach the handler; the first one writes.

    Args:
        folder: where the files and the TensorBoard events go.
        optimizer: whose first group's learning rate is logged.
        every: steps between two lines.
        tensorboard: whether to write events.

    Raises:
        InputError: if TensorBoard is wanted and not installed.
    """

    def __init__(
        self, folder: str | Path, optimizer: torch.optim.Optimizer, every: int = 20, tensorboard: bool = True
    ) -> None:
        if tensorboard:
            require_tensorboard()
        self.folder = Path(folder)
        self.optimizer = optimizer
        self.every = every
        self.tensorboard = tensorboard
        self.files = [Table(self.folder / "log.csv"), JsonLines(self.folder / "log.jsonl")]
        self.writer: SummaryWriter | None = None
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        when_ended(engine, self._finish)

    def _start(self, engine: Engine) -> None:
        """Begin with an epoch: only then is it known at which step a resumed run goes on."""
        if self.tensorboard and self.writer is None and getattr(engine.state, "rank", 0) == 0:
            self.writer = open_events(self.folder, engine.state.iteration + 1)
        self._begin_mean()

    def _begin_mean(self) -> None:
        self._sum, self._count, self._since = 0.0, 0, time.monotonic()

    def _step(self, engine: Engine) -> None:
        loss = last_loss(engine)
        self._sum += float(loss)
        self._count += 1
        step, length = engine.state.iteration, engine.state.epoch_length
        if step % self.every and step % length:
            return
        seconds = (time.monotonic() - self._since) / self._count
        total, count = sums(torch.tensor([self._sum, self._count], device=loss.device)).tolist()
        if getattr(engine.state, "rank", 0) == 0:
            row: dict[str, Any] = {
                "epoch": engine.state.epoch,
                "step": step,
                "loss": round(total / count, 5),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds_per_step": round(seconds, 3),
            }
            self._write(row, seconds * (engine.state.max_epochs * length - step))
        self._begin_mean()

    def _write(self, row: dict[str, Any], seconds_left: float) -> None:
        logger.info(
            "epoch %d step %d loss %.4f rate %.2e, %.2f s a step, about %d min left",
            *row.values(),
            round(seconds_left / 60),
        )
        for file in self.files:
            file.append(row)
        if self.writer is not None:
            self.writer.add_scalar("train/loss", row["loss"], row["step"])
            self.writer.add_scalar("train/learning_rate", row["learning_rate"], row["step"])

    def _finish(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def side_by_side(item: Mapping[str, Any]) -> Tensor:
    """Show a grey image beside its reference and predicted labels.

    Args:
        item: "image" (C, rows, columns), of which the middle channel is shown, "label" and "pred" (1, rows, columns).

    Returns:
        (1, rows, 3 * columns) in [0, 1].
    """
    image = torch.as_tensor(item["image"]).float().cpu()
    middle = _stretched(image[image.shape[0] // 2])
    labels = [torch.as_tensor(item[key]).float().cpu()[0] for key in ("label", "pred")]
    top = max(float(label.max()) for label in labels) or 1.0
    return torch.cat([middle, *(label / top for label in labels)], dim=1)[None]


def coloured_side_by_side(item: Mapping[str, Any]) -> Tensor:
    """Show a colour image beside its reference and predicted labels, for photographs.

    Labels have the colours of the PASCAL VOC map, in which the ignored label 255 is a light grey-brown.

    Args:
        item: "image" (3, rows, columns) of any range, "label" and "pred" (1, rows, columns) with labels 0 to 255.

    Returns:
        (3, rows, 3 * columns) in [0, 1].
    """
    image = torch.as_tensor(item["image"]).as_subclass(Tensor).float().cpu()
    parts = [_stretched(image)]
    for key in ("label", "pred"):
        numbers = torch.as_tensor(item[key]).as_subclass(Tensor).cpu()[0].long()
        # Bit k of red, green and blue, from the highest on, is bit 0, 1 and 2 of the number shifted by 3 k.
        channels = [sum((numbers >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3)]
        parts.append(torch.stack([torch.as_tensor(channel) for channel in channels]).float() / 255)
    return torch.cat(parts, dim=2)


def _stretched(image: Tensor) -> Tensor:
    return (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)


class ValidationLog:
    """Log the validation metrics, append them to `validation.csv` and `.jsonl`, and show pictures in TensorBoard.

    Attach it to the evaluator. Its events lie in a folder of their own: TensorBoard follows the newest file of a folder
    only, and the trainer's must stay the newest of theirs. In a distributed run the first process writes.

    Args:
        folder: where the files go, and the TensorBoard events in `validation`.
        num_pictures: items of the last batch that are shown.
        tensorboard: whether to write events.
        picture: makes a picture (channels, rows, columns) in [0, 1] of an item with image, reference and prediction.

    Raises:
        InputError: if TensorBoard is wanted and not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        num_pictures: int = 4,
        tensorboard: bool = True,
        picture: Callable[[Mapping[str, Any]], Tensor] = side_by_side,
    ) -> None:
        if tensorboard:
            require_tensorboard()
        self.folder = Path(folder)
        self.num_pictures = num_pictures
        self.tensorboard = tensorboard
        self.picture = picture
        self.files = [Table(self.folder / "validation.csv"), JsonLines(self.folder / "validation.jsonl")]
        self.writer: SummaryWriter | None = None
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Take epoch and step from this trainer."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if getattr(engine.state, "rank", 0) == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write one row."""
        state = engine.state if self.trainer is None else self.trainer.state
        step = state.iteration
        metrics = {key: value for key, value in engine.state.metrics.items() if isinstance(value, (int, float))}
        logger.info("epoch %d: %s", state.epoch, ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        for file in self.files:
            file.append({"epoch": state.epoch, "step": step, **metrics})
        if not self.tensorboard:
            return
        if self.writer is None:
            self.writer = open_events(self.folder / "validation", step)
        for key, value in metrics.items():
            self.writer.add_scalar(f"validation/{key}", value, step)
        for index, item in enumerate(engine.state.output[: self.num_pictures]):
            self.writer.add_image(f"validation/slice_{index}", self.picture(item), step)
        self.writer.flush()
