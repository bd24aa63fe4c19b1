"""`task=detection`: boxes from training to predictions, with a detector and with a mask head."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from vision_stack import VisionModel, evaluate
from vision_stack.commands.python import train
from vision_stack.config import ConfigError

SHORT = ["data.image_size=64", "data.num_train=4", "data.num_val=2", "data.batch_size=2", "steps=1", "device=cpu"]
SHORT += ["logger=none", "num_pictures=1"]
DETECTOR = ["head.representation_size=16", "head.rpn_post_nms_top_n=20", "neck.channels=16", "neck.extra_levels=pool"]


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
    assert len(list((run_dir / "pictures").glob("*.jpg"))) == 1


def test_detector_evaluates_and_predicts_boxes(run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    again = evaluate(checkpoint, run_dir=tmp_path / "eval", overrides=["num_pictures=0", "device=cpu"])
    assert again.metrics["bbox"] == json.loads((run_dir / "metrics.json").read_text())["bbox"]
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    (found,) = VisionModel.from_pretrained(checkpoint).predict([image], threshold=0.0)
    assert found.masks is None
    assert (found.boxes[:, 2] <= 90).all()
    assert (found.boxes[:, 3] <= 50).all()


def test_mask_head_trains_for_detection_by_the_boxes_of_its_masks(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "task=detection", "trainer.max_epochs=1")
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() >= {"bbox"}


def test_detector_refuses_a_task_with_masks_and_a_neck_without_a_pyramid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="head=faster_rcnn cannot be trained for instance; use task=detection"):
        train(head="faster_rcnn", run_dir=tmp_path / "a", overrides=SHORT)
    with pytest.raises(ConfigError, match=r"maps of equal channels at strides 4, 8, 16, 32, got .* use neck=fpn"):
        train(task="detection", head="faster_rcnn", backbone="tiny", run_dir=tmp_path / "b", overrides=SHORT)
