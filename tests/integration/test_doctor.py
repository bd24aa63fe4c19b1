"""`vision-stack doctor`: every planted fault is found, nothing is found in clean data; page, json, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from doctor_data import FAULTS, annotation, planted, renamed

from vision_stack import commands
from vision_stack.data.checks.diagnosis import KINDS
from vision_stack.data.checks.doctor import Examination, examine
from vision_stack.data.checks.small_objects import View
from vision_stack.data.configs import CocoDataConfig
from vision_stack.data.repair import write_repaired


def clean(root: Path) -> Path:
    return planted(root, lambda content, root: None)


def examined(root: Path) -> Examination:
    return examine(CocoDataConfig(root=str(root)))


def test_clean_data_has_neither_errors_nor_warnings(tmp_path: Path) -> None:
    found = examined(clean(tmp_path / "data"))
    assert [str(each.problem) for each in found.diagnoses if each.severity != "note"] == []
    assert {each.kind for each in found.diagnoses} == {"reading"}
    assert {name: each.num_objects for name, each in found.statistics.items()} == {"train": 36, "val": 18}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_is_the_only_error(name: str, tmp_path: Path) -> None:
    fault, kind, words = FAULTS[name]
    found = examined(planted(tmp_path / "data", fault)).diagnoses
    mine = [each for each in found if each.kind == kind and words in str(each.problem)]
    assert mine, [f"{each.kind}: {each.problem}" for each in found]
    assert all(each.problem.file and each.problem.field and each.problem.remedy for each in mine)
    errors = {each.kind for each in found if each.severity == "error"}
    if name.startswith("image id"):
        errors -= {"broken_annotation"}  # which have no image then
    assert errors == ({kind} if KINDS[kind].severity == "error" else set())


def test_what_does_not_fit_together_can_be_seen(tmp_path: Path) -> None:
    found = examined(planted(tmp_path / "data", FAULTS["area far off"][0])).diagnoses
    (odd,) = [each for each in found if each.kind == "odd_annotation"]
    (exhibit,) = odd.exhibits
    assert exhibit.record.file_name == "train_2.jpg"
    assert exhibit.rows == (exhibit.record.rows[1],)  # id 21, the second of the image


def test_every_kind_has_a_planted_fault() -> None:
    assert {kind for _, kind, _ in FAULTS.values()} == set(KINDS)


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"' \u202e&amp;"


def test_page_escapes_names_of_classes_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<b onmouseover=alert(1)>'\".jpg"

    def hostile(content: dict, root: Path) -> None:
        for split in content:
            renamed(split, HOSTILE)(content, root)
        (root / "train/train_5.jpg").rename(root / "train" / name)
        content["train"]["images"][4]["file_name"] = name
        content["train"]["annotations"].append(annotation(5000, 5, 9, 5 + 80, 10))

    monkeypatch.chdir(tmp_path)
    assert commands.main(["doctor", str(planted(tmp_path / "data", hostile)), "--html", "page.html"]) == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert page.count("<script") == 1
    assert page.count("</script") == 1
    assert "\u202e" not in page
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r"(?s)<script>.*?</script>|\"[^\"]*\"|'[^']*'", "", page))
    assert "<b onmouseover" not in page
    assert "&lt;b onmouseover=alert(1)&gt;" in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:image/jpeg;base64,)", page)  # nothing from the network
    assert "default-src 'none'" in page


def test_json_lists_all_and_exit_codes_tell_clean_broken_and_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.main(["doctor", str(clean(tmp_path / "clean")), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"error": 0, "warning": 0, "note": 2}
    assert report["splits"]["train"]["classes"]["dog"] == {"objects": 12, "images": 12}
    fault, kind, _ = FAULTS["annotation twice"]
    broken = planted(tmp_path / "broken", fault)
    assert commands.main(["doctor", f"data={broken}", "--json"]) == 1
    (found,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["severity"] == "error"]
    assert found["kind"] == kind
    assert found["images"] == ["train_2.jpg"]
    warned = planted(tmp_path / "warned", FAULTS["mask in a mask"][0])
    assert commands.main(["doctor", str(warned), "--json"]) == 0
    assert commands.main(["doctor", str(warned), "--json", "--strict"]) == 1
    capsys.readouterr()
    assert not list(tmp_path.glob("*.html"))  # with --json only where it is named
    (tmp_path / "broken/annotations/instances_train.json").write_text("{")
    (tmp_path / "broken/annotations/instances_val.json").write_text("{")
    assert commands.main(["doctor", "data=coco", f"data.root={broken}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "instances_train.json" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "data=nowhere: there is no such folder or file"),
        (["DATA", "epochs=3"], "epochs=3: unknown here"),
        (["DATA", "task=dogs"], "task=dogs: unknown task"),
        (["DATA", "data=DATA"], "is given twice"),
        (["DATA", "data.bacth_size=3"], "bacth_size: unknown option; did you mean 'batch_size'?"),
        (["DATA", "--html", "DATA"], "is a folder; give a file"),
        (["DATA", "--html", "mine.html"], "is not a page of the doctor and would be overwritten"),
        (["DATA", "task=semantic"], "has nothing for task=semantic"),
        (["data=coco", "data.root=DATA", "task=semantic"], "data=coco has no annotations for semantic"),
    ],
)
def test_words_that_mean_nothing_are_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = clean(tmp_path / "data")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert commands.main(["doctor", *(word.replace("DATA", str(data)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_terminal_shows_kinds_with_counts_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = planted(tmp_path / "my data", FAULTS["crowded image"][0])
    assert commands.main(["doctor", str(data), "--queries", "60"]) == 0
    printed = capsys.readouterr().out
    assert "warning  images with more objects than can be found: 1" in printed
    assert "more than the 60 queries of a head" in printed
    assert printed.endswith("page: doctor_my_data.html\n")
    assert (tmp_path / "doctor_my_data.html").stat().st_size > 10_000
    assert commands.main(["doctor", str(data)]) == 0  # replaces a page of its own


def test_image_size_is_where_small_objects_become_large_enough(tmp_path: Path) -> None:
    def scattered(content: dict, _: Path) -> None:
        for n, entry in enumerate(content["train"]["annotations"]):
            if not entry["iscrowd"]:
                entry.update(annotation(entry["id"], entry["image_id"], entry["category_id"], 5 + 40 * (n % 3), 9, 4))

    config = CocoDataConfig(root=str(planted(tmp_path / "data", scattered)))
    small = {size: found_small(config, size) for size in (96, 224, 256)}
    assert "36 of 36 objects (100%) are less than 8 pixels wide" in small[96].message
    assert small[96].remedy == "train with image_size=256, 2.0 times the images' own size"  # 128 pixels: 4 become 8
    assert small[224].remedy == small[96].remedy
    assert small[256] is None


def found_small(config: CocoDataConfig, size: int):  # type: ignore[no-untyped-def]
    found = examine(config, view=View(short_edge=size, long_edge=size)).diagnoses
    return next((each.problem for each in found if each.kind == "small_object"), None)


REPAIRED = [
    name for name, (_, kind, _) in FAULTS.items() if KINDS[kind].severity == "error" and kind != "unreadable_split"
]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", [*REPAIRED, "area far off", "annotation nearly twice", "covers no pixel"])
def test_fix_writes_a_copy_without_the_fault_and_leaves_the_original(name: str, tmp_path: Path) -> None:
    fault, kind, _ = FAULTS[name]
    data = planted(tmp_path / "data", fault)
    before, found = contents(data), examined(data)
    write_repaired(found.splits, found.diagnoses, tmp_path / "fixed", originals=[data])
    assert contents(data) == before
    again = examined(tmp_path / "fixed")
    assert [str(each.problem) for each in again.diagnoses if each.severity == "error" or each.kind == kind] == []
    kept = sum(each.num_objects or 0 for each in again.statistics.values())
    assert kept >= (48 if name != "polygons are fractions" else 1)  # of 54: only the broken ones are gone
    assert (tmp_path / "fixed" / "repairs.txt").read_text().count("\n") >= 1


def test_fix_takes_boxes_from_masks_and_classes_by_name(tmp_path: Path) -> None:
    def faults(content: dict, root: Path) -> None:
        for entry in content["train"]["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = [x, y, x + w, y + h]
        content["val"]["categories"] = [
            {"id": 1, "name": "Dog"},
            {"id": 2, "name": "traffic_light"},
            {"id": 3, "name": "cat"},
        ]
        for entry in content["val"]["annotations"]:
            entry["category_id"] = {9: 1, 5: 2, 3: 3}[entry["category_id"]]

    found = examined(planted(tmp_path / "data", faults))
    write_repaired(found.splits, found.diagnoses, tmp_path / "fixed")
    again = examined(tmp_path / "fixed")
    assert {each.kind for each in again.diagnoses} == {"reading"}  # only the crowd regions of clean data
    val = json.loads((tmp_path / "fixed/annotations/instances_val.json").read_text())
    assert val["categories"] == [{"id": n, "name": name} for n, name in ((3, "cat"), (5, "traffic light"), (9, "dog"))]
    boxes = {entry["id"]: entry["bbox"] for entry in again.splits["train"].ground_truth()["annotations"]}
    assert boxes[21] == [45, 7, 20, 20]


@pytest.mark.parametrize("out", ["data", "data/fixed", "full", "a_file", ".", "a_link"])
def test_fix_refuses_a_folder_that_holds_something_or_is_the_original(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = clean(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "a_link").symlink_to(data)
    before = contents(tmp_path)
    assert commands.main(["doctor", str(data), "--no-html", "--fix", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out}: is ")
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_fix_from_the_command_line_tells_where_and_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = planted(tmp_path / "data", FAULTS["same file in both splits"][0])
    assert commands.main(["doctor", str(data), "--json", "--fix", "new/copy"]) == 1
    printed = capsys.readouterr()
    assert "repaired copy: new/copy: " in printed.err
    assert "1 training images that another split has left out" in printed.err
    assert json.loads(printed.out)["counts"]["error"] == 1
    assert not (tmp_path / "new/copy/train/train_7.jpg").exists()
    assert (tmp_path / "new/copy/val/again.jpg").read_bytes() == (data / "val/again.jpg").read_bytes()
    assert commands.main(["doctor", "new/copy", "--json"]) == 0
