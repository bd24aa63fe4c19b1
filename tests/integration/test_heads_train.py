"""Heads that are made for other backbones and necks than the default ones, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from vision_stack.model import VisionModel


def test_eomt_trains_and_remembers_its_progress(tmp_path: Path) -> None:
    shape = ("hidden_size=32", "num_hidden_layers=3", "num_attention_heads=2", "intermediate_size=32", "image_size=64")
    tiny_run.train(
        tmp_path,
        "head=eomt",
        "neck=none",
        "backbone=vit",
        *(f"backbone.{option}" for option in shape),
        "head.num_blocks=2",
        "optim.layer_decay=0.8",
        "optim.backbone_lr_multiplier=1",
        "finetune.freeze_stages=1",
        "trainer.max_steps=2",
    )
    trained = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt")
    assert trained.head.mask_probability.tolist() == trained.head._probabilities
    assert trained.head.mask_probability[0] < 1  # progress was heard of


def test_rf_detr_seg_trains_and_finds_boxes_and_masks(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "head=rf_detr_seg", "head.cross_heads=4", "head.num_groups=2", "trainer.max_steps=2")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"segm", "bbox"} <= metrics.keys()
    _check_masks(VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt"))


@pytest.mark.parametrize("head", ["d_fine", "rt_detr", "deformable_detr"])
def test_detr_heads_train_with_masks_for_the_instance_task_alone(head: str, tmp_path: Path) -> None:
    tiny_run.train(tmp_path, f"head={head}", "task=instance", "trainer.max_steps=1")
    trained = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt")
    assert trained.config.head.masks is True
    _check_masks(trained)
    assert "masks: true" in (tmp_path / "config.yaml").read_text()
    tiny_run.train(tmp_path / "boxes", f"head={head}", "task=detection", "trainer.max_steps=1")
    boxes = VisionModel.from_pretrained(tmp_path / "boxes" / "checkpoints" / "last.ckpt")
    added = trained.state_dict().keys() - boxes.state_dict().keys()
    parts = {name.split(".")[1] for name in added if name.startswith("head.")}
    assert parts - {"mask_projection"} == {"masks"}  # which is not there where channels are equal
    assert boxes.state_dict().keys() < trained.state_dict().keys()


def _check_masks(trained: VisionModel) -> None:
    (found,) = trained.predict(np.zeros((40, 60, 3), dtype=np.uint8), threshold=0.0, top_k=5)
    assert found.masks.shape == (len(found), 40, 60)
    assert found.boxes.shape == (len(found), 4)
