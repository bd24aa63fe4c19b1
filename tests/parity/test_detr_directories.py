"""Whole RT-DETR, D-FINE, DEIMv2 and Deformable DETR directories of transformers: loaded, compared in float64, written
back.

Where the images of a batch differ in size, transformers' RT-DETR reads the padding as if it belonged to them, and ours
does not: its padded batch goes from transformers through our files to transformers. Its boxes are shares of the padded
batch, as ours are of images that fill it.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.deformable_detr import modeling_deformable_detr as theirs_module
from transformers.models.deimv2.modeling_deimv2 import Deimv2RMSNorm

from vision_stack.backbones import TimmBackboneConfig
from vision_stack.backbones.config_json import decode_backbone
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.heads import RTDETRHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import HybridEncoderConfig
from vision_stack.published import from_transformers
from vision_stack.structures import Category
from vision_stack.weights.architectures import ARCHITECTURES, architecture_for, architecture_of
from vision_stack.weights.files import read_tensors, save_tensors

CLASSES, QUERIES, LAYERS = 3, 7, 2
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
HGNET = {
    "stem_channels": [3, 4, 8], "stage_in_channels": [8, 8, 12, 16], "stage_mid_channels": [4] * 4,
    "stage_out_channels": [8, 12, 16, 20], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [2] * 4,
    "hidden_sizes": [8, 12, 16, 20], "depths": [1] * 4, "embedding_size": 8,
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
IN_FLOAT32 = {  # 1/3 and 1/6, shares of points, in the files; the angles of rotary positions in both
    "d_fine": 1e-7,
    "deimv2, HGNetV2": 1e-7,
    "deimv2, DINOv3": 1e-6,
    "deimv2, ViT": 1e-6,
}
BATCHES = {
    "equal sizes": ((64, 96), ((64, 96), (64, 96))),
    "padded": ((96, 128), ((96, 81), (70, 128))),
}


def rt_detr(version: str = "", **options: Any) -> Any:
    resnet = transformers.RTDetrResNetConfig(**RESNET, out_indices=[2, 3, 4])
    config = getattr(transformers, f"RTDetr{version}Config")(
        **{"backbone_config": resnet, "d_model": 32, "encoder_in_channels": [12, 16, 20]} | options,
        encoder_hidden_dim=16,
        decoder_in_channels=[16] * 3, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8,
        decoder_ffn_dim=24, decoder_layers=LAYERS, num_queries=QUERIES, num_labels=CLASSES, num_denoising=20,
        attn_implementation="eager",
    )  # fmt: skip
    return getattr(transformers, f"RTDetr{version}ForObjectDetection")(config)


def d_fine(points: Any) -> Any:
    config = transformers.DFineConfig(
        backbone_config=transformers.HGNetV2Config(**HGNET), d_model=32, encoder_in_channels=[12, 16, 20],
        encoder_hidden_dim=16, decoder_in_channels=[16] * 3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=24, decoder_layers=LAYERS, num_queries=QUERIES, num_labels=CLASSES,
        num_denoising=20, decoder_n_points=points, attn_implementation="eager",
    )  # fmt: skip
    return transformers.DFineForObjectDetection(config)


def deimv2(backbone: Any, levels: int = 3, **options: Any) -> Any:
    config = transformers.Deimv2Config(
        **{"backbone_config": backbone, "d_model": 16, "encoder_in_channels": [12, 16, 20]} | options,
        encoder_hidden_dim=16, decoder_in_channels=[16] * levels, num_feature_levels=levels, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=24, decoder_layers=LAYERS, num_queries=QUERIES,
        num_labels=CLASSES, num_denoising=20, attn_implementation="eager",
    )  # fmt: skip
    return transformers.Deimv2ForObjectDetection(config)


def dinov3(**options: Any) -> Any:
    return transformers.DINOv3ViTConfig(
        **{"out_indices": [2, 3, 4], "num_register_tokens": 0} | options,
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24,
    )  # fmt: skip


ON_DINOV3 = {"encoder_has_trailing_conv": False, "spatial_tuning_adapter_inplanes": 4, "hidden_expansion": 0.5}
SMALLEST = {"share_bbox_head": True, "use_gateway": False, "encoder_type": "lite", "depth_mult": 0.5}


def deformable_detr(refine: bool, two_stage: bool, **options: Any) -> Any:
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        **{"backbone_config": backbone, "d_model": 32, "encoder_layers": 1, "decoder_layers": LAYERS} | options,
        encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2,
        num_queries=QUERIES, two_stage_num_proposals=QUERIES, num_labels=CLASSES, with_box_refine=refine,
        two_stage=two_stage, encoder_n_points=2, decoder_n_points=3, attn_implementation="eager",
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


TIMM = {"model_type": "timm_backbone", "backbone": "test_resnet", "features_only": True, "out_indices": [2, 3, 4]}
MODELS: dict[str, Callable[[], Any]] = {
    "rt_detr": rt_detr,
    "rt_detr, norms that learn": lambda: rt_detr(freeze_backbone_batch_norms=False),
    "rt_detr_v2": lambda: rt_detr("V2"),
    "rt_detr, HGNetV2": lambda: rt_detr(backbone_config=transformers.HGNetV2Config(**HGNET)),
    "d_fine": lambda: d_fine([3, 6, 3]),
    "d_fine, one number of points": lambda: d_fine(2),
    "deimv2, HGNetV2": lambda: deimv2(
        transformers.HGNetV2Config(**HGNET),
        decoder_activation_function="silu",
        decoder_n_points=[3, 6, 3],
        freeze_backbone_batch_norms=False,
    ),
    "deimv2, DINOv3": lambda: deimv2(
        dinov3(key_bias=True, num_register_tokens=2, use_gated_mlp=True, hidden_act="silu"), **ON_DINOV3
    ),
    "deimv2, ViT": lambda: deimv2(dinov3(apply_layernorm=False), **ON_DINOV3),
    "deimv2, smallest": lambda: deimv2(
        transformers.HGNetV2Config(**HGNET | {"out_features": ["stage3"], "use_learnable_affine_block": True}),
        levels=2,
        decoder_n_points=[4, 2],
        encoder_in_channels=[16],
        **SMALLEST,
    ),
    "deformable_detr": lambda: deformable_detr(refine=False, two_stage=False),
    "deformable_detr, refine": lambda: deformable_detr(refine=True, two_stage=False),
    "deformable_detr, two_stage": lambda: deformable_detr(refine=True, two_stage=True),
    "deformable_detr, one map": lambda: deformable_detr(
        refine=False,
        two_stage=False,
        num_feature_levels=1,
        backbone_config=transformers.ResNetConfig(**RESNET, out_features=["stage4"]),
    ),
    "deformable_detr, timm": lambda: deformable_detr(refine=True, two_stage=True, backbone_config=TIMM),
}


def proposal_encoding(logits: Tensor) -> Tensor:
    """sin and cos of 2 pi x / 10000^(2k/C) for each coordinate x of the boxes; transformers casts it to float32."""
    angle = logits.sigmoid()[..., None] * 2 * math.pi / 10000 ** (torch.arange(0, 16, 2).double() / 16)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(2)


def rms_norm(self: Deimv2RMSNorm, x: Tensor) -> Tensor:
    return self.weight * x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deimv2RMSNorm, "forward", rms_norm)
    monkeypatch.setattr(
        theirs_module.DeformableDetrModel, "get_proposal_pos_embed", lambda self, logits: proposal_encoding(logits)
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory of each model, with predictors that differ from layer to layer, as published ones do."""
    built: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp("model")
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(built[name])
            perturb(built[name] / "model.safetensors")
        return built[name]

    return of


