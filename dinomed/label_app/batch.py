"""Segmentation of many scans in advance."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from dinomed.errors import DinomedError
from dinomed.label_app.background import LAST_LINE_S
from dinomed.label_app.studies import Studies

logger = logging.getLogger(__name__)


class Batch(BatchInferTask):
    """One scan after the other, on the app's device; a scan that cannot be segmented is left out."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Studies, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Segment the scans that the request chooses: for each by name what `infer` answered, or why it is left out.

        Raises:
            DinomedError: If no scan could be segmented.
        """
        names = sorted(self.get_images(request, datastore))
        names = names[: request.get("max_batch_size") or len(names)]
        asked = {
            "model": request.get("model"),
            "save_label": request.get("save_label", True),
            "label_tag": request.get("label_tag") or DefaultLabelTag.ORIGINAL.value,
        }
        results: dict[str, Any] = {}
        left_out = 0
        for number, name in enumerate(names, 1):
            try:
                datastore.scan(name)  # by its name alone: a path would reach any file
                answer = infer({**asked, "image": name}, datastore)
                Path(answer.pop("file")).unlink(missing_ok=True)
                results[name] = answer
                logger.info("%d of %d: %s is segmented", number, len(names), name)
            except (DinomedError, MONAILabelException) as error:
                reason = error.msg if isinstance(error, MONAILabelException) else str(error)
                left_out += 1
                results[name] = {"left_out": reason}
                logger.warning("%d of %d: %s is left out: %s", number, len(names), name, reason)
        time.sleep(LAST_LINE_S)
        if names and left_out == len(names):
            raise DinomedError(f"none of {len(names)} scans could be segmented; the log says why")
        return results
