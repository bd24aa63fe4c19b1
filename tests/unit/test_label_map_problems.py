"""COCO panoptic files and semantic label maps: what is refused and how, what is fixed or assumed, and reported."""

import errno
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from label_map_files import (
    SIZE,
    panoptic,
    png_file,
    refusal,
    segment_map,
    semantic,
    write_panoptic,
    write_semantic,
)
from PIL import Image

from vision_stack.config import ConfigError
from vision_stack.data.checks import label_files, segments
from vision_stack.data.checks.issues import DataError
from vision_stack.data.checks.label_files import read_class_map
from vision_stack.data.configs import SemanticDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.ops.label_maps import class_png, ids_to_rgb, segment_png

# What is refused


def spoil(path, value):
    """A change of the training json at `path`."""

    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return change


FIRST = ("annotations", 0)
SEGMENT = (*FIRST, "segments_info", 1)
BROKEN_JSON = {
    "unknown category": ((*SEGMENT, "category_id"), 77, r"segments_info\[1\].category_id: there is no category 77"),
    "repeated id": ((*SEGMENT, "id"), 5, r"segments_info\[2\].id: segment 5 is listed before"),
    "id of nothing": ((*SEGMENT, "id"), 0, r"segments_info\[1\].id: expected a whole number from 1"),
    "crowd flag": ((*SEGMENT, "iscrowd"), 3, r"iscrowd: expected 0 or 1, got 3"),
    "no segment": (SEGMENT, 3, r"segments_info\[1\]: expected a mapping"),
    "no list": ((*FIRST, "segments_info"), {}, r"annotations\[0\].segments_info: expected a list"),
    "parent folder": ((*FIRST, "file_name"), "../0.png", r"annotations\[0\].file_name: .* leads out of its folder"),
    "absolute": ((*FIRST, "file_name"), "/etc/passwd", r"file_name: .* is an absolute path"),
    "two annotations": ((*FIRST, "image_id"), 2, r"annotations\[1\].image_id: image 2 has an annotation already"),
    "image folder": (("images", 0, "file_name"), "../0.jpg", r"images\[0\].file_name: .* leads out"),
    "image size": (("images", 0, "width"), 31, r"images\[0\].width: .* is 30 x 20, the json says width 31"),
    "missing map": ((*FIRST, "file_name"), "absent.png", r"absent.png: pixels: there is no such file"),
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_broken_panoptic_json_is_one_line_with_file_field_and_remedy_or_skipped(tmp_path, case):
    path, value, expected = BROKEN_JSON[case]
    write_panoptic(tmp_path, spoil(path, value))
    with pytest.raises(DataError, match=expected) as error:
        panoptic(tmp_path).train_split  # noqa: B018
    lines = [line for line in str(error.value).splitlines() if "problems; fix" not in line]
    assert all(line.count("; ") >= 1 for line in lines)  # a remedy in each
    split = panoptic(tmp_path, on_error="skip").train_split
    assert len(split.records) == 1
    assert split.problems
    assert "skipped" in split.report()


def encoded(save, array):
    import io

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, save)
    return stream.getvalue()


GREY = segment_map().astype(np.uint8)
BROKEN_PNG = {
    "another size": (segment_png(segment_map()[:10]), "pixels: is 30 x 10, its image is 30 x 20"),
    "id not listed": (segment_png(segment_map() + (segment_map() == 300)), "holds segment 301, which the json"),
    "id not there": (segment_png(np.where(segment_map() == 300, 0, segment_map())), "has no pixel of segment 300"),
    "one channel": (encoded("PNG", GREY), "pixels of kind L; segment ids take three channels"),
    "JPEG": (encoded("JPEG", ids_to_rgb(segment_map())), "is a JPEG, which changes pixels"),
    "cut off": (segment_png(segment_map())[:60], "pixels: "),
    "empty": (b"", "the file is empty"),
    "text": (b"no picture at all", "not an image of a format that can be read"),
}


@pytest.mark.parametrize("case", BROKEN_PNG)
def test_broken_panoptic_png_is_one_line_that_names_it_or_skipped(tmp_path, case):
    png, expected = BROKEN_PNG[case]
    write_panoptic(tmp_path, png=png)
    line = refusal(lambda: panoptic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / "annotations" / "panoptic_train2017" / "0.png"))
    assert expected in line
    assert "to JPEG" not in line  # of all remedies the one that changes ids
    split = panoptic(tmp_path, on_error="skip").train_split
    assert [record.image_id for record in split.records] == [2]


