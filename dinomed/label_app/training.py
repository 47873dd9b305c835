"""Training from the viewer: a bundle's head learns from the labels that were submitted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.train import TrainTask

from dinomed.bundle.program import run_program
from dinomed.errors import DinomedError, InputError
from dinomed.handlers.whole_files import write_file
from dinomed.label_app.background import LAST_LINE_S, end_if_orphaned
from dinomed.label_app.models import LabelModel
from dinomed.label_app.predictions import Predictions
from dinomed.label_app.studies import Studies
from dinomed.predictor.choices import choose_device
from dinomed.transforms.provenance import file_sha256

logger = logging.getLogger(__name__)

CONFIG = Path(__file__).with_name("finetune.yaml")
DEFAULTS: dict[str, Any] = {"max_epochs": 10, "steps_per_epoch": 20, "slices_per_batch": 4, "learning_rate": 3e-4}
STARTS = ("current", "shipped")
LARGEST = {"max_epochs": 100_000, "steps_per_epoch": 100_000, "slices_per_batch": 64}
# What MONAI Label's clients send with every training, and what it adds.
WITHOUT_EFFECT = (
    *("client_id", "model", "name", "device", "pretrained", "dataset", "val_split", "gpus", "multi_gpu", "local_rank"),
    *("train_batch_size", "val_batch_size", "dataset_limit", "early_stop_patience", "early_stop_fraction"),
    *("tracking", "tracking_uri", "tracking_experiment_name", "user", "enqueue", "run_sync"),
)


class FineTune(TrainTask):
    """Fine-tune the adapter and the decoder of one bundle; its backbone stays as it is."""

    def __init__(self, model: LabelModel, predictions: Predictions) -> None:
        super().__init__(f"fine-tunes the decoder of {model.name} on the submitted labels")
        self.model = model
        self.predictions = predictions

    @property
    def run(self) -> Path:
        """Folder of the training that runs or was stopped."""
        return self.model.folder / "run"

    @property
    def last_run(self) -> Path:
        """Folder of the training that ended last."""
        return self.model.folder / "last_run"

    def config(self) -> dict[str, Any]:
        """Settings that a client may change."""
        return {**DEFAULTS, "start": list(STARTS)}

    def stats(self) -> dict[str, Any]:
        """How far the training is, or the last one was."""
        for folder in (self.run, self.last_run):
            with contextlib.suppress(OSError, ValueError):
                return dict(json.loads((folder / "stats.json").read_text(encoding="utf-8")))
        return {}

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Read a client's settings.

        Raises:
            InputError: If one is unknown or makes no sense.
        """
        unknown = sorted(set(params) - {*DEFAULTS, "start", *WITHOUT_EFFECT})
        if unknown:
            raise InputError(f"training has no setting {unknown[0]!r}; choose from {', '.join(self.config())}")
        chosen = {name: params.get(name, value) for name, value in DEFAULTS.items()}
        for name, value in chosen.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if name == "learning_rate":
                if not (number and 0 < value <= 1):
                    raise InputError(f"learning_rate is {value!r}; give a number above 0 and up to 1, such as 0.0003")
            elif not (number and value == int(value) and 1 <= value <= LARGEST[name]):
                raise InputError(f"{name} is {value!r}; give a whole number from 1 to {LARGEST[name]}")
            else:
                chosen[name] = int(value)
        given = params.get("start", STARTS[0])
        chosen["start"] = given[0] if isinstance(given, list) and given else given
        if chosen["start"] not in STARTS:
            raise InputError(f"start is {given!r}; choose current or shipped weights")
        return chosen

    def check(self, params: Mapping[str, Any], datastore: Studies) -> None:
        """Refuse a training that could not begin.

        Raises:
            InputError: If a setting makes no sense, or there is nothing to learn from.
        """
        self.settings(params)
        if not datastore.labelled_for(self.model):
            raise InputError(f"no labels of {self.model.name} have been submitted yet; submit at least one, then train")

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> dict[str, Any]:
        """Train to the end, going on where a training with the same labels and settings was stopped.

        Raises:
            DinomedError: If it cannot begin, or fails.
        """
        started_s = time.monotonic()
        try:
            self.model.folder.mkdir(parents=True, exist_ok=True)
            # A server that was killed leaves its training for a second; the lock ends with the process that holds it.
            with FileLock(self.model.folder / "run.lock", timeout=15):
                self._train(self.settings(_own(request, self.model.name)), datastore)
        except Timeout as error:
            raise self._ended(f"another training of {self.model.name} is running; stop it first") from error
        except DinomedError as error:
            raise self._ended(str(error)) from error
        logger.info("the new weights are %s", self.model.fine_tuned)
        time.sleep(LAST_LINE_S)
        return {**self.stats(), "total_time": round(time.monotonic() - started_s, 1)}

    def _ended(self, reason: str) -> SystemExit:
        logger.error("the training ended: %s", reason)
        time.sleep(LAST_LINE_S)
        return SystemExit(2)

    def _train(self, settings: dict[str, Any], datastore: Studies) -> None:
        self._put_in_use()
        pairs = self._pairs(datastore)
        start = self.model.weights if settings["start"] == "current" else self.model.shipped
        plan = {
            "settings": settings,
            "start": file_sha256(start),
            "labels": [[Path(pair["image"]).name, file_sha256(Path(pair["label"]))] for pair in pairs],
        }
        text = json.dumps(plan, indent=1)
        kept = self.run / "plan.json"
        if kept.is_file() and kept.read_text(encoding="utf-8") == text:
            logger.info("going on with the training that was stopped, with %d labels", len(pairs))
        else:
            shutil.rmtree(self.run, ignore_errors=True)
            logger.info("a new training of %s from %s, with %d labels", self.model.name, start, len(pairs))
            write_file(self.run / "stats.json", json.dumps({"epoch": 0, "total_epochs": settings["max_epochs"]}))
        # One scan in five validates; with a single one the score says how well it is learnt by heart.
        held_out = pairs[4::5] or pairs[-1:] if len(pairs) > 1 else []
        lists = {"training": [pair for pair in pairs if pair not in held_out], "validation": held_out}
        write_file(self.run / "pairs.json", json.dumps(lists))
        shutil.copyfile(start, self.run / "start.pt")  # the fine-tuned weights may be taken away meanwhile
        write_file(kept, text)
        overrides = {
            **{name: settings[name] for name in DEFAULTS},
            "device": choose_device(self.model.device),
            "ckpt_path": str(self.run / "start.pt"),
            "pairs": str(self.run / "pairs.json"),
            "run_dir": str(self.run),
            "plan": hashlib.sha256(text.encode()).hexdigest(),
        }
        run_program(self.model.root, ["inference"], "training", overrides, [str(CONFIG)])
        self._publish()

    def _pairs(self, datastore: Studies) -> list[dict[str, str]]:
        pairs = []
        for name in datastore.labelled_for(self.model):
            try:
                datastore.submitted(name, self.model)
                pairs.append({"image": datastore.scan(name), "label": str(datastore.get_label_uri(name, "final"))})
            except (InputError, ImageNotFoundException) as error:  # laid in the folder by hand, or removed
                logger.warning("%s is left out: %s", name, error)
        if not pairs:
            raise InputError(f"no label map of {self.model.name} can be learnt from; submit at least one")
        return pairs

    def _publish(self) -> None:
        """Put the best weights in use, in one step, and keep those before."""
        best = self.run / "best.pt"
        if not best.is_file():
            raise InputError("no label occurred in the validation, so no weights were kept; submit labels with content")
        if self.model.fine_tuned.is_file():
            shutil.copyfile(self.model.fine_tuned, self.run / "replaced.pt")
        for path in self.run.glob("*.pt"):
            _write_out(path)
        end_if_orphaned()
        shutil.rmtree(self.last_run, ignore_errors=True)
        self.run.rename(self.last_run)
        self._put_in_use()

    def _put_in_use(self) -> None:
        """Move the weights of the last training to their places; the next one goes on where this was cut short."""
        for name, target in (("best.pt", self.model.fine_tuned), ("replaced.pt", self.model.folder / "previous.pt")):
            if (self.last_run / name).is_file():
                (self.last_run / name).replace(target)
        for name in ("checkpoint.pt", "start.pt"):
            (self.last_run / name).unlink(missing_ok=True)
        self.predictions.forget_others(self.model)


def _own(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The model's settings, those that a client has put under its name included."""
    inner = request.get(model)
    flat = {key: value for key, value in request.items() if not isinstance(value, Mapping)}
    return {**flat, **(inner if isinstance(inner, Mapping) else {})}


def _write_out(path: Path) -> None:
    """Make sure that a file's content is on the disk, so that a power cut after a rename leaves no empty one."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
