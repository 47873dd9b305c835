"""Which scan to label next."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.strategy import Strategy

from dinomed.errors import DinomedError, InputError
from dinomed.label_app.embeddings import Embeddings, least_like
from dinomed.label_app.models import LabelModel
from dinomed.label_app.predictions import Predictions
from dinomed.label_app.studies import Studies

logger = logging.getLogger(__name__)

SECONDS = 60
Choice = dict[str, Any]


class NoScanLeftError(DinomedError):
    """There is nothing more to label."""


def unlabelled(datastore: Studies) -> list[str]:
    """Names of the scans without a submitted label, sorted.

    Raises:
        NoScanLeftError: If there is none.
    """
    names = sorted(datastore.get_unlabeled_images())
    if not names:
        count = len(datastore.list_images())
        what = f"all {count} scans have a submitted label" if count else "there are no scans in the folder"
        raise NoScanLeftError(f"{what}; add scans to go on")
    return names


class First(Strategy):
    """The first by name."""

    def __init__(self) -> None:
        super().__init__("the first scan by name that has no label")

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> Choice:
        """Choose."""
        return {"id": unlabelled(datastore)[0]}


class Random(Strategy):
    """Any."""

    def __init__(self) -> None:
        super().__init__("any scan that has no label")

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> Choice:
        """Choose."""
        return {"id": random.choice(unlabelled(datastore))}


class _OfModel(Strategy):
    """A strategy that asks a model, for a limited time at each request; what it has learnt of a scan is kept."""

    def __init__(self, description: str, models: Mapping[str, LabelModel]) -> None:
        super().__init__(description)
        self.models = models

    def info(self) -> dict[str, Any]:
        """Describe it with its settings."""
        return {"description": self.description, "config": {"model": list(self.models), "seconds": SECONDS}}

    def model_of(self, request: Mapping[str, Any]) -> LabelModel:
        """The model that the request names, or the first."""
        name = request.get("model") or next(iter(self.models))
        name = name[0] if isinstance(name, list) else name
        if not isinstance(name, str) or name not in self.models:
            raise InputError(f"model is {name!r}; choose from {', '.join(self.models)}")
        return self.models[name]

    def look(
        self,
        names: list[str],
        request: Mapping[str, Any],
        known: Callable[[str], Any],
        make: Callable[[str], Any],
        labelled: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What is known of scans: of all that were looked at before, and of as many more as the time allows.

        Args:
            names: Scans to choose from; one of them is looked at whatever the time.
            request: May hold `seconds`.
            known: What is known of a scan.
            make: Looks at a scan.
            labelled: Scans to look at before them.

        Raises:
            DinomedError: If the time is no number above 0, or none of the scans to choose from can be read.
        """
        seconds = request.get("seconds", SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise InputError(f"seconds is {seconds!r}; give a number above 0")
        found: dict[str, Any] = {}
        refusal: DinomedError = NoScanLeftError("the scans without a label were removed; add scans to go on")
        reached = False
        ends = time.monotonic() + seconds
        for name in [*labelled, *names]:
            try:
                fact = known(name)
                if fact is None and (time.monotonic() < ends or not (reached or name in labelled)):
                    fact = make(name)
            except ImageNotFoundException:  # removed meanwhile
                continue
            except DinomedError as error:
                logger.warning("%s is left out: %s", name, error)
                refusal = error
                continue
            if fact is not None:
                found[name] = fact
                reached = reached or name not in labelled
        if not reached:
            raise refusal
        return found


class Uncertainty(_OfModel):
    """The scan of which the model is least sure."""

    def __init__(self, models: Mapping[str, LabelModel], predictions: Predictions) -> None:
        super().__init__("the scan that the model is least sure of, by its mean confidence in what it labelled", models)
        self.predictions = predictions

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> Choice:
        """Choose."""
        model, names = self.model_of(request), unlabelled(datastore)
        found = self.look(
            *(names, request),
            lambda name: self.predictions.known(model, datastore.scan(name)),
            lambda name: self.predictions.make(model, datastore.scan(name)),
        )
        uncertain = {name: predicted.uncertainty for name, predicted in found.items()}
        chosen = max(uncertain, key=lambda name: uncertain[name])
        return {"id": chosen, "uncertainty": round(uncertain[chosen], 4), "looked_at": len(found), "of": len(names)}


class Coverage(_OfModel):
    """The scan that is least like those labelled."""

    def __init__(self, models: Mapping[str, LabelModel], embeddings: Embeddings) -> None:
        super().__init__("the scan least like those labelled, by DINOv3 features; at first the most typical", models)
        self.embeddings = embeddings

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> Choice:
        """Choose."""
        model, names = self.model_of(request), unlabelled(datastore)
        labelled = sorted(datastore.get_labeled_images())
        vectors = self.look(
            *(names, request),
            lambda name: self.embeddings.known(model, datastore.scan(name)),
            lambda name: self.embeddings.make(model, datastore.scan(name)),
            labelled,
        )
        candidates = [name for name in names if name in vectors]
        reference = [vectors[name] for name in labelled if name in vectors]
        chosen, distance = least_like({name: vectors[name] for name in candidates}, reference)
        return {"id": chosen, "distance": round(distance, 4), "looked_at": len(candidates), "of": len(names)}