def test_panoptic_map_that_changes_during_training_is_refused_by_name(tmp_path):
    dataset = panoptic(write_panoptic(tmp_path)).train_dataloader().dataset
    path = tmp_path / "annotations" / "panoptic_train2017" / "0.png"
    path.write_bytes(segment_png(segment_map() + (segment_map() == 5)))  # 6 is a crowd, so the ids are known
    dataset[0, 0]
    path.write_bytes(segment_png(segment_map() + 1000))
    line = refusal(lambda: dataset[0, 0])
    assert line.startswith(str(path))


def colour_png_of_16_bits(ids):
    """Grey in all three channels, of which Pillow keeps only the upper byte."""
    rows = np.repeat(ids.astype(">u2")[:, :, None], 3, axis=2).reshape(len(ids), -1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">2I5B", ids.shape[1], ids.shape[0], 16, 2, 0, 0, 0)
    return png_file((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))


BROKEN_MAPS = {
    "unknown value": (class_png(np.full(SIZE, 9)), "holds the value 9, which no class has; add the class"),
    "more than 16 bits": (encoded("TIFF", np.full(SIZE, 2**16 + 7, np.int32)), "holds values from 65543 to 65543"),
    "negative": (encoded("TIFF", np.full(SIZE, -1, np.int32)), "holds values from -1 to -1; class ids are 0 to 65535"),
    "colours": (encoded("PNG", ids_to_rgb(segment_map())), "class ids take one channel"),
    "colours of 16 bits": (colour_png_of_16_bits(np.full(SIZE, 7)), "class ids take one channel"),
    "another size": (class_png(np.full((5, 5), 7)), "is 5 x 5, its image is 30 x 20"),
    "missing": (None, "there is no such file"),
}


