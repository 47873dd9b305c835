"""Splits: groups stay together, every label is in every part that can have it, and nothing but the seed decides."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series_tables import LABELS, row_of, write_ct, write_table

from dinomed.data.series_table import PARTS, read_series_table
from dinomed.data.splits import FRACTIONS, group_series, split_of, split_table, write_split
from dinomed.data.stratification import stratify
from dinomed.errors import InputError


def table_of(folder: Path, rows: list[dict], **options):
    return read_series_table(write_table(folder / "table.csv", rows), check="nothing", **options)


def patterns(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    generator = random.Random(seed)
    kinds = [tuple(int(generator.random() < 0.3) for _ in LABELS[1:]) for _ in range(count)]
    return [(int(any(kind)), *kind) for kind in kinds]


def parts_by_series(split) -> dict[str, str]:
    return {series.series_uid: series.part for series in split.table.series}


def counts(split, label: str, value: int = 1) -> list[int]:
    place = LABELS.index(label)
    return [sum(each.labels[place] == value for each in split.series(part)) for part in PARTS]


def test_twenty_positives_of_one_pattern_do_not_all_go_to_the_test(tmp_path):
    rows = [row_of(f"n{k}") for k in range(40)]
    rows += [row_of(f"p{k}", (1, 0, 0, 0, 0, 1)) for k in range(20)]
    split = split_table(table_of(tmp_path, rows))
    assert counts(split, "subdural") == [14, 3, 3]
    assert counts(split, "any", 0) == [28, 6, 6]


def test_rare_single_patterns_are_in_every_part(tmp_path):
    rows = [row_of(f"n{k}") for k in range(40)]
    for place, label in enumerate(LABELS[1:], start=1):
        answers = [1, 0, 0, 0, 0, 0]
        answers[place] = 1
        rows += [row_of(f"{label}{k}", answers) for k in range(4)]
    for seed in range(5):
        split = split_table(table_of(tmp_path, rows), seed=seed)
        for label in LABELS[1:]:
            assert min(counts(split, label)) >= 1, (seed, label, counts(split, label))
        sizes = [len(split.series(part)) for part in PARTS]
        assert sizes == [42, 9, 9]


def test_exactly_three_groups_of_a_label_are_one_for_each_part(tmp_path):
    rows = [row_of(f"n{k}") for k in range(30)] + [row_of(f"p{k}", (1, 1, 0, 0, 0, 0)) for k in range(3)]
    split = split_table(table_of(tmp_path, rows))
    assert counts(split, "epidural") == [1, 1, 1]


def test_three_negatives_among_many_positives_are_one_for_each_part(tmp_path):
    rows = [row_of(f"p{k}", (1, 1, 0, 0, 0, 0)) for k in range(30)] + [row_of(f"n{k}") for k in range(3)]
    assert counts(split_table(table_of(tmp_path, rows)), "any", 0) == [1, 1, 1]


def test_labels_that_share_their_few_groups_are_all_covered(tmp_path):
    # Each group is needed by two labels: what suits one label alone leaves another uncovered.
    shared = [(1, 1, 1, 0, 0, 0), (1, 1, 0, 1, 0, 0), (1, 1, 0, 0, 1, 0), (1, 0, 1, 1, 0, 0), (1, 0, 1, 0, 1, 0)]
    shared += [(1, 0, 0, 1, 1, 0), (1, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 1)]
    rows = [row_of(f"n{k}") for k in range(12)] + [row_of(f"p{k}", answers) for k, answers in enumerate(shared)]
    for seed in range(5):
        split = split_table(table_of(tmp_path, rows), seed=seed)
        assert all(min(counts(split, label)) >= 1 for label in LABELS)


def test_a_patient_stays_together_and_so_does_a_study(tmp_path):
    rows = [
        {**row_of(f"{k}", answers, study_uid=f"study {k // 2}"), "patient_id": f"P{k // 6}" if k < 60 else ""}
        for k, answers in enumerate(patterns(120))
    ]
    split = split_table(table_of(tmp_path, rows))
    for series in split.table.series:
        same = [each for each in split.table.series if split.groups[each.row] == split.groups[series.row]]
        assert {each.part for each in same} == {series.part}
        assert len(same) == (6 if series.patient_id else 2)


def test_the_order_of_the_rows_and_repetition_change_nothing_and_the_seed_does(tmp_path):
    rows = [row_of(f"{k}", answers) for k, answers in enumerate(patterns(60))]
    first = parts_by_series(split_table(table_of(tmp_path, rows), seed=3))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert parts_by_series(split_table(table_of(tmp_path, shuffled), seed=3)) == first
    assert parts_by_series(split_table(table_of(tmp_path, rows), seed=4)) != first


@settings(max_examples=25, deadline=None)
@given(
    answers=st.lists(st.tuples(*[st.integers(0, 1)] * 4), min_size=12, max_size=60),
    seed=st.integers(0, 1000),
)
def test_parts_are_near_their_fractions_and_never_empty(answers, seed):
    given_answers = np.array(answers, np.int64)
    parts = stratify(given_answers, FRACTIONS, seed)
    sizes = np.bincount(parts, minlength=3)
    assert (sizes > 0).all()
    # Only what a label needs in a small part may move the sizes away from the fractions.
    assert (np.abs(sizes - np.array(FRACTIONS) * len(answers)) <= 6).all()
    np.testing.assert_array_equal(parts, stratify(given_answers, FRACTIONS, seed))


@settings(max_examples=15, deadline=None)
@given(
    counts_of=st.lists(st.integers(3, 6), min_size=3, max_size=5), negatives=st.integers(3, 40), seed=st.integers(0, 99)
)
def test_labels_that_exclude_each_other_are_in_every_part(counts_of, negatives, seed):
    rows = [
        [int(k == place) for k in range(len(counts_of))] for place, count in enumerate(counts_of) for _ in range(count)
    ]
    answers = np.array(rows + [[0] * len(counts_of)] * negatives, np.int64)
    parts = stratify(answers, FRACTIONS, seed)
    for k in range(len(counts_of)):
        assert set(parts[answers[:, k] == 1]) == {0, 1, 2}
    assert set(parts[answers[:, 0] == 0]) == {0, 1, 2}


def test_a_large_table_is_split_in_seconds_and_evenly(tmp_path):
    import time

    answers = np.array(patterns(5000), np.int64)
    started = time.perf_counter()
    parts = stratify(answers, FRACTIONS, 0)
    assert time.perf_counter() - started < 20
    for part, share in enumerate(FRACTIONS):
        assert abs((parts == part).mean() - share) < 0.001
        np.testing.assert_allclose(answers[parts == part].mean(0), answers.mean(0), atol=0.005)


def test_a_part_that_is_not_wanted_stays_empty(tmp_path):
    rows = [row_of(f"{k}", answers) for k, answers in enumerate(patterns(30))]
    split = split_table(table_of(tmp_path, rows), fractions=[0.8, 0.2, 0])
    assert {series.part for series in split.table.series} == {"train", "validation"}
    with pytest.raises(InputError, match="no series in the part test"):
        split.series("test")


@pytest.mark.parametrize(
    "fractions", [[0.5, 0.5], [0.7, 0.2, 0.2], [-0.1, 0.6, 0.5], [0, 0.5, 0.5], "0.7", [0.7, "x", 0.15]]
)
def test_fractions_that_make_no_sense_are_refused(tmp_path, fractions):
    rows = [row_of(f"{k}", answers) for k, answers in enumerate(patterns(30))]
    with pytest.raises(InputError, match="fractions must be the shares of train, validation, test"):
        split_table(table_of(tmp_path, rows), fractions=fractions)


def test_too_few_groups_are_refused(tmp_path):
    rows = [row_of("a"), row_of("b", (1, 1, 0, 0, 0, 0))]
    with pytest.raises(InputError, match="has 2 patients or studies that can be used, too few for 3 parts"):
        split_table(table_of(tmp_path, rows))


def test_what_is_written_can_be_read_again_and_says_what_was_left_out(tmp_path):
    rows = [row_of(f"{k}", answers, nifti_path=f"scans/{k}.nii") for k, answers in enumerate(patterns(30))]
    for k in range(30):
        write_ct(tmp_path / "scans" / f"{k}.nii", k)
    rows += [row_of("gone", nifti_path="scans/gone.nii"), row_of("odd", label_any=3)]
    table = read_series_table(write_table(tmp_path / "table.csv", rows))
    split = split_table(table)
    summary = write_split(split, tmp_path / "out" / "put", rebase=True)
    assert json.loads((tmp_path / "out" / "put" / "split_summary.json").read_text()) == summary
    assert [each["row"] for each in summary["left_out"]] == [32, 33, 33]
    assert (summary["rows"], summary["used"], summary["grouped_by"]) == (32, 30, {"study": 30})
    train = summary["parts"]["train"]
    assert train["series"] == train["groups"] == 21
    assert train["labels"]["any"]["positives"] == counts(split, "any")[0]
    again = split_of(read_series_table(tmp_path / "out" / "put" / "split.csv"))
    assert again.table.problems == ()
    assert parts_by_series(again) == parts_by_series(split)
    assert (tmp_path / "out" / "put" / "problems.csv").read_text().count("\n") == 1 + len(table.problems)


def test_a_label_with_too_few_groups_is_remarked(tmp_path):
    rows = [row_of(f"{k}") for k in range(20)] + [row_of("p", (1, 1, 0, 0, 0, 0)), row_of("q", (1, 1, 0, 0, 0, 0))]
    split = split_table(table_of(tmp_path, rows))
    remarks = write_split(split, tmp_path)["remarks"]
    assert any(remark.startswith("epidural: no positive groups in ") and "(2 in all" in remark for remark in remarks)
    assert any(
        remark.startswith("subdural: no positive groups in train, validation, test (0 in all") for remark in remarks
    )


def test_parts_of_a_table_that_tear_a_patient_apart_are_refused(tmp_path):
    rows = [
        {**row_of(f"{k}", answers), "patient_id": f"P{k // 2}", "part": PARTS[k % 3]}
        for k, answers in enumerate(patterns(12))
    ]
    with pytest.raises(InputError, match=r"patient P0, patient P1.* in more than one part"):
        split_of(table_of(tmp_path, rows))


def test_copies_of_one_scan_stay_together_whatever_their_studies(tmp_path):
    rows = [row_of(f"{k}", answers) for k, answers in enumerate(patterns(30))]
    for k in range(30):
        write_ct(tmp_path / f"{k}.nii", k)
    copies = [row_of(f"copy {k}", patterns(1)[0]) for k in range(11)]
    for row in copies:
        shutil.copy(tmp_path / "0.nii", tmp_path / row["nifti_path"])
    path = write_table(tmp_path / "table.csv", [*rows, *copies])
    for seed in range(3):
        split = split_table(read_series_table(path), seed=seed)
        parts = parts_by_series(split)
        assert len(parts) == 41
        assert len({parts[row["series_uid"]] for row in [rows[0], *copies]}) == 1
        assert len(set(split.groups.values())) == 30
        assert {name.split(" ")[0] for name in split.groups.values()} == {"study"}
    torn = [{**row, "part": PARTS[k % 3]} for k, row in enumerate([*rows, *copies])]
    with pytest.raises(InputError, match=r"study study .* in more than one part"):
        split_of(read_series_table(write_table(tmp_path / "torn.csv", torn)))


def test_what_a_row_that_is_left_out_says_of_a_patient_counts(tmp_path):
    rows = [{**row_of(f"{k}", answers), "patient_id": ""} for k, answers in enumerate(patterns(30))]
    rows.append({**row_of("A1", study_uid="A"), "patient_id": ""})
    rows.append({**row_of("A2", study_uid="A", label_any="?"), "patient_id": "P"})
    rows.append({**row_of("B1", study_uid="B"), "patient_id": "P"})
    rows.append({**row_of("C1", study_uid="C"), "patient_id": ""})
    rows.append({**row_of("C2", study_uid="C", nifti_path=""), "patient_id": "P"})
    table = table_of(tmp_path, rows)
    groups = group_series(table)
    named = {series.series_uid: groups[series.row] for series in table.series}
    assert named["series A1"] == named["series B1"] == named["series C1"] == "patient P"
    assert named["series 3"] == "study study 3"
