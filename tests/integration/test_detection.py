"""`task=detection`: boxes from training to predictions, with a detector and with a mask head."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from vision_stack import VisionModel, evaluate
from vision_stack.commands import predict as predict_command
from vision_stack.commands.python import train
from vision_stack.config import ConfigError
from vision_stack.data.checks.issues import DataError

SHORT = ["data.image_size=64", "data.num_train=4", "data.num_val=2", "data.batch_size=2", "steps=1", "device=cpu"]
SHORT += ["logger=none", "num_pictures=1"]
DETECTOR = ["head.representation_size=16", "head.rpn_post_nms_top_n=20", "neck.channels=16"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detection") / "run"
    options = [*SHORT, *DETECTOR, "pretrained=false"]
    train(task="detection", head="faster_rcnn", backbone="resnet18", run_dir=folder, overrides=options)
    return folder


def test_detector_leaves_box_metrics_and_predictions_without_masks(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert "AP" in metrics["bbox"]
    assert "segm" not in metrics
    records = json.loads((run_dir / "predictions.json").read_text())
    assert records
    assert all("bbox" in record and "segmentation" not in record for record in records)
    assert len(list((run_dir / "pictures").glob("[0-9]*.jpg"))) == 1


def test_detector_evaluates_and_predicts_boxes(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    again = evaluate(checkpoint, run_dir=tmp_path / "eval", overrides=["num_pictures=0", "device=cpu"])
    assert again.metrics["bbox"] == json.loads((run_dir / "metrics.json").read_text())["bbox"]
    with pytest.raises(ConfigError, match=r"^boundary_ap: task=detection has none, only task=instance; leave it out$"):
        evaluate(checkpoint, run_dir=tmp_path / "boundary", overrides=["boundary_ap=true", "device=cpu"])
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    (found,) = VisionModel.from_pretrained(checkpoint).predict([image], threshold=0.0)
    assert found.masks is None
    assert (found.boxes[:, 2] <= 90).all()
    assert (found.boxes[:, 3] <= 50).all()


def test_thresholds_by_class_and_nms_of_predict_and_eval(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    model = VisionModel.from_pretrained(checkpoint)
    first, *others = (category.name for category in model.categories)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (everything,) = model.predict(tmp_path / "a.png", threshold=0.0)
    assert len(everything.labels.unique()) > 1
    low = {**dict.fromkeys(others, 1.0), first: 0.0}
    (found,) = model.predict(tmp_path / "a.png", threshold=low)
    assert torch.equal(found.scores, everything.scores[everything.labels == 0])
    (unnamed,) = model.predict(tmp_path / "a.png", threshold={first: 0.0})
    assert len(unnamed) == len(found)  # 0.5 for the others
    with pytest.raises(ConfigError, match=r"^threshold.nonesuch: there is no such class; choose one of: "):
        model.predict(tmp_path / "a.png", threshold={"nonesuch": 0.5})

    typed = f"threshold={{{','.join(f'{name}: {score}' for name, score in low.items())}}}"
    files = [f"checkpoint={checkpoint}", f"source={tmp_path / 'a.png'}", "device=cpu"]
    out = tmp_path / "out"
    assert predict_command.main([*files, f"run_dir={out}", typed, "nms=soft", "agnostic_nms=true", "max_det=7"]) == 0
    records = json.loads((out / "predictions.json").read_text())
    assert len(records) == 7
    model.head.set_nms("soft", class_agnostic=True)
    (softened,) = model.predict(tmp_path / "a.png", threshold=0.0, top_k=7)
    np.testing.assert_allclose([record["score"] for record in records], softened.scores, rtol=1e-5)
    assert not torch.equal(softened.scores, everything.scores[:7])
    options = ["num_pictures=0", "device=cpu", "nms_iou=0.01"]
    fewer = evaluate(checkpoint, run_dir=tmp_path / "eval", overrides=options)
    before = len(json.loads((run_dir / "predictions.json").read_text()))
    assert len(json.loads((fewer.run_dir / "predictions.json").read_text())) < before


def test_mask_head_trains_for_detection_by_the_boxes_of_its_masks(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "task=detection", "trainer.max_epochs=1")
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() >= {"bbox"}
    with pytest.raises(ConfigError, match="nms: this head finds each object once and has no suppression"):
        evaluate(tmp_path / "checkpoints" / "best.ckpt", run_dir=tmp_path / "eval", overrides=["nms=soft"])


@pytest.mark.parametrize("head", ["retinanet", "fcos", "mask_rcnn"])
def test_detectors_train_with_the_levels_they_are_made_for(head: str, tmp_path: Path, capsys: Any) -> None:
    options = [*SHORT, "neck.channels=32", "pretrained=false", "num_pictures=0"]
    run = train(task="detection", head=head, backbone="resnet18", run_dir=tmp_path / "run", overrides=options)
    levels = ["p2/4", "p3/8", "p4/16", "p5/32", "p6/64", "p7/128"]
    assert ", ".join(levels[:5] if head == "mask_rcnn" else levels[1:]) in capsys.readouterr().out
    assert "AP" in run.metrics["bbox"]
    assert run.model().config.neck.extra_levels == ("pool" if head == "mask_rcnn" else "p6p7")


def test_deformable_detr_trains_with_its_encoder(tmp_path: Path) -> None:
    options = [*SHORT, "neck=deformable_encoder", "neck.num_heads=4", "neck.num_encoder_layers=1", "num_pictures=0"]
    run = train(task="detection", head="deformable_detr", run_dir=tmp_path / "run", overrides=options)
    assert "AP" in run.metrics["bbox"]
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    (found,) = run.model().predict([image], threshold=0.0)
    assert 0 < len(found) <= 20  # queries, as data=shapes has them
    assert (found.boxes[:, 2] <= 90).all()


def boxes_only(root: Path) -> Path:
    """A COCO folder without masks: 4 images, of which one has no object and one 500 and a crowd."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, count in enumerate((0, 2, 500, 1), start=1):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 64})
        for _ in range(count):
            x, y, w, h = (float(v) for v in (*rng.uniform(0, 40, 2), *rng.uniform(4, 24, 2)))
            annotations.append({"image_id": number, "category_id": 3, "bbox": [x, y, w, h], "iscrowd": 0})
    annotations.append({"image_id": 3, "category_id": 3, "bbox": [60, 0, 36, 64], "iscrowd": 1})
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for image in images:
            pixels = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / image["file_name"])
        content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "ball"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def test_detector_trains_on_boxes_without_masks_by_derived_values(tmp_path: Path, capsys: Any) -> None:
    options = [*DETECTOR, "steps=3", "device=cpu", "logger=none", "pretrained=false", "data.filter_empty=false"]
    options += ["data.num_workers=0", "batch_size=2", "num_pictures=4", "measure=false"]
    root = boxes_only(tmp_path / "data")
    run = tmp_path / "run"
    train(str(root), task="detection", head="faster_rcnn", backbone="resnet18", run_dir=run, overrides=options)
    out = capsys.readouterr().out
    assert "optim.lr" in out
    assert "(auto: " in out
    assert "1 of 504 annotations are crowd regions" in out
    assert "1 training image has more than 100 objects" in out
    assert "raise head.box_detections_per_img" in out
    assert json.loads((run / "metrics.json").read_text())["bbox"]["AP"] is not None
    assert len(list((run / "pictures").glob("[1-4]_*.jpg"))) == 4


def test_boxes_without_masks_are_refused_where_masks_are_needed(tmp_path: Path) -> None:
    root = str(boxes_only(tmp_path / "data"))
    with pytest.raises(
        DataError, match=r"has a mask, all have only a box; .* head=faster_rcnn or another without masks$"
    ):
        train(root, backbone="resnet18", run_dir=tmp_path / "a", overrides=["pretrained=false"])
    with pytest.raises(DataError, match=r"objects without masks: 503, .* give head\.masks=false"):
        train(root, task="detection", backbone="resnet18", run_dir=tmp_path / "b", overrides=["pretrained=false"])


def test_detector_refuses_a_task_with_masks_and_a_neck_without_a_pyramid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="head=faster_rcnn cannot be trained for instance; use task=detection"):
        train(head="faster_rcnn", run_dir=tmp_path / "a", overrides=SHORT)
    with pytest.raises(ConfigError, match=r"maps of equal channels at strides 4, 8, 16, 32, got .* use neck=fpn"):
        train(task="detection", head="faster_rcnn", neck="none", run_dir=tmp_path / "b", overrides=SHORT)
