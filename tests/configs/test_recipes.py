"""Every recipe of configs/experiment composes and builds; one of each kind of model and task takes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vision_stack.commands.run_folders
import vision_stack.model  # noqa: F401  registers every part
from vision_stack.config import from_dict
from vision_stack.data.configs import DataConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Category, Target
from vision_stack.training.optim import OptimConfig, build_optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
MASKS = [
    f"{folder}/{head}_{size}"
    for folder in ("coco_instance", "coco_panoptic", "ade20k_semantic")
    for head in ("mask2former", "maskformer")
    for size in ("r50", "swin_tiny", "swin_base", "swin_large")
]
EOMT = ["coco_instance/eomt_large_640", "coco_panoptic/eomt_large_640", "coco_panoptic/eomt_small_640"]
EOMT += ["ade20k_semantic/eomt_large_512"]
SIZES = {
    "d_fine": ("nano", "small", "medium", "large", "xlarge"),
    "deim_d_fine": ("nano", "small", "medium", "large", "xlarge"),
    "deimv2": ("nano", "small", "medium", "large", "xlarge"),
    "lw_detr": ("tiny", "small", "medium", "large", "xlarge"),
    "rf_detr": ("small", "medium"),
    "deformable_detr": ("r50",),
    "rt_detr": ("r50",),
}
DETECTORS = [f"coco_detection/{family}_{size}" for family, sizes in SIZES.items() for size in sizes]
HEADS = {"lw_detr": "rf_detr", "deim_d_fine": "d_fine"}  # of families that have not one of their own
BATCH = {"deformable_detr": 32, "d_fine": 32, "deimv2": 32, "lw_detr": 32}  # where it is not 16
BATCH |= {f"{family}_nano": 128 for family in ("d_fine", "deim_d_fine", "deimv2")} | {"deim_d_fine": 32}
BATCH |= {f"lw_detr_{size}": 16 for size in ("medium", "large", "xlarge")}
EPOCHS = {  # of the published runs, and of the ones below by their own names
    "d_fine": 80, "d_fine_nano": 160, "d_fine_small": 132, "d_fine_medium": 132,
    "deim_d_fine": 58, "deim_d_fine_nano": 160, "deim_d_fine_small": 132, "deim_d_fine_medium": 102,
    "deimv2": 58, "deimv2_nano": 160, "deimv2_small": 132, "deimv2_medium": 102, "deimv2_large": 68,
    "lw_detr": 60, "rf_detr": 100, "rt_detr": 72, "deformable_detr": 50,
}  # fmt: skip
IMAGES = 118287  # of COCO's
PUBLISHED = [*MASKS, *EOMT, *DETECTORS]
STEPS = {  # of the shapes of runs that were published, by head
    "mask2former": {368750, 737500, 160000},
    "maskformer": {554400, 160000},
    "eomt": {88692, 177384, 20192},
}
SMALL_DATA = {f"finetune/{task}": task for task in ("instance", "panoptic", "semantic")}  # and their tasks
SMALL_DATA |= {f"finetune/{head}": "detection" for head in ("d_fine", "deimv2", "rf_detr")}
TINY = ["backbone=tiny", "backbone.out_strides=[4,8,16,32]"]
QUERIES = [
    "head.hidden_dim=16",
    "head.ffn_dim=16",
    "head.num_heads=2",
    "head.num_queries=5",
    "head.num_decoder_layers=2",
]
SMALL_MASKS = [*TINY, *QUERIES, "neck.channels=16", "neck.mask_channels=16", "neck.num_encoder_layers=1"]
SMALL_MASKS += ["head.loss.num_points=32"]
SMALL_EOMT = ["backbone=timm", "backbone.model_name=test_vit4", "backbone.out_norms=true", "backbone.out_strides=null"]
SMALL_EOMT += ["backbone.out_indices=[-1]", "head.num_queries=5", "head.loss.num_points=32", "head.num_blocks=1"]
SMALL_EOMT += ["head.anneal_start=null", "head.anneal_end=null"]
SMALL_DEFORMABLE = [*TINY, *QUERIES, "neck.channels=16", "neck.ffn_dim=16", "neck.num_encoder_layers=1"]
SMALL_RT_DETR = [*TINY, *QUERIES, "neck.channels=16", "neck.ffn_dim=16", "neck.num_blocks=1"]
SMALL_RF_DETR = [*QUERIES, "head.num_groups=2", "head.cross_heads=2", "neck.channels=16", "neck.num_blocks=1"]
SMALL_DEIMV2 = [*QUERIES, "neck.channels=16", "neck.ffn_dim=16", "neck.num_blocks=1", "neck.detail_channels=4"]
SMALL_VIT = ["backbone.hidden_size=16", "backbone.intermediate_size=32", "backbone.num_attention_heads=2"]
SMALL_TIMM = ["backbone.model_name=test_vit4", "backbone.out_indices=[0,1,2]", "head.num_decoder_layers=2"]
SMALL_LW_DETR = [*QUERIES, "head.num_groups=2", "head.cross_heads=2", "neck.channels=16", "neck.num_blocks=1"]
SMALL_LW_DETR += ["backbone.hidden_size=24", "backbone.num_attention_heads=2"]
SMALL_RF_DETR += ["backbone.hidden_size=12", "backbone.num_attention_heads=2", "backbone.num_hidden_layers=12"]


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
    folder, file = name.split("/")
    if name in PUBLISHED:
        head, family = config["head"]["type"], file.rpartition("_")[0] if name in DETECTORS else file.partition("_")[0]
        assert head == HEADS.get(family, family)
        assert data.batch_size == BATCH.get(file, BATCH.get(family, 16))
        assert optim.clip_norm == (0.1 if name in DETECTORS else 0.01)
        if name in DETECTORS:
            epochs = EPOCHS.get(file, EPOCHS[family])
            assert config["trainer"]["max_steps"] == epochs * (IMAGES // data.batch_size)
            assert config["trainer"]["val_check_interval"] == IMAGES // data.batch_size
        else:
            assert config["trainer"]["max_steps"] in STEPS[head]
    assert config["task"] == SMALL_DATA.get(name, folder.rpartition("_")[2])
    assert model.head.num_classes == 150


@pytest.mark.parametrize(
    ("name", "small"),
    [
        *((name, SMALL_MASKS) for name in MASKS if name.endswith("_swin_tiny")),
        *((name, SMALL_EOMT) for name in EOMT if "small" not in name),
        ("coco_detection/deformable_detr_r50", SMALL_DEFORMABLE),
        ("coco_detection/rt_detr_r50", SMALL_RT_DETR),
        ("coco_detection/rf_detr_small", SMALL_RF_DETR),
        *((f"coco_detection/{name}", SMALL_RT_DETR) for name in ("d_fine_large", "deim_d_fine_xlarge")),
        ("coco_detection/deimv2_small", [*SMALL_DEIMV2, *SMALL_VIT]),
        ("coco_detection/deimv2_xlarge", [*SMALL_DEIMV2, *SMALL_TIMM]),
        *((f"coco_detection/lw_detr_{size}", SMALL_LW_DETR) for size in ("tiny", "xlarge")),
        ("finetune/d_fine", SMALL_RT_DETR),
        ("finetune/deimv2", [*SMALL_DEIMV2, *SMALL_TIMM]),
        ("finetune/rf_detr", [*SMALL_LW_DETR[:-2], *SMALL_TIMM]),
    ],
)
def test_recipe_with_small_parts_takes_a_step(name: str, small: list[str]) -> None:
    config = composed(name, *small)
    model = build(config).train()
    optimizer = build_optimizer(model, from_dict(config["optim"], cls=OptimConfig))
    before = {name: value.clone() for name, value in model.named_parameters()}
    masks = torch.zeros(1, 96, 96, dtype=torch.bool)
    masks[:, 8:40, 8:40] = True
    target = Target(labels=torch.tensor([1]), masks=masks, boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    losses = model.head.compute_loss(model(torch.randn(1, 3, 96, 96), targets=[target]), [target])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    changed = {
        part
        for name, value in model.named_parameters()
        if not torch.equal(value, before[name])
        for part in (name.split(".")[0],)
    }
    assert changed == {name.split(".")[0] for name in before}
