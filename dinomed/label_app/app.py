"""The app that MONAI Label's server serves."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from dinomed import __version__
from dinomed.errors import DinomedError, InputError
from dinomed.label_app.background import end_with_server, own_processes, stop_with_server
from dinomed.label_app.batch import Batch
from dinomed.label_app.client_values import check_name
from dinomed.label_app.embeddings import Embeddings
from dinomed.label_app.infer import Propagate, Segment
from dinomed.label_app.models import find_models
from dinomed.label_app.predictions import Predictions
from dinomed.label_app.scoring import Dice
from dinomed.label_app.strategies import Coverage, First, Random, Uncertainty
from dinomed.label_app.studies import Studies
from dinomed.label_app.submissions import EmptyLabelsError, named
from dinomed.label_app.training import FineTune
from dinomed.label_app.workspace import workspace_of

logger = logging.getLogger(__name__)


class MyApp(MONAILabelApp):
    """Segmentation, training, strategies and scores for every segmentation bundle that has weights.

    Args:
        app_dir: Folder with `main.py`; weights and predictions go there unless it is this package.
        studies: Folder of scans.
        conf: `device` may be "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: If the studies are no folder, or no bundle segments scans.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        server = sys.modules.get("monailabel.app")
        if server is None:
            end_with_server()
        if studies.startswith(("http://", "https://")):
            raise InputError(f"{studies}: scans are served from a folder only; name one with --studies")
        self.workspace = workspace = workspace_of(app_dir, studies)
        self.models = find_models(workspace / "model", str((conf or {}).get("device", "auto")))
        if not self.models:
            raise InputError(
                "no bundle with weights segments scans here; start in the folder that holds bundles/, or name the "
                "folder of the bundles in DINOMED_BUNDLES"
            )
        self.predictions = Predictions(workspace / "predictions")
        self.embeddings = Embeddings(workspace / "embeddings")
        self._dice = Dice(self.models, self.predictions)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name="dinomed",
            description="DINOv3 segmentation of CT and MRI",
            version=__version__,
        )
        self._auto_update_scoring = False  # a process for each next sample; scores are made when labels are submitted
        if server is not None:
            from dinomed.label_app.refusals import install

            install(server.app, self)
            own_processes()
            self._end = asyncio.get_running_loop().create_task(stop_with_server())
        logger.info("models: %s; weights and predictions: %s", ", ".join(self.models), workspace)

    @property
    def infers(self) -> dict[str, InferTask]:
        """Models by name."""
        return dict(self._infers)

    @property
    def scoring_methods(self) -> dict[str, ScoringMethod]:
        """Scoring methods by name."""
        return dict(self._scoring_methods)

    def init_datastore(self) -> Studies:
        """Open the folder of scans."""
        return Studies(self.studies, self.models, settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD)

    def init_infers(self) -> dict[str, InferTask]:
        """Offer automatic segmentation by each bundle, and propagation."""
        segmenting = {name: Segment(model, self.predictions) for name, model in self.models.items()}
        return {**segmenting, "propagate": Propagate(self.models)}

    def init_trainers(self) -> dict[str, FineTune]:
        """Offer a training of each bundle."""
        return {name: FineTune(model, self.predictions) for name, model in self.models.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Offer four ways to the next scan."""
        return {
            "random": Random(),
            "first": First(),
            "uncertainty": Uncertainty(self.models, self.predictions),
            "coverage": Coverage(self.models, self.embeddings),
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Offer Dice."""
        return {"dice": self._dice}

    def init_batch_infer(self) -> Batch:
        """Offer segmentation of many scans."""
        return Batch()

    def known(self, kind: str, name: str, those: Mapping[str, Any]) -> Any:
        """Return one of several by name.

        Raises:
            MONAILabelException: If there is none of this name.
        """
        if name not in those:
            offered = ", ".join(those) or "none"
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"there is no {kind} {name!r}; offered: {offered}")
        return those[name]

    def check_training(self, name: str | None, params: Mapping[str, Any]) -> None:
        """Refuse a training that could not begin.

        Raises:
            MONAILabelException: If there is no such model.
            InputError: If a setting makes no sense, or there is nothing to learn from.
        """
        names = list(self._trainers) if name is None else [name]
        for each in names:
            task = self.known("model to train", each, self._trainers)
            inner = params.get(each)
            flat = {key: value for key, value in params.items() if key not in self._trainers}
            task.check({**flat, **(inner if isinstance(inner, Mapping) else {})}, self.datastore())

    def infer(self, request: Mapping[str, Any], datastore: Studies | None = None) -> dict[str, Any]:
        """Run a model on a scan of the folder, or on the path of a file that the server has taken in.

        Paths that clients name are refused before, in `dinomed.label_app.refusals`.

        Raises:
            MONAILabelException: If there is no such model.
            ImageNotFoundException: If there is no such scan.
            DinomedError: If the scan or what is sent with it cannot be used.
        """
        studies: Studies = datastore or self.datastore()
        task = self.known("model", str(request.get("model")), self._infers)
        image = str(request.get("image", ""))
        path = studies.get_image_uri(image)
        if not path and not (os.path.isabs(image) and os.path.exists(image)):
            raise ImageNotFoundException(f"there is no scan {image!r} in the folder of scans")
        asked = {**copy.deepcopy(dict(request)), "image": path or image}
        tag = str(request.get("label_tag", DefaultLabelTag.ORIGINAL.value))
        check_name(tag, "a tag")
        with named(asked["image"], "the scan"):
            file, params = task(asked)
        label = file
        if path and request.get("save_label"):
            try:
                label = studies.save_label(image, file, tag, {"model": request["model"], "params": params})
            except EmptyLabelsError as error:
                logger.warning("the answer for %s is not kept: %s", image, error)
        return {"label": label, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": params}

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the scan to label next.

        Raises:
            MONAILabelException: If there is no such strategy.
            DinomedError: If no scan is left, or a setting makes no sense.
        """
        strategy = self.known("strategy", str(request.get("strategy") or "random"), self._strategies)
        chosen: dict[str, Any] = strategy(request, self.datastore())
        return {**chosen, "path": self.datastore().get_image_uri(chosen["id"])}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Score what the model had answered, if it was asked for this scan."""
        try:
            return {"score": self._dice.score(image_id, self.datastore(), only_known=True)}
        except (DinomedError, ImageNotFoundException) as error:
            logger.warning("%s is not scored: %s", image_id, error)
            return {}


__all__ = ["MyApp"]
