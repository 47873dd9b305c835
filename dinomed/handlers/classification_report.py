"""The report of an evaluation of classified cases: scores with intervals, plots, errors, and one HTML page.

`docs/classification.md` describes every file.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from dinomed.errors import InputError
from dinomed.handlers.classification_cases import ClassifiedCase, classified_case, groups_of, merged
from dinomed.handlers.classification_page import ClassificationPage
from dinomed.handlers.multiclass_page import multiclass_html
from dinomed.handlers.multilabel_page import multilabel_html
from dinomed.handlers.processes import gathered, rank
from dinomed.handlers.tables import to_csv
from dinomed.handlers.whole_files import write_file
from dinomed.metrics.classification_summary import Draws, multiclass_summary, multilabel_summary
from dinomed.transforms.provenance import describe_transforms, file_sha256, software_versions, to_json
from dinomed.transforms.report import NOTICE

logger = logging.getLogger(__name__)

SCHEMA = "dinomed-classification-1"
KINDS = ("multilabel", "multiclass")
DIGITS = 6


class ClassificationReport:
    """Collect the probabilities of an evaluation; when it is over, write `metrics.json`, `cases.csv`, `report.html`.

    Attach it to an evaluator and call `write` after its run, in every process. In a distributed run the first process
    writes what one process alone would have written, byte for byte: cases are taken in the order of their names, and
    one that several processes had counts once. For several tasks make one report each, with its own keys and folder.

    Items of the evaluator's output hold probabilities (K,), the label, (K,) of 0 and 1 or the number of a class, a
    name "case", and "patient" and "study" where they are known. Patients are what intervals draw; where the data names
    none, studies stand for them, else cases.

    Args:
        folder: Where the files go.
        label_names: K different names, in order.
        about: What the report says of the run: "bundle", "version", "data", "part" (of the split) and any more; a list
            "warnings" goes with the report's own, above all numbers.
        kind: "multilabel" (any number of labels a case) or "multiclass" (exactly one).
        thresholds: Of probabilities, for "multilabel": one for all, one for each label in order, or by name; None where
            a label has none, and then it gets no decision.
        threshold_source: Where the thresholds come from, in words.
        bootstrap_repeats: Draws of patients for an interval.
        seed: Of the draws.
        pred_key: Of the probabilities.
        label_key: Of the label.
        case_word: What cases are, in the plural, such as "series".
        preprocessing: The chain of transforms, described in the report.
        weights_path: File of the weights, named with its checksum.

    Raises:
        ValueError: If the kind, names or thresholds do not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        label_names: Sequence[str],
        about: Mapping[str, Any] | None = None,
        kind: str = "multilabel",
        thresholds: Mapping[str, float | None] | Sequence[float | None] | float | None = None,
        threshold_source: str = "the validation part",
        bootstrap_repeats: int = 1000,
        seed: int = 0,
        pred_key: str = "pred",
        label_key: str = "label",
        case_word: str = "cases",
        preprocessing: Any = (),
        weights_path: str | Path | None = None,
    ) -> None:
        self.label_names = [str(name) for name in label_names]
        if not self.label_names or len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"label_names must be different names, at least one, not {self.label_names}")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        if kind == "multiclass" and thresholds is not None:
            raise ValueError("a multiclass report has no thresholds: the most probable class is the decision")
        if bootstrap_repeats < 1:
            raise ValueError(f"bootstrap_repeats must be at least 1, not {bootstrap_repeats}")
        self.folder = Path(folder)
        self.about = dict(about or {})
        self.kind = kind
        self.thresholds = _in_order(thresholds, self.label_names)
        self.threshold_source = threshold_source
        self.bootstrap_repeats = bootstrap_repeats
        self.seed = seed
        self.pred_key = pred_key
        self.label_key = label_key
        self.case_word = case_word
        self.preprocessing = preprocessing
        self.weights_path = None if weights_path is None else Path(weights_path)
        self.entries: list[ClassifiedCase] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.entries.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_batch)

    def add_batch(self, engine: Engine) -> None:
        """Collect the cases of a batch.

        Raises:
            InputError: As `add_case`.
        """
        for item in engine.state.output:
            self.add_case(item)

    def add_case(self, item: Mapping[str, Any]) -> None:
        """Collect a case.

        Args:
            item: Probabilities, label, "case", and "patient" and "study" where they are known.

        Raises:
            InputError: If something is missing or does not fit.
        """
        self.entries.append(classified_case(item, len(self.label_names), self.kind, self.pred_key, self.label_key))

    def write(self) -> None:
        """Write all files; in a distributed run every process calls it, and the first one writes.

        Raises:
            InputError: If no process has seen a case, or two cases have the same name.
            OutputError: If a file cannot be written.
        """
        cases = merged([entry for part in gathered(self.entries) for entry in part])
        if not cases:
            raise InputError("no case was evaluated; set the evaluation's data to a part with labelled cases")
        if rank() == 0:
            self._write(cases)

    def _write(self, cases: Sequence[ClassifiedCase]) -> None:
        probs = np.stack([case.probs for case in cases])
        labels = np.stack([case.label for case in cases])
        groups, counts, unit, warnings = groups_of(cases)
        draws = Draws(groups, self.bootstrap_repeats, self.seed)
        if self.kind == "multilabel":
            found = multilabel_summary(probs, labels, self.label_names, self.thresholds, draws)
        else:
            found = multiclass_summary(probs, labels, self.label_names, draws)
        part = str(self.about.get("part") or "").lower()
        told = [str(text) for text in self.about.get("warnings") or ()]
        if part.startswith("val"):
            chosen = ", thresholds and calibration" if "validation" in self.threshold_source else ""
            told.append(
                f"These are cases of the validation part, on which the best weights{chosen} were chosen: scores look "
                "better than they are."
            )
        elif part.startswith("train") or part == "all":
            told.append("Among these cases are those that were trained on: the scores say nothing of new cases.")
        found["warnings"] = told + warnings + found["warnings"]
        about = self._about(draws, unit)
        content = {"schema": SCHEMA, "notice": NOTICE, "kind": self.kind, "about": about, "counts": counts, **found}
        rows = self._rows(cases)
        page = ClassificationPage(
            title=_title(about),
            about=about,
            counts=counts,
            found=found,
            label_names=self.label_names,
            threshold_source=self.threshold_source,
            thresholds_chosen_elsewhere=part == "test" and not told,
            unit=unit,
            repeats=self.bootstrap_repeats,
            case_word=self.case_word,
            cases=cases,
            probs=probs,
            labels=labels,
        )
        html = multilabel_html(page) if self.kind == "multilabel" else multiclass_html(page)
        text = json.dumps(_rounded(to_json(content)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        for name, file in (("metrics.json", text), ("cases.csv", to_csv(rows)), ("report.html", html)):
            write_file(self.folder / name, file)
        score = "macro_auroc" if self.kind == "multilabel" else "accuracy"
        logger.info(
            "%s of %d cases: %s; see %s", score, len(cases), found["summary"][score], self.folder / "report.html"
        )

    def _rows(self, cases: Sequence[ClassifiedCase]) -> list[dict[str, Any]]:
        """A row a case: label, probability and decision of each label, or the right and the predicted class."""
        rows = []
        for case in cases:
            row: dict[str, Any] = {"case": case.case, "patient": case.patient or "", "study": case.study or ""}
            if self.kind == "multilabel":
                for k, (name, threshold) in enumerate(zip(self.label_names, self.thresholds, strict=True)):
                    row[f"{name}_label"] = int(case.label[k])
                    row[f"{name}_probability"] = _digits(case.probs[k])
                    row[f"{name}_decision"] = "" if threshold is None else int(case.probs[k] >= threshold)
            else:
                decided = int(case.probs.argmax())
                row |= {"label": self.label_names[int(case.label)], "decision": self.label_names[decided]}
                row |= {"right": int(decided == int(case.label)), "probability": _digits(case.probs[decided])}
                row |= {f"{name}_probability": _digits(case.probs[k]) for k, name in enumerate(self.label_names)}
            rows.append(row)
        return rows

    def _about(self, draws: Draws, unit: str) -> dict[str, Any]:
        about: dict[str, Any] = to_json({key: value for key, value in self.about.items() if key != "warnings"})
        if self.weights_path is not None:
            about["weights_file"] = self.weights_path.name
            about["weights_sha256"] = file_sha256(self.weights_path) if self.weights_path.is_file() else None
        if self.kind == "multilabel":
            known = any(threshold is not None for threshold in self.thresholds)
            about["threshold_source"] = self.threshold_source if known else None
        about["bootstrap"] = {"repeats": draws.repeats, "seed": draws.seed, "level": 0.95, "unit": unit}
        about["preprocessing"] = describe_transforms(self.preprocessing)
        about["software"] = software_versions()
        return about


def _title(about: Mapping[str, Any]) -> str:
    """Name what was evaluated, so that the pages of several tasks can be told apart."""
    named = " ".join(str(about[key]) for key in ("bundle", "version", "part") if about.get(key)) or "cases"
    return f"{named}, task {about['task']}" if about.get("task") else named


def _in_order(thresholds: Any, names: Sequence[str]) -> list[float | None]:
    """Bring thresholds in the order of the labels."""
    if thresholds is None or isinstance(thresholds, (int, float)):
        values = [thresholds] * len(names)
    elif isinstance(thresholds, Mapping):
        unknown = [name for name in thresholds if name not in names]
        if unknown:
            raise ValueError(f"thresholds name {', '.join(map(str, unknown))}, which label_names do not: {list(names)}")
        values = [thresholds.get(name) for name in names]
    else:
        values = list(thresholds)
        if len(values) != len(names):
            raise ValueError(f"{len(names)} labels need as many thresholds, not {len(values)}")
    for name, value in zip(names, values, strict=True):
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"the threshold of {name} is {value}; give a probability or None")
    return [None if value is None else float(value) for value in values]


def _digits(value: float) -> str:
    return repr(round(float(value), DIGITS))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS + 3}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
