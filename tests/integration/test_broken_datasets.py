"""Every way of breaking a data set gives one clear line, and nothing outside of its root is opened."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from broken_data import BROKEN_FILES, BROKEN_RECORDS, GOOD_RLE, INF, NAN, broken, good_dataset, write

from vision_stack.data.checks.issues import DataError
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.data.readers.layout import find_splits


def read(root: Path, **options: Any) -> CocoSplit:
    """Finds and reads the train split, and sees to it that nothing outside of the root is opened on the way."""
    opened: list[str] = []
    _watchers.append(opened)
    try:
        paths = find_splits(root, required=("train",)).train
        assert paths is not None
        return read_coco(**{"annotation_file": paths.annotation_file, "image_dir": paths.image_dir, **options})
    finally:
        _watchers.remove(opened)
        inside = (os.path.realpath(root) + os.sep, *_LIBRARIES)
        assert [path for path in opened if not path.startswith(inside)] == []


_watchers: list[list[str]] = []
_LIBRARIES = tuple(
    os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2] / "vision_stack")
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watchers and isinstance(arguments[0], str | bytes | os.PathLike):
        for watcher in _watchers:
            watcher.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_audit)  # cannot be removed, so it only looks while a test watches


def assert_one_clear_line(error: DataError, root: Path, field: str, word: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    file, _, rest = text.partition(": ")
    assert root in Path(file).parents
    assert rest.startswith(f"{field}: ")
    assert word in rest
    assert len(rest.rsplit("; ", 1)[1]) > 5  # the remedy


def test_watch_over_opened_files_sees_one_outside(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (tmp_path / "outside.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"outside\.json"):
        read(root, annotation_file=tmp_path / "outside.json")


def test_good_dataset_passes_without_problem_or_note(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    split = read(root)
    assert len(split.records) == 3
    assert not split.report()
    assert [c.id for c in split.categories] == [3, 9]


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_record_raises_one_clear_line(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    breaker, field, word = BROKEN_RECORDS[name]
    broken(root, breaker)
    with pytest.raises(DataError) as caught:
        read(root)
    assert_one_clear_line(caught.value, root, field, word)
    assert "data.on_error=skip" in str(caught.value)


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_record_is_skipped_and_the_rest_kept(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    broken(root, BROKEN_RECORDS[name][0])
    split = read(root, on_error="skip")
    objects = {record.image_id: len(record.annotations) for record in split.records}
    assert objects.get(1) == 1
    assert objects.get(3) == 1
    assert sum(objects.values()) == 2 or name in ADDED
    assert len(split.problems) == 1
    assert "broken records skipped: 1" in split.report()


ADDED = (
    "image id duplicate",
    "image id is text",
    "image is not a mapping",
    "annotation is not a mapping",
)  # beside the three good ones


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file_raises_one_clear_line_in_any_case(name: str, on_error: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    breaker, field, word = BROKEN_FILES[name]
    broken(root, breaker)
    with pytest.raises(DataError) as caught:
        read(root, on_error=on_error)
    assert_one_clear_line(caught.value, root, field, word)


def test_many_problems_are_listed_one_a_line_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    data["annotations"] = [{**data["annotations"][0], "id": n, "bbox": [0, 0, 0, 0]} for n in range(1, 101)]
    write(data, root)
    with pytest.raises(DataError) as caught:
        read(root)
    lines = str(caught.value).splitlines()
    assert "100 problems" in lines[0]
    assert lines[-1] == "... and 80 more"
    assert len(lines) == 22


def test_nothing_good_left_raises_in_skip_mode(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    for entry in data["annotations"]:
        entry["bbox"] = [0, 0, 0, 0]
    write(data, root)
    with pytest.raises(DataError, match="no good annotation is left"):
        read(root, on_error="skip")


def test_image_folder_that_leads_out_of_the_root_is_refused_unless_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"leads out of the data root.*data\.train_images="):
        read(root)
    paths = find_splits(root, train_images=tmp_path / "elsewhere", required=("train",)).train
    assert paths is not None
    assert len(read_coco(*paths).records) == 3


def test_root_that_is_a_link_is_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (tmp_path / "link").symlink_to(root)
    assert len(read(tmp_path / "link").records) == 3


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a json a value could be replaced."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


JUNK = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    NAN,
    -INF,
    "",
    "x",
    "\x1b[2J\n",
    [],
    [[]],
    [None],
    {},
    {"size": 3, "counts": {}},
)


@pytest.mark.parametrize("masks", [True, False])
def test_junk_anywhere_in_the_json_is_read_or_refused_in_words(masks: bool, tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    data["annotations"][2]["segmentation"] = GOOD_RLE
    data["annotations"] = data["annotations"][1:]  # one with a polygon, one with an RLE
    chosen = [place for place in places(data)[1:] if place[:2] not in (("images", 0), ("categories", 0))]
    refusals: list[str] = []
    for n, (place, junk) in enumerate((place, junk) for place in chosen for junk in JUNK):
        changed = json.loads(json.dumps(data))
        node = changed
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = junk
        write(changed, root)
        try:
            split = read(root, on_error=("raise", "skip")[n % 2], check_images=False, masks=masks)
            json.dumps([a["bbox"] for a in split.ground_truth()["annotations"]], allow_nan=False)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(line.isprintable() for text in refusals for line in text.splitlines())
