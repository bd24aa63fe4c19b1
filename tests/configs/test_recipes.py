"""Every recipe of configs/experiment composes and builds; one of each kind of model and task takes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vision_stack.model  # noqa: F401  registers every part
from vision_stack.config import from_dict
from vision_stack.data.configs import DataConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Category, Target
from vision_stack.training.optim import OptimConfig, build_optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = [
    f"{folder}/{head}_{size}"
    for folder in ("coco_instance", "coco_panoptic", "ade20k_semantic")
    for head in ("mask2former", "maskformer")
    for size in ("r50", "swin_tiny", "swin_base", "swin_large")
]
SMALL_DATA = [f"finetune/{task}" for task in ("instance", "panoptic", "semantic")]
SMALL_PARTS = ["neck.channels=16", "neck.mask_channels=16", "head.hidden_dim=16", "head.ffn_dim=16", "head.num_heads=2"]
SMALL_PARTS += ["head.num_queries=5", "head.loss.num_points=32", "backbone=tiny", "backbone.out_strides=[4,8,16,32]"]


def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [f"experiment={name}", "data.root=DIR", *overrides])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def build(config: dict[str, Any], num_classes: int = 3) -> VisionModel:
    config["backbone"].pop("pretrained")
    parts = {kind: from_dict(config[kind], kind=kind) for kind in ("backbone", "neck", "head")}
    categories = tuple(Category(id=n, name=f"class {n}") for n in range(num_classes))
    return VisionModel(VisionModelConfig(**parts, task=config["task"], categories=categories))


def test_every_file_below_experiment_is_listed_here_or_part_of_one() -> None:
    found = {
        str(path.relative_to(CONFIGS / "experiment").with_suffix("")) for path in CONFIGS.glob("experiment/*/*.yaml")
    }
    assert {name for name in found if not name.startswith("parts/")} == {*PUBLISHED, *SMALL_DATA, "finetune/small_data"}


@pytest.mark.parametrize("name", [*PUBLISHED, *SMALL_DATA])
def test_recipe_composes_and_builds(name: str) -> None:
    config = composed(name)
    data: DataConfig = from_dict(config["data"], kind="data")
    optim = from_dict(config["optim"], cls=OptimConfig)
    with torch.device("meta"):
        model = build(config, num_classes=150)
    kind = name.split("/")[1].split("_")[0]
    if name in PUBLISHED:
        assert config["head"]["type"] == kind
        assert data.batch_size == 16
        assert optim.clip_norm == 0.01
        assert config["trainer"]["max_steps"] in (368750, 737500, 554400, 160000)
    assert config["task"] == {"ade20k": "semantic"}.get(name.split("_")[0], name.split("/")[0].split("_")[-1]) or (
        name in SMALL_DATA and config["task"] == kind
    )
    assert model.head.num_classes == 150


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("_swin_tiny")])
def test_recipe_with_small_parts_takes_a_step(name: str) -> None:
    encoder = ["neck.num_encoder_layers=1", "head.num_decoder_layers=2"]
    config = composed(name, *SMALL_PARTS, *encoder)
    model = build(config).train()
    optimizer = build_optimizer(model, from_dict(config["optim"], cls=OptimConfig))
    before = {name: value.clone() for name, value in model.named_parameters()}
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 8:40, 8:40] = True
    target = Target(labels=torch.tensor([1]), masks=masks, boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    losses = model.head.compute_loss(model(torch.randn(1, 3, 64, 64)), [target])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    changed = {
        part
        for name, value in model.named_parameters()
        if not torch.equal(value, before[name])
        for part in (name.split(".")[0],)
    }
    assert changed == {"backbone", "neck", "head"}
