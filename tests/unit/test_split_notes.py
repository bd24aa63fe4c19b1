"""What is said of both splits before training: what is odd in them, what they share, where nothing is to be found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_map_files import panoptic, semantic, write_panoptic, write_semantic
from PIL import Image

from vision_stack.data.checks import split_overlap
from vision_stack.data.checks.issues import DataError
from vision_stack.data.checks.split_overlap import shared_images
from vision_stack.data.configs import CocoDataConfig
from vision_stack.data.datamodule import DataModule, build_datamodule

SQUARE = {"category_id": 1, "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]], "bbox": [4, 4, 8, 8], "area": 64}


def write(root: Path, split: str, *, crowd: int = 0, objects: int = 3, seed: int = 0) -> Path:
    """Three images of noise, uncompressed and so of one size in bytes; the first `objects` have an object each."""
    (root / split).mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    for n in range(3):
        Image.fromarray(pixels[n]).save(root / split / f"{n}.bmp")
    images = [{"id": n, "file_name": f"{n}.bmp", "height": 24, "width": 32} for n in range(3)]
    annotations = [{"id": n + 1, "image_id": n, "iscrowd": crowd, **SQUARE} for n in range(objects)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (root / f"{split}.json").write_text(json.dumps(data))
    return root / split


def data(root: Path, **options: Any) -> DataModule:
    return build_datamodule(CocoDataConfig(root=str(root), num_workers=0, **options))


def test_splits_without_anything_odd_have_no_notes(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write(tmp_path, split, seed=seed)
    assert data(tmp_path).notes() == []


def test_notes_of_both_splits_are_given_line_by_line(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write(tmp_path, split, seed=seed)
        content = json.loads((tmp_path / f"{split}.json").read_text())
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["area"] = 640
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    lines = data(tmp_path).notes()
    assert [line.split(": ")[:3] for line in lines] == [
        ["note", str(tmp_path / f"{split}.json"), f"annotations[].{field}"]
        for split in ("train", "val")
        for field in ("iscrowd", "area")
    ]


@pytest.mark.parametrize("filter_empty", [True, False])
def test_training_split_of_crowds_alone_is_refused_by_their_name(filter_empty: bool, tmp_path: Path) -> None:
    write(tmp_path, "train", crowd=1)
    with pytest.raises(DataError, match=r"no training image has an object; 3 annotations are crowd regions"):
        data(tmp_path, filter_empty=filter_empty).train_records  # noqa: B018


def test_training_images_that_are_chosen_must_have_an_object(tmp_path: Path) -> None:
    write(tmp_path, "train")
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"] = content["annotations"][2:]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert len(data(tmp_path, filter_empty=False).train_records) == 3
    with pytest.raises(DataError, match="no training image has an object; annotate some"):
        data(tmp_path, filter_empty=False, max_train_images=2).train_records  # noqa: B018


def test_panoptic_training_split_of_crowds_alone_is_refused_by_their_name(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["iscrowd"] = 1

    write_panoptic(tmp_path, change)
    with pytest.raises(DataError, match=r"8 annotations are crowd regions \(iscrowd=1\)"):
        panoptic(tmp_path).train_records  # noqa: B018


@pytest.mark.parametrize(("crowd", "words"), [(1, "has an object, only crowd regions"), (0, "has an object;")])
def test_validation_images_without_objects_are_a_warning(crowd: int, words: str, tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "val", crowd=crowd, seed=1)
    options = {} if crowd else {"max_val_images": 1}
    if not crowd:
        content = json.loads((tmp_path / "val.json").read_text())
        content["annotations"] = content["annotations"][1:]
        (tmp_path / "val.json").write_text(json.dumps(content))
    line = data(tmp_path, **options).val_notes()[-1]
    assert line.startswith(f"warning: {tmp_path / 'val.json'}: no validation image {words}")
    assert line.endswith("there will be no score")


def test_one_file_for_training_and_validation_is_noted(tmp_path: Path) -> None:
    write(tmp_path, "train")
    (tmp_path / "val.json").symlink_to(tmp_path / "train.json")
    (line,) = data(tmp_path, val_images="train").notes()
    assert "the annotations of training and validation are one file; validation would measure" in line


def test_images_in_both_splits_are_counted_by_their_content(tmp_path: Path) -> None:
    train, val = write(tmp_path, "train"), write(tmp_path, "val", seed=1)
    shutil.copy(train / "2.bmp", val / "0.bmp")
    shutil.copy(train / "2.bmp", val / "1.bmp")
    (line,) = data(tmp_path).notes()
    assert "2 of 3 validation images are training images, too ('0.bmp' is '2.bmp')" in line
    assert "of 3 validation images" not in "".join(data(tmp_path, max_train_images=2).notes())  # the third is left out


def test_only_images_that_begin_and_end_alike_are_read_as_a_whole(tmp_path: Path, monkeypatch: Any) -> None:
    train, val = write(tmp_path, "train"), write(tmp_path, "val", seed=1)
    shutil.copy(train / "0.bmp", val / "0.bmp")
    alike = bytearray((train / "1.bmp").read_bytes())
    alike[len(alike) // 2] ^= 1
    (val / "1.bmp").write_bytes(bytes(alike))
    monkeypatch.setattr(split_overlap, "_END", 100)
    read: list[str] = []
    whole = split_overlap._content

    def content(path: str) -> object:
        read.append(Path(path).name)
        return whole(path)

    monkeypatch.setattr(split_overlap, "_content", content)
    module = data(tmp_path)
    pairs = shared_images(module.train_records, module.val_records)
    assert [(one.file_name, other.file_name) for one, other in pairs] == [("0.bmp", "0.bmp")]
    assert sorted(read) == ["0.bmp", "0.bmp", "1.bmp", "1.bmp"]


def test_semantic_splits_share_their_class_table_but_no_images(tmp_path: Path) -> None:
    lines = semantic(write_semantic(tmp_path)).notes()  # whose writer gives all images the same pixels
    assert not [line for line in lines if "one file" in line]
    assert "2 of 2 validation images are training images, too ('town/0.jpg' is 'town/1.jpg')" in lines[-1]
