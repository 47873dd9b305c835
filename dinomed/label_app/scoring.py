"""How well a model's answers agree with the labels that were submitted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
import torch
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.scoring import ScoringMethod

from dinomed.errors import DinomedError
from dinomed.label_app.models import LabelModel
from dinomed.label_app.predictions import Predictions
from dinomed.label_app.studies import Studies
from dinomed.metrics.overlap import confusion_matrix, dice_scores

logger = logging.getLogger(__name__)


class Dice(ScoringMethod):
    """Dice of the model's own answer with the submitted label, noted with the scan."""

    def __init__(self, models: Mapping[str, LabelModel], predictions: Predictions) -> None:
        super().__init__("Dice of the model's answer with the submitted label; on scans it was trained on it is high")
        self.models = models
        self.predictions = predictions

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> dict[str, Any]:
        """Score every labelled scan."""
        scored = {}
        for image_id in sorted(datastore.get_labeled_images()):
            try:
                scored[image_id] = self.score(image_id, datastore)
            except (DinomedError, ImageNotFoundException) as error:
                logger.warning("%s is not scored: %s", image_id, error)
        return scored

    def score(self, image_id: str, datastore: Studies, only_known: bool = False) -> dict[str, Any] | None:
        """Score one scan and note it with the scan's facts.

        Args:
            image_id: The scan.
            datastore: Where it lies.
            only_known: Whether to leave it where the model has not been asked for the scan yet.

        Raises:
            ImageNotFoundException: If there is no such scan.
            DinomedError: If the scan or the label cannot be read, or the label is none of the model's.
        """
        named = datastore.get_label_info(image_id, DefaultLabelTag.FINAL.value).get("model")
        model = self.models.get(str(named)) or next(iter(self.models.values()))
        scan = datastore.scan(image_id)
        predicted = self.predictions.known(model, scan) if only_known else self.predictions.make(model, scan)
        if predicted is None:
            return None
        found = torch.from_numpy(np.asarray(nibabel.load(predicted.labels).dataobj))  # it may be empty
        wanted = torch.from_numpy(datastore.submitted(image_id, model))
        scores = dice_scores(confusion_matrix(found, wanted, max(model.label_names) + 1))[1:]
        by_label = {
            name: round(float(scores[value - 1]), 4)
            for name, value in model.labels.items()
            if not torch.isnan(scores[value - 1])
        }
        mean = round(sum(by_label.values()) / len(by_label), 4) if by_label else None
        facts = {"dice": mean, "dice_by_label": by_label, "dice_model": model.name}
        datastore.update_image_info(image_id, {**facts, "dice_weights": predicted.facts["weights_sha256"]})
        return facts
