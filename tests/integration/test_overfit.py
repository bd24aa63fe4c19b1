"""Detectors with queries learn four images by heart, from scratch: data, losses and predictions fit together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vision_stack.config import from_dict, registered, to_dict
from vision_stack.data.datamodule import DataModule, build_datamodule
from vision_stack.data.shapes.generate import generate_tiny_shapes
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Task
from vision_stack.training.lightning_module import training_losses
from vision_stack.training.tasks import build_evaluator, predictions_for

SMALL = {"num_heads": 4, "ffn_dim": 128, "dropout": 0.0}
ENCODER = {"type": "deformable_encoder", "channels": 64, "num_encoder_layers": 1, **SMALL}
DECODER = {"type": "deformable_detr", "num_queries": 20, "hidden_dim": 64, "num_decoder_layers": 2, **SMALL}
HYBRID = {"type": "hybrid_encoder", "channels": 64, "num_blocks": 1, **SMALL}
RT_DETR = {**DECODER, "type": "rt_detr", "num_denoising": 20}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deformable_detr": (ENCODER, DECODER),
    "rf_detr": ({"type": "fpn", "channels": 64}, {**DECODER, "type": "rf_detr", "cross_heads": 4, "num_groups": 4}),
    "deformable_detr, learnt queries": (ENCODER, {**DECODER, "two_stage": False}),
    "deformable_detr, no refinement": (ENCODER, {**DECODER, "two_stage": False, "with_box_refine": False}),
    "rt_detr": (HYBRID, RT_DETR),
    "d_fine": ({**HYBRID, "fusion": "elan"}, {**RT_DETR, "type": "d_fine"}),
    "deimv2": ({**HYBRID, "fusion": "elan_light", "merge": "sum"}, {**RT_DETR, "type": "deimv2"}),
}
MASKED = {
    "deformable_detr": ({"type": "fpn", "channels": 64}, DECODER),
    **{name: MODELS[name] for name in ("rf_detr", "rt_detr", "d_fine")},
}
MASK_CEILING = 0.743  # AP of the objects' own masks at stride 4, as benchmarks/mask_ceiling.py measures it
STEPS, RATE = 130, 2e-3
LONGER = {
    "d_fine": 180,
    "deimv2": 180,
}  # many queries learn the box of an object: the union of all layers' matches
MASKED_STEPS = 450


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_tiny_shapes(tmp_path_factory.mktemp("shapes"))


def four_images(root: Path, task: Task) -> DataModule:
    """Of 64 pixels; they are validated on, too."""
    options: dict[str, Any] = {"type": "coco", "root": str(root), "num_workers": 0, "max_train_images": 4}
    options |= {"max_val_images": 4, "batch_size": 4, "eval_batch_size": 4}
    annotations = root / "annotations" / "instances_train.json"
    options |= {"val_annotations": str(annotations), "val_images": str(root / "train")}
    sides = {"short_edges": [64], "long_edge": 64, "flip": 0.0}
    options |= {"train_transform": sides, "eval_transform": {"short_edge": 64, "long_edge": 64}}
    return build_datamodule(from_dict(options, "data"), task=task, masks=task == "instance")


@pytest.mark.parametrize("name", MODELS)
def test_four_images_are_learnt_by_heart(name: str, root: Path) -> None:
    found = learn(*MODELS[name], four_images(root, "detection"), LONGER.get(name, STEPS))
    assert found["bbox"]["AP"] >= 0.9  # the ceiling of boxes is 1


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_four_images_are_learnt_by_heart(name: str, root: Path) -> None:
    neck, head = MASKED[name]
    loss = {**to_dict(registered("head")[name]())["loss"], "cells_per_point": 1}  # there are few cells
    found = learn(neck, {**head, "mask_ffn_dim": 128, "loss": loss}, four_images(root, "instance"), MASKED_STEPS)
    assert found["segm"]["AP"] >= 0.9 * MASK_CEILING


def learn(neck: dict[str, Any], head: dict[str, Any], data: DataModule, steps: int) -> dict[str, Any]:
    """Metrics of a model that was trained on the images."""
    torch.manual_seed(0)
    config = VisionModelConfig(
        backbone=from_dict({"type": "timm", "model_name": "test_resnet"}, "backbone"),
        neck=from_dict(neck, "neck"),
        head=from_dict(head, "head"),
        categories=data.categories,
        task=data.task,
    )
    model = VisionModel(config).train()
    (batch,) = data.train_dataloader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = torch.stack(list(training_losses(model, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return metrics_of(model.eval(), data)


@torch.no_grad()
def metrics_of(model: VisionModel, data: DataModule) -> dict[str, Any]:
    evaluator = build_evaluator(data, top_k=100)
    for batch in data.val_dataloader():
        outputs = model(model.normalize(batch.images, batch.padding_mask), image_sizes=batch.image_sizes)
        for info, found in zip(batch.infos, predictions_for(evaluator, model, outputs, batch.infos), strict=True):
            evaluator.update(info.image_id, found)
    return dict(evaluator.compute())