def perturb(file: Path) -> None:
    """All weights, also those that transformers ties and leaves out."""
    state = read_tensors(file)
    if "model.decoder.bbox_embed.0.layers.0.bias" in state:
        for name in [name for name in state if name.startswith("class_embed.0.")]:
            state |= {name.replace(".0.", f".{i}."): state[name].clone() for i in range(1, LAYERS)}
    if "model.decoder.bbox_embed.0.layers.0.bias" not in state:
        # transformers writes a shared predictor as the last layer's, but reads it as the first one's only.
        shared = f"model.decoder.bbox_embed.{LAYERS - 1}."
        state = {name.replace(shared, "model.decoder.bbox_embed.0."): value for name, value in state.items()}
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if (
            not value.is_floating_point()
            or not value.numel()
            or re.search(r"n(um)?_points_scale|decoder\.(up|reg_scale)$", name)
        ):
            continue
        if "running_var" in name:
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
            continue
        scale = 0.3 if value.ndim == 1 else value[0].numel() ** -0.5
        state[name] = value + scale * torch.randn(value.shape, generator=generator)
        if "class_embed" in name or "enc_score" in name:
            state[name] *= 2
        if "bbox" in name and name.endswith("layers.2.bias"):
            state[name].zero_()  # boxes that are far from 0 and 1
    save_tensors(state, file)


