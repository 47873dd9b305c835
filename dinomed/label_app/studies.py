"""The folder of scans and submitted labels: MONAI Label's local datastore, with checks before anything is kept."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from dinomed.errors import InputError
from dinomed.handlers.whole_files import write_file
from dinomed.label_app.client_values import OF_THE_SERVER, check_facts, check_name
from dinomed.label_app.models import LabelModel
from dinomed.label_app.submissions import Labels, named, numbers_by_name, read_labels, to_model_labels
from dinomed.transforms.provenance import to_json
from dinomed.transforms.volumes import read_grid, write_labels

logger = logging.getLogger(__name__)

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mgz", ".mgh")
FINAL = DefaultLabelTag.FINAL.value


class Studies(LocalDatastore):
    """A folder of scans.

    Args:
        folder: Holds the scans; labels go into its folder `labels`, facts into `datastore_v2.json`.
        models: Whose labels may be submitted.
        auto_reload: Whether files that appear in the folder are noticed.
    """

    def __init__(self, folder: str, models: Mapping[str, LabelModel], auto_reload: bool = True) -> None:
        self.models = models
        self._left_out: set[str] = set()
        super().__init__(folder, extensions=[f"*{ending}" for ending in ENDINGS], auto_reload=auto_reload)
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
            InputError: If it is no scan, cannot be called so, or there is one of this name.
        """
        facts = check_facts(image_info or {}, "what is said of a scan", OF_THE_SERVER)
        if not image_filename.lower().endswith(ENDINGS):
            raise InputError(f"what was sent is not called as a scan is; its name must end in {', '.join(ENDINGS)}")
        with named(image_filename, "what was sent"):
            read_grid(image_filename)
        if image_id in self._datastore.objects:
            raise InputError(f"there is a scan {image_id!r} already; give the new one another name")
        check_name(image_id, "a scan's name")
        return str(super().add_image(image_id, image_filename, facts))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label map on its scan's grid with its bundle's numbers, all of it or nothing.

        Raises:
            ImageNotFoundException: If there is no such scan.
            InputError: If the label map cannot be used, see `dinomed.label_app.submissions`.
        """
        scan = self.scan(image_id)
        check_name(label_tag, f"a tag such as {FINAL}")
        info = check_facts(label_info or {}, "what is said of a label map")
        with named(scan, "the scan"):
            grid = read_grid(scan)
        labels = read_labels(label_filename, grid)
        model = self._model_of(info)
        if model is not None:
            names = numbers_by_name(info.get("label_info"))
            labels = to_model_labels(labels, names, model.labels, model.name)
            info |= {"model": model.name, "label_names": model.labels}
        elif label_tag == FINAL:
            raise InputError(f"say whose labels these are; send one of {', '.join(self.models)} as 'model' in params")
        folder = Path(self._datastore.label_path(label_tag))
        with FileLock(self._lock_file):
            folder.mkdir(parents=True, exist_ok=True)
            write_labels(labels, grid, folder / f"{image_id}.nii.gz")
        info |= {"ts": int(time.time()), "name": f"{image_id}.nii.gz"}
        self._init_from_datastore_file()
        self._datastore.objects[image_id].labels[label_tag] = DataModel(info=info, ext=".nii.gz")
        self._update_datastore_file()
        return image_id

    def labelled_for(self, model: LabelModel) -> list[str]:
        """Names of the scans with a submitted label of a bundle, sorted; what was laid there by hand is looked into."""
        names = []
        for image_id in sorted(self.get_labeled_images()):
            owner = self.get_label_info(image_id, FINAL).get("model")
            if owner is None:
                try:
                    self.submitted(image_id, model)
                except (InputError, ImageNotFoundException) as error:
                    logger.warning("the label of %s is none of %s: %s", image_id, model.name, error)
                    continue
            if owner in (None, model.name):
                names.append(image_id)
        return names

    def submitted(self, image_id: str, model: LabelModel) -> Labels:
        """The submitted label map of a scan, uint8 (X, Y, Z).

        Raises:
            ImageNotFoundException: If there is no such scan.
            InputError: If it does not lie on the scan's grid, or holds other numbers than the bundle's.
        """
        labels = read_labels(self.get_label_uri(image_id, FINAL), read_grid(self.scan(image_id)))
        return to_model_labels(labels, {}, model.labels, model.name)

    def _model_of(self, info: Mapping[str, Any]) -> LabelModel | None:
        """The bundle whose labels are submitted: the one that is named, or the only one."""
        named = self.models.get(str(info.get("model", "")))
        return named or (next(iter(self.models.values())) if len(self.models) == 1 else None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add facts to a scan's; what another process has noted meanwhile stays.

        Raises:
            ImageNotFoundException: If there is no such scan.
            InputError: If they cannot be kept.
        """
        facts = check_facts(info, "what is said of a scan", OF_THE_SERVER)
        self._init_from_datastore_file()
        super().update_image_info(image_id, facts)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add facts to a label's.

        Raises:
            LabelNotFoundException: If there is no such label.
            InputError: If they cannot be kept.
        """
        facts = check_facts(info, "what is said of a label map")
        self._init_from_datastore_file()
        super().update_label_info(label_id, label_tag, facts)

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
        table = to_json(self._datastore.model_dump(exclude={"base_path"}))
        write_file(path, json.dumps(table, indent=2, allow_nan=False))
        self._config_ts = path.stat().st_mtime

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the folder's table where it is another one; numbers that are none become null."""
        before = self._config_ts
        super()._init_from_datastore_file(throw_exception)
        if self._config_ts != before:
            for entry in self._datastore.objects.values():
                for part in (entry.image, *entry.labels.values()):
                    part.info = to_json(part.info)

    def _to_id(self, file: str) -> tuple[str, str]:
        """Name of a scan and the ending of its file, in small letters or large ones."""
        ending = next((ending for ending in ENDINGS if file.lower().endswith(ending)), "")
        length = len(file) - len(ending)
        return file[:length], file[length:]

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """Files of scans or labels, one for each name; hidden ones and folders are none.

        Where two would have one name, the one that is known already stays, or the first.
        """
        files = [file for file in os.listdir(path) if not file.startswith(".") and file.lower().endswith(ENDINGS)]
        chosen: dict[str, str] = {}
        for file in sorted(files, key=lambda file: (not self._is_known(file), file)):
            if not os.path.isfile(os.path.join(path, file)):
                continue
            first = chosen.setdefault(self._to_id(file)[0], file)
            if first != file and file not in self._left_out:
                self._left_out.add(file)
                logger.warning("%s is left out: %s has the same name; give it another one", file, first)
        return {file: file for file in chosen.values()}

    def _is_known(self, file: str) -> bool:
        name, ending = self._to_id(file)
        known = self._datastore.objects.get(name)
        return known is not None and known.image.ext == ending

    def _remove_non_existing(self) -> int:
        """Forget files that are gone; the labels of a scan are not those of another that has its name now."""
        self._init_from_datastore_file()
        names = {self._to_id(file)[0]: file for file in self._list_files(self._datastore.image_path(), ())}
        for image_id, entry in self._datastore.objects.items():
            if image_id in names and names[image_id] != image_id + entry.image.ext:
                for tag, label in entry.labels.items():
                    kept = Path(self._datastore.label_path(tag), image_id + label.ext)
                    aside = kept.with_name(f"{image_id}{entry.image.ext}{label.ext}")
                    if kept.is_file():
                        kept.replace(aside)
                        logger.warning("%s is another scan now; the label of the one before is %s", image_id, aside)
        return int(super()._remove_non_existing())