@pytest.mark.parametrize("case", BROKEN_MAPS)
def test_broken_semantic_map_is_one_line_that_names_it_or_skipped(tmp_path, case):
    content, expected = BROKEN_MAPS[case]
    write_semantic(tmp_path)
    path = tmp_path / "annotations" / "training" / "town" / "1.png"
    path.unlink() if content is None else path.write_bytes(content)
    line = refusal(lambda: semantic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(f"{path}: pixels: ")
    assert expected in line
    assert len(semantic(tmp_path, on_error="skip").train_split.records) == 1


def test_semantic_links_that_lead_out_are_refused(tmp_path):
    write_semantic(tmp_path / "data")
    outside = tmp_path / "secret.png"
    outside.write_bytes(class_png(np.full(SIZE, 7)))
    path = tmp_path / "data" / "annotations" / "training" / "town" / "1.png"
    path.unlink()
    path.symlink_to(outside)
    assert "is a link that leads out of" in refusal(lambda: semantic(tmp_path / "data").train_split)


@pytest.mark.parametrize("rest", [True, False])
def test_semantic_linked_folder_that_leads_out_is_a_problem_that_names_it(tmp_path, rest):
    write_semantic(tmp_path / "data")
    images = tmp_path / "data" / "images" / "training"
    (images / "city").symlink_to(tmp_path / "data" / "images" / "validation")
    if not rest:
        (images / "town").rename(tmp_path / "elsewhere")
    line = refusal(lambda: semantic(tmp_path / "data").train_split)
    assert "\n" not in line
    assert line.startswith(f"{images}: city: is a link to a folder that leads out of")
    if rest:
        split = semantic(tmp_path / "data", on_error="skip").train_split
        assert [record.file_name for record in split.records] == ["town/0.jpg", "town/1.jpg"]
        assert "city: is a link" in split.report()


TABLES = {
    "no list": ("classes.json", "{}", "expected a list of classes"),
    "no json": ("classes.json", "[", "not valid json"),
    "same id": ("classes.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', r"id 1 is both 'a' and 'b'"),
    "big id": ("classes.json", '[{"id": 70000, "name": "a"}]', "70000 is not a pixel's value"),
    "ignored class": ("classes.json", '[{"id": 255, "name": "a"}]', "255 is a class and is to be ignored, too"),
    "empty text": ("classes.txt", "\n", "there are no classes"),
    "heading": ("classes.txt", "id name\n2 road\n7 sky", "line 1: 'id name' is not `id name`, as line 2 is; write"),
    "comment": ("classes.txt", "2 road\n7 sky\n\n# else\n8 car", "line 4: '# else' is not `id name`; write"),
    "comment above names": ("classes.txt", "# all\nroad\nsky", "line 1: '# all' is not `id name`; write"),
    "negative id": ("classes.txt", "-1 void\n2 road\n7 sky", "line 1: '-1 void' is not `id name`; write"),
    "commas": ("classes.txt", "2,road\n7,sky", "line 1: '2,road' is not `id name`; write"),
    "colon": ("classes.txt", "2 road\n7: sky", "line 2: '7: sky' is not `id name`; write"),
    "no id": ("classes.txt", "2 road\nsky\n8 car", "line 2: 'sky' is not `id name`, as line 1 is; write"),
    "heading above ids that come last": (
        "classes.txt",
        "name id\nsky 7\nroad 2",
        "line 1: 'name id' is not `name id`, as",
    ),
    "no name": ("classes.txt", "2 road\n7\n8 car", "line 2: '7' is not `id name`; write"),
}


@pytest.mark.parametrize("case", TABLES)
def test_broken_class_table_is_one_line(tmp_path, case):
    name, text, expected = TABLES[case]
    write_semantic(tmp_path, table=False)
    (tmp_path / name).write_text(text)
    line = refusal(lambda: semantic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / name))
    assert expected in line


def test_missing_folders_say_what_was_looked_for_and_the_option(tmp_path):
    write_semantic(tmp_path, table=False)
    assert "name it with data.classes=PATH" in refusal(lambda: semantic(tmp_path).train_split)
    assert "data.train_labels: there is no such folder" in refusal(
        lambda: semantic(tmp_path, train_labels="x").train_split
    )
    (tmp_path / "empty").mkdir()
    assert "looked for images/train" in refusal(lambda: semantic(tmp_path / "empty").train_split)
    write_panoptic(tmp_path / "p")
    (tmp_path / "p" / "annotations" / "panoptic_train2017").rename(tmp_path / "p" / "elsewhere")
    assert "name their folder with data.train_labels=DIR" in refusal(lambda: panoptic(tmp_path / "p").train_split)
    assert len(panoptic(tmp_path / "p", train_labels="elsewhere").train_split.records) == 2


def test_instance_json_for_panoptic_data_is_told_apart_at_once(tmp_path):
    def as_instances(content):
        content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 4, "segmentation": []}] * 100

    write_panoptic(tmp_path, as_instances)
    line = refusal(lambda: panoptic(tmp_path).train_split)
    assert "annotations[0]: has no segments_info; give a COCO panoptic json, or use data=coco" in line


def test_task_without_annotations_is_refused_with_the_choices(tmp_path):
    data = build_datamodule(SemanticDataConfig(root=str(write_semantic(tmp_path))), task="panoptic")
    expected = r"no annotations for panoptic; say task=semantic, or use data=auto, data=coco_panoptic"
    with pytest.raises(ConfigError, match=expected):
        data.train_split  # noqa: B018


def test_unknown_task_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"^task: expected detection, instance, semantic, panoptic, got 'depth'$"):
        SemanticDataConfig(root=str(tmp_path)).read("train", "depth")
    with pytest.raises(ConfigError, match=r"data=semantic has no annotations for detection; say task=semantic, or use"):
        SemanticDataConfig(root=str(tmp_path)).read("train", "detection")


# What is fixed or assumed, and reported


def test_panoptic_crowd_flags_may_be_any_kind_of_one(tmp_path):
    def change(content):
        for segment, flag in zip(content["annotations"][0]["segments_info"], (0.0, None, False, 1.0), strict=True):
            segment["iscrowd"] = flag

    record = panoptic(write_panoptic(tmp_path, change)).train_split.records[0]
    assert record.truth().is_crowd.tolist() == [False, False, False, True]