def batch_of(name: str) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
    size, sizes = BATCHES[name]
    mask = torch.zeros(2, *size, dtype=torch.long)
    for each, (height, width) in zip(mask, sizes, strict=True):
        each[:height, :width] = 1
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images * mask[:, None], mask, sizes


@torch.no_grad()
def theirs_of(path: Path, batch: str) -> tuple[Tensor, Tensor]:
    """transformers' logits and boxes of what it loads without a missing or unknown tensor."""
    images, mask, _ = batch_of(batch)
    model, info = transformers.AutoModelForObjectDetection.from_pretrained(
        path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    outputs = model.double().eval()(images, pixel_mask=mask)
    assert outputs.logits.std() > 0.5
    return outputs.logits, outputs.pred_boxes


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_directory_of_transformers_loads_strictly_with_equal_logits_and_boxes(
    name: str, batch: str, directory: Callable[[str], Path]
) -> None:
    images, _, sizes = batch_of(batch)
    model = VisionModel.from_pretrained(directory(name)).double().eval()
    assert model.config.task == "detection"
    assert not model.load_report.missing
    assert not model.load_report.unexpected
    if name.startswith(("rt_detr", "d_fine", "deimv2")):
        sizes = (BATCHES[batch][0],) * 2
    with torch.no_grad():
        found = model(images, image_sizes=sizes)
    logits, boxes = theirs_of(directory(name), batch)
    close = next((tolerance for start, tolerance in IN_FLOAT32.items() if name.startswith(start)), 1e-9)
    torch.testing.assert_close(found.pred_logits, logits, rtol=0, atol=close)
    torch.testing.assert_close(found.pred_boxes, boxes, rtol=0, atol=close)


@pytest.mark.parametrize("name", MODELS)
def test_model_goes_back_to_transformers(name: str, directory: Callable[[str], Path], tmp_path: Path) -> None:
    VisionModel.from_pretrained(directory(name)).export_transformers(tmp_path)
    for expected, found in zip(theirs_of(directory(name), "padded"), theirs_of(tmp_path, "padded"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    again = VisionModel.from_pretrained(tmp_path)
    assert again.config.categories == VisionModel.from_pretrained(directory(name)).config.categories
    transformers.AutoImageProcessor.from_pretrained(tmp_path)


def test_model_of_ours_on_a_backbone_of_timm_with_finer_maps_is_written(tmp_path: Path) -> None:
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("test_resnet", out_strides=[4, 8, 16, 32]),
        neck=HybridEncoderConfig(channels=16, ffn_dim=8, num_heads=2, num_blocks=1),
        head=RTDETRHeadConfig(num_queries=QUERIES, hidden_dim=32, num_heads=2, ffn_dim=24, num_decoder_layers=LAYERS),
        categories=(Category(id=7, name="cat"), Category(id=9, name="dog")),
        task="detection",
    )
    with pytest.raises(ConfigError, match=r"neck\.num_blocks: transformers' rt_detr has 3, not 1"):
        VisionModel(config).export_transformers(tmp_path)
    config = replace(config, neck=replace(config.neck, num_blocks=3))
    model = VisionModel(config)
    model.export_transformers(tmp_path)
    perturb(tmp_path / "model.safetensors")
    images, _, sizes = batch_of("equal sizes")
    with torch.no_grad():
        found = VisionModel.from_pretrained(tmp_path).double().eval()(images, image_sizes=sizes)
    torch.testing.assert_close(found.pred_logits, theirs_of(tmp_path, "equal sizes")[0], rtol=0, atol=1e-9)
    assert VisionModel.from_pretrained(tmp_path).config.categories == config.categories


def test_predictors_are_read_by_either_name(directory: Callable[[str], Path], tmp_path: Path) -> None:
    path = directory("deformable_detr, two_stage")
    state = read_tensors(path / "model.safetensors")
    whole = {re.sub(r"^model\.decoder\.(?=(class|bbox)_embed\.)", "", name): value for name, value in state.items()}
    assert whole.keys() != state.keys()
    save_tensors(whole, tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to(path / "config.json")
    expected = VisionModel.from_pretrained(path).state_dict()
    torch.testing.assert_close(VisionModel.from_pretrained(tmp_path).state_dict(), expected, rtol=0, atol=0)


def test_classes_without_a_name_of_their_own_are_read(directory: Callable[[str], Path], tmp_path: Path) -> None:
    """COCO's 91 numbers, of which eleven name nothing."""
    path = directory("deformable_detr")
    raw = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"id2label": {"0": "N/A", "1": "cat", "2": "N/A"}}))
    (tmp_path / "model.safetensors").symlink_to(path / "model.safetensors")
    assert [each.name for each in VisionModel.from_pretrained(tmp_path).categories] == ["N/A", "cat", "N/A"]


