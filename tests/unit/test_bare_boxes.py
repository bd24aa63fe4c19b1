"""Objects that have only a box: where that is enough, what is checked, and what evaluation gets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision_stack.heads  # noqa: F401  registers what messages name
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import CocoDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.metrics import CocoEvaluator
from vision_stack.structures import Instances

BOX = [4.0, 4.0, 8.0, 8.0]
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]
WHOLE = GeometricTransform((0, 0, 32, 24), (24, 32))


def coco(*annotations: dict[str, Any]) -> dict[str, Any]:
    base = {"image_id": 1, "category_id": 9, "bbox": BOX, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": 24, "width": 32}],
        "annotations": [{"id": n, **base, **a} for n, a in enumerate(annotations, 1)],
        "categories": [{"id": 9, "name": "dog"}],
    }


def read(folder: Path, *annotations: dict[str, Any], **options: Any) -> CocoSplit:
    file = folder / "a.json"
    file.write_text(json.dumps(coco(*annotations)))
    return read_coco(file, folder, **{"check_images": False, "masks": False, **options})


def test_boxes_are_enough_where_no_masks_are_needed(tmp_path: Path) -> None:
    split = read(tmp_path, {"segmentation": []}, {"segmentation": None}, {}, {"segmentation": [SQUARE], "bbox": None})
    assert split.report() == ""
    assert split.num_without_mask == 3
    assert [a.box for a in split.records[0].annotations] == [(4, 4, 12, 12)] * 4
    assert [a["area"] for a in split.ground_truth()["annotations"]] == [64.0] * 4
    assert ["segmentation" in a for a in split.ground_truth()["annotations"]] == [False, False, False, True]


def test_only_boxes_where_masks_are_needed_is_one_line_that_offers_detection(tmp_path: Path) -> None:
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError) as error:
            read(tmp_path, *[{}] * 3, masks=True, on_error=on_error)
        assert str(error.value).endswith(
            "a.json: annotations[].segmentation: none of 3 annotations has a mask, all have only a box; "
            "export with polygons or RLE masks, or train on boxes: task=detection, with head=faster_rcnn or another "
            "without masks"
        )
    with pytest.raises(DataError, match=r"annotations\[1\].segmentation: there is no mask, only a box"):
        read(tmp_path, {"segmentation": [SQUARE]}, {}, masks=True)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([math.nan, 4, 8, 8], "is not finite"),
        ([4, 4, 0, 8], "has no area"),
        ([4, 4, 8, -1], "has no area"),
        ([40, 4, 8, 8], "is wholly outside of the image"),
        ([4, 4, 1e9, 8], "lies beyond 100000 pixels"),
        ([4, 4, 8], "expected four numbers"),
        (None, "there is neither a box nor a mask"),
    ],
)
def test_broken_box_is_reported_or_skipped_with_a_count(box: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"annotations\[1\].bbox: .*{message}.*; .*(correct|remove|write)"):
        read(tmp_path, {}, {"bbox": box})
    split = read(tmp_path, {}, {"bbox": box}, on_error="skip")
    assert len(split.records[0].annotations) == 1
    assert len(split.problems) == 1
    assert "broken records skipped: 1" in split.report()


def test_boxes_that_reach_beyond_the_image_are_clipped_and_counted(tmp_path: Path) -> None:
    corners = {"bbox": [10, 8, 30, 20]}  # x0, y0, x1, y1
    split = read(tmp_path, {}, corners, corners, {"bbox": [-9, 2, 12, 12]})
    assert "3 boxes reach beyond their image, as x, y, width, height; 2 of them may be x0, y0, x1, y1" in split.report()
    assert [a.box for a in split.records[0].annotations][1:] == [(10, 8, 32, 24), (10, 8, 32, 24), (0, 2, 3, 14)]


def test_boxes_that_are_fractions_of_the_image_are_a_problem_if_most_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 3 boxes are all in 0\.\.1, fractions of the image, not pixels"):
        read(tmp_path, {}, *[{"bbox": [0.1, 0.2, 0.5, 0.5]}] * 2)
    split = read(tmp_path, {}, {}, {"bbox": [0.1, 0.2, 0.5, 0.5]})
    assert "1 of 3 boxes are all in 0..1" in split.report()
    assert len(split.records[0].annotations) == 3


def test_crowds_are_regions_to_ignore_in_targets_and_in_evaluation(tmp_path: Path) -> None:
    split = read(tmp_path, {}, {"iscrowd": 1, "bbox": [16, 0, 16, 24]})
    objects = split.records[0].objects(GeometricTransform((8, 0, 32, 24), (12, 12), flip=True))
    assert objects.labels == [0]
    np.testing.assert_allclose(objects.boxes, [[10, 2, 12, 6]])
    np.testing.assert_allclose(objects.ignored, [[0, 0, 8, 12]])
    evaluator = CocoEvaluator(split.ground_truth(), split.categories, ("bbox",))
    boxes = torch.tensor([[18.0, 2, 30, 20], [4, 4, 12, 12]])  # the first, with the higher score, is in the crowd
    evaluator.update(1, Instances(boxes, torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.8])))
    assert evaluator.compute()["bbox"]["AP"] == pytest.approx(1.0)


def dataset(root: Path, **options: Any) -> CocoDataConfig:
    for split in ("train", "val"):
        (root / split).mkdir()
        Image.new("RGB", (32, 24)).save(root / split / "1.png")
        content = coco({}, {"iscrowd": 1, "bbox": [16, 0, 16, 24]})
        (root / f"{split}.json").write_text(json.dumps(content))
    return CocoDataConfig(root=str(root), num_workers=0, batch_size=1, **options)


def test_batches_have_boxes_and_ignored_regions_without_masks(tmp_path: Path) -> None:
    data = build_datamodule(dataset(tmp_path), task="detection", masks=False)
    (batch,) = data.train_dataloader()
    (target,) = batch.targets
    assert set(target) == {"labels", "boxes", "ignored"}
    height, width = batch.infos[0].input_size
    assert target["boxes"].shape == target["ignored"].shape == (1, 4)
    assert (target["boxes"][:, 2:] <= torch.tensor([width, height])).all()


def test_head_that_learns_from_masks_is_refused_in_one_line_that_names_heads_of_boxes(tmp_path: Path) -> None:
    data = build_datamodule(dataset(tmp_path), task="detection")
    expected = (
        r"segmentation: objects without masks: 1, but the head learns from masks; give head\.masks=false if the head "
        r"has masks as an option, or head=.* head=faster_rcnn"
    )
    with pytest.raises(DataError, match=expected):
        _ = data.train_records