def test_panoptic_categories_without_isthing_are_things_with_a_note(tmp_path):
    def change(content):
        for category in content["categories"][1:]:
            del category["isthing"]

    split = panoptic(write_panoptic(tmp_path, change)).train_split
    assert all(category.is_thing for category in split.categories)
    assert "categories[1].isthing: 'cat' has none, nor have 1 others; taken for things" in split.report()
    assert "isthing" not in panoptic(tmp_path).val_split.report()


def test_panoptic_crowd_segments_are_counted(tmp_path):
    report = panoptic(write_panoptic(tmp_path)).train_split.report()
    assert "segments_info[].iscrowd: 2 of 8 segments are crowd regions (iscrowd=1); not trained on" in report


def test_panoptic_image_id_of_two_files_loses_both(tmp_path):
    def repeat(content):
        content["images"].append({**content["images"][0], "file_name": "1.jpg"})

    split = panoptic(write_panoptic(tmp_path, repeat), on_error="skip").train_split
    assert [record.image_id for record in split.records] == [2]


def test_folder_of_images_that_cannot_be_listed_is_a_problem(tmp_path, monkeypatch):
    write_semantic(tmp_path)
    (tmp_path / "images" / "training" / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # as root, who may run the tests, every folder opens
    with pytest.raises(DataError, match=r"closed: cannot be listed \(Permission denied\); change its permissions"):
        semantic(tmp_path).train_split  # noqa: B018


# Classes without a pixel


def masks_0_255(split, n):
    return {...: 0, n + 2: 255}  # a row


def test_class_whose_pixels_are_all_ignored_is_refused_with_the_way_out(tmp_path):
    write_semantic(tmp_path, masks_0_255, table=False)
    (tmp_path / "classes.txt").write_text("background\nlesion")
    line = refusal(lambda: semantic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'classes.txt'}: classes: 'lesion' (id 1) has no pixel in 2 label maps")
    assert "the ignored value 255 covers 5.0% of their pixels" in line
    assert "give it that id in the table and set data.ignore_labels=[]" in line
    assert "lesion" in semantic(tmp_path, on_error="skip").train_split.report()
    assert not semantic(tmp_path).config.read("val", "semantic").notes  # of which nothing is learnt
    (tmp_path / "classes.txt").write_text("0 background\n255 lesion")
    split = semantic(tmp_path, ignore_labels=()).train_split
    assert split.records[0].num_objects == 2
    assert not split.report()


def test_class_without_pixels_is_noted_where_little_is_ignored_and_refused_where_much_is(tmp_path):
    write_semantic(tmp_path / "some")  # no car, a tenth ignored
    assert "'car' (id 8) has no pixel in 2 label maps" in semantic(tmp_path / "some").train_split.report()
    write_semantic(tmp_path / "much", lambda split, n: {0: 255, 1: 255})
    assert "the ignored value 255 covers 20.0%" in refusal(lambda: semantic(tmp_path / "much").train_split)
    write_semantic(tmp_path / "none", lambda split, n: {...: 2})
    report = semantic(tmp_path / "none").train_split.report()
    assert "'sky' (id 7), 'car' (id 8) have no pixel in 2 label maps; cannot be learnt; compare the ids" in report


@pytest.mark.parametrize(("last", "read"), [(8, 4), (2, 5)])
def test_label_maps_are_read_on_only_until_every_class_has_been_seen(tmp_path, monkeypatch, last, read):
    write_semantic(tmp_path, lambda split, n: {0: 255, 1: 255})
    folder = tmp_path / "annotations/training/town"
    for n in range(2, 5):
        shutil.copy(tmp_path / "images/training/town/0.jpg", tmp_path / f"images/training/town/{n}.jpg")
        labels = np.full(SIZE, 2)
        labels[:9] = 255
        labels[0, 0] = last if n == 3 else 2
        (folder / f"{n}.png").write_bytes(class_png(labels))
    monkeypatch.setattr(label_files, "CHECKED_AT_START", 2)
    decoded = []
    monkeypatch.setattr(
        segments, "read_class_map", lambda path, *size: decoded.append(path) or read_class_map(path, *size)
    )
    if read == 5:
        assert "'car' (id 8) has no pixel in 5 label maps" in refusal(lambda: semantic(tmp_path).train_split)
    else:
        assert not semantic(tmp_path).train_split.report()
    assert len(decoded) == read