PUBLISHED = {  # what the configs of published models say besides transformers' defaults
    "rt_detr, R50": lambda: transformers.RTDetrConfig(),
    "rt_detr, R101": lambda: transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(depths=[3, 4, 23, 3], out_indices=[2, 3, 4]),
        encoder_hidden_dim=384, encoder_ffn_dim=2048, decoder_in_channels=[384] * 3,
    ),
    "rt_detr_v2, R18": lambda: transformers.RTDetrV2Config(
        backbone_config=transformers.RTDetrResNetConfig(
            hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_indices=[2, 3, 4]
        ),
        encoder_in_channels=[128, 256, 512], hidden_expansion=0.5, decoder_layers=3,
    ),
    "deformable_detr, two_stage": lambda: transformers.DeformableDetrConfig(two_stage=True, with_box_refine=True),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_sizes_are_those_of_our_parts(name: str) -> None:
    config = PUBLISHED[name]()
    raw = json.loads(config.to_json_string())
    entry = architecture_of(raw)
    with torch.device("meta"):
        theirs = transformers.AutoModelForObjectDetection.from_config(config)
        neck, head = entry.parts(raw)
        parts = {"backbone": decode_backbone(entry.backbone(raw)), "neck": from_dict(neck, "neck")}
        categories = tuple(Category(id=n, name=str(n)) for n in range(config.num_labels))
        ours = VisionModel(
            VisionModelConfig(**parts, head=from_dict(head, "head"), categories=categories, task="detection")
        )
    prefix = "model.backbone.conv_encoder." if config.model_type == "deformable_detr" else "model.backbone."
    state = {key.replace("model.backbone.", prefix, 1): value for key, value in theirs.state_dict().items()}
    found, not_built = from_transformers(raw, state, ours.backbone)
    assert not not_built
    expected = {key: value.shape for key, value in ours.state_dict().items()}
    assert {key: value.shape for key, value in found.items()} == expected


def test_exchanged_query_and_key_are_noticed(directory: Callable[[str], Path]) -> None:
    model = VisionModel.from_pretrained(directory("rt_detr")).double().eval()
    attention: Any = model.get_submodule("head.layers.1.self_attn")
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    images, _, sizes = batch_of("equal sizes")
    with torch.no_grad():
        found = model(images, image_sizes=sizes)
    assert (found.pred_logits - theirs_of(directory("rt_detr"), "equal sizes")[0]).abs().max() > 1e-3


