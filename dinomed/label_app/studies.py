"""The folder of scans and submitted labels: MONAI Label's local datastore, with checks before anything is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from dinomed.errors import InputError
from dinomed.handlers.whole_files import write_file
from dinomed.label_app.models import LabelModel
from dinomed.label_app.submissions import named, numbers_by_name, read_labels, to_model_labels
from dinomed.transforms.volumes import read_grid, write_labels

PATTERNS = ("*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.mgz", "*.mgh")


class Studies(LocalDatastore):
    """A folder of scans.

    Args:
        folder: Holds the scans; labels go into its folder `labels`, facts into `datastore_v2.json`.
        models: Whose labels may be submitted.
        auto_reload: Whether files that appear in the folder are noticed.
    """

    def __init__(self, folder: str, models: Mapping[str, LabelModel], auto_reload: bool = True) -> None:
        self.models = models
        super().__init__(folder, extensions=PATTERNS, auto_reload=auto_reload)
        if hasattr(self, "_handler"):  # a whole file that takes the place of the old one is a move
            self._handler.on_moved = self._on_moved

    def _on_moved(self, event: Any) -> None:
        """Notice a scan that was copied under another name first, or what another process has noted."""
        moved, table = Path(event.dest_path), Path(self._datastore_config_path)
        if moved.parent == table.parent and moved.name != table.name:
            self.refresh()
        self._init_from_datastore_file()

    def scan(self, image_id: str) -> str:
        """Path of a scan.

        Raises:
            ImageNotFoundException: If there is none of this name.
        """
        uri: str = self.get_image_uri(image_id)
        if not uri:
            raise ImageNotFoundException(f"there is no scan {image_id!r} in the folder of scans")
        return uri

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take a scan in, after reading its header.

        Raises:
            InputError: If it is no scan, or there is one of this name.
        """
        with named(image_filename, "what was sent"):
            read_grid(image_filename)
        if image_id in self._datastore.objects:
            raise InputError(f"there is a scan {image_id!r} already; give the new one another name")
        if Path(image_id).name != image_id:
            raise InputError(f"{image_id!r} cannot be a scan's name; leave slashes out")
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label map on its scan's grid with its bundle's numbers, all of it or nothing.

        Raises:
            ImageNotFoundException: If there is no such scan.
            InputError: If the label map cannot be used, see `dinomed.label_app.submissions`.
        """
        scan = self.scan(image_id)
        if Path(label_tag).name != label_tag or label_tag in (".", ".."):
            raise InputError(f"{label_tag!r} cannot be a tag; take {DefaultLabelTag.FINAL.value}")
        grid = read_grid(scan)
        info = dict(label_info or {})
        labels = read_labels(label_filename, grid)
        model = self._model_of(info)
        if model is not None:
            names = numbers_by_name(info.get("label_info"))
            labels = to_model_labels(labels, names, model.labels, model.name)
            info |= {"model": model.name, "label_names": model.labels}
        folder = Path(self._datastore.label_path(label_tag))
        with FileLock(self._lock_file):
            folder.mkdir(parents=True, exist_ok=True)
            write_labels(labels, grid, folder / f"{image_id}.nii.gz")
        info |= {"ts": int(time.time()), "name": f"{image_id}.nii.gz"}
        self._init_from_datastore_file()
        self._datastore.objects[image_id].labels[label_tag] = DataModel(info=info, ext=".nii.gz")
        self._update_datastore_file()
        return image_id

    def _model_of(self, info: Mapping[str, Any]) -> LabelModel | None:
        """The bundle whose labels are submitted: the one that is named, or the only one."""
        named = self.models.get(str(info.get("model", "")))
        return named or (next(iter(self.models.values())) if len(self.models) == 1 else None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add facts to a scan's; what another process has noted meanwhile stays."""
        self._init_from_datastore_file()
        super().update_image_info(image_id, info)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Pack scans and submitted labels.

        Raises:
            InputError: If there are none.
        """
        if not self.datalist():
            raise InputError("no labels have been submitted yet, so there is nothing to pack")
        return str(super().get_dataset_archive(limit_cases))

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the folder's table, the old or the new one whatever happens."""
        if lock:
            with FileLock(self._lock_file):
                self._update_datastore_file(lock=False)
            return
        path = Path(self._datastore_config_path)
        write_file(path, json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str))
        self._config_ts = path.stat().st_mtime