def test_predictors_that_transformers_ties_and_leaves_out_of_a_file_are_the_first_ones(tmp_path: Path) -> None:
    deformable_detr(refine=True, two_stage=False).save_pretrained(tmp_path)
    assert not any(name.startswith("class_embed.1.") for name in read_tensors(tmp_path / "model.safetensors"))
    model = VisionModel.from_pretrained(tmp_path)
    first, second = (model.get_parameter(f"head.class_embed.{i}.weight") for i in range(LAYERS))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_backbones_of_older_files_are_those_of_timm_with_frozen_norms() -> None:
    raw = {"model_type": "deformable_detr", "backbone": "resnet50", "use_timm_backbone": True, "backbone_config": None}
    found = ARCHITECTURES["deformable_detr"].backbone(raw)
    assert found["backbone"] == "resnet50"
    assert found["out_indices"] == [2, 3, 4]
    assert found["freeze_batch_norm_2d"] is True
    assert ARCHITECTURES["rt_detr"].backbone({"model_type": "rt_detr"})["freeze_norm"] is True


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("rt_detr", {"learn_initial_query": True}, "learn_initial_query: True is not built here, only False is"),
        ("rt_detr", {"num_feature_levels": 4}, "num_feature_levels: 4 is not built here, only 3 is"),
        ("rt_detr_v2", {"decoder_method": "discrete"}, "decoder_method: 'discrete' is not built here"),
        ("rt_detr_v2", {"decoder_offset_scale": 1.0}, r"decoder_offset_scale: 1\.0 is not built here"),
        ("deformable_detr", {"position_embedding_type": "learned"}, "position_embedding_type: 'learned' is not built"),
        ("deformable_detr", {"num_feature_levels": 2}, "num_feature_levels: 2 is not built here, only 1 "),
        ("deformable_detr", {"num_feature_levels": "4"}, "num_feature_levels: '4' is not built here, only 1 "),
    ],
)
def test_config_that_is_not_built_is_one_line(
    name: str, change: dict[str, Any], problem: str, directory: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = json.loads((directory(name) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    (tmp_path / "model.safetensors").symlink_to(directory(name) / "model.safetensors")
    with pytest.raises(ConfigError, match=problem):
        VisionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("backbone", ["rt_detr_resnet", "hgnet_v2"])
def test_model_whose_backbone_has_a_map_that_is_not_read_goes_there_and_back(backbone: str, tmp_path: Path) -> None:
    """The options say strides from 4 on, and the neck reads from 8 on."""
    shape = RESNET if backbone == "rt_detr_resnet" else HGNET
    derived = ("out_features", "stage_in_channels", "embedding_size", "hidden_sizes", "depths")
    own = {k: v for k, v in shape.items() if shape is RESNET or k not in derived}
    plain = {
        "backbone": {"type": backbone, **own, "out_strides": [4, 8, 16, 32]},
        "neck": {"type": "hybrid_encoder", "channels": 32, "num_heads": 2, "ffn_dim": 8},
        "head": {"type": "rt_detr", "hidden_dim": 32, "num_heads": 2, "ffn_dim": 8, "num_queries": QUERIES},
        "categories": [{"id": 1, "name": "ring"}],
        "task": "detection",
    }
    model = VisionModel(from_dict(plain, cls=VisionModelConfig)).eval()
    model.export_transformers(tmp_path)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = model(images), VisionModel.from_pretrained(tmp_path)(images)
    torch.testing.assert_close(found.pred_logits, expected.pred_logits)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes)


@pytest.mark.parametrize("name", ["rt_detr", "d_fine", "deformable_detr"])
def test_dropout_of_a_neck_that_is_lost_is_said(name: str, directory: Callable[[str], Path]) -> None:
    model = VisionModel.from_pretrained(directory(name))
    plain = to_dict(model.config)
    plain["neck"]["dropout"] = 0.5
    with pytest.warns(UserWarning, match=r"neck\.dropout: transformers' .* has one dropout for neck and head"):
        raw, _ = architecture_for(plain).export(model, plain)
    assert raw["dropout"] == plain["head"]["dropout"]


@pytest.mark.parametrize(
    ("name", "part", "change", "problem"),
    [
        ("rt_detr", "neck", {"fusion": "elan"}, r"neck\.fusion: transformers' rt_detr has 'csp_rep', not 'elan'"),
        ("rt_detr", "neck", {"type": "fpn"}, "no model with neck=fpn and head=rt_detr; it has hybrid_encoder with"),
        ("d_fine", "head", {"activation": "silu"}, r"head\.activation: transformers' D-FINE has 'relu', not 'silu'"),
    ],
)
def test_model_that_transformers_has_not_is_one_line(
    name: str, part: str, change: dict[str, Any], problem: str, directory: Callable[[str], Path]
) -> None:
    model = VisionModel.from_pretrained(directory(name))
    plain = to_dict(model.config)
    plain[part] |= change
    with pytest.raises(ConfigError, match=problem):
        architecture_for(plain).export(model, plain)
