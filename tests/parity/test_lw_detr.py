"""LW-DETR directories of transformers, which are `head=rf_detr` on `neck=scale_projector`: loaded, compared layer by
layer, written back.

transformers computes the wavelengths of the queries' positions in float32; for float64 the formula takes their place.
Its eager attention computes probabilities in float32, whatever it is given, so that PyTorch's is asked for.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models.lw_detr.modeling_lw_detr as theirs_module
from torch import Tensor, nn
from transformers import LwDetrConfig, LwDetrForObjectDetection

from vision_stack.backbones.config_json import decode_backbone
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.outputs import BoxOutputs
from vision_stack.published import from_transformers
from vision_stack.structures import Category
from vision_stack.weights.architectures import architecture_for, architecture_of
from vision_stack.weights.files import read_tensors, save_tensors

CLASSES, QUERIES, GROUPS, LAYERS = 3, 6, 3, 2
SCALES = {"one map": [1.0], "two maps": [2.0, 0.5]}
BACKBONE = {
    "model_type": "lw_detr_vit",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pretrain_image_size": 64,
    "num_windows": 4,
    "window_block_indices": [0, 1, 3],
    "out_indices": [2, 4],
}
BATCHES = {
    "equal sizes": ((96, 128), ((96, 128), (96, 128))),
    "padded": ((128, 96), ((128, 64), (75, 96))),
}
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a standard deviation


def position_encoding(boxes: Tensor, num_pos_feats: int) -> Tensor:
    """sin and cos of 2 pi x / 10000^(2k/C) by turns, for y, x, w, h: [B, Q, 4] -> [B, Q, 4 * C]."""
    channels = num_pos_feats
    exponents = torch.arange(0, channels, 2, dtype=boxes.dtype) / channels
    angle = boxes[..., [1, 0, 2, 3], None] * 2 * math.pi / 10000**exponents
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(2)


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs_module, "encode_sinusoidal_position_embedding", position_encoding)


def oracle(scales: list[float]) -> Any:
    config = LwDetrConfig(
        backbone_config=BACKBONE, projector_scale_factors=scales, c2f_num_blocks=1, d_model=32, decoder_layers=LAYERS,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=4, decoder_n_points=2, decoder_ffn_dim=24,
        num_queries=QUERIES, group_detr=GROUPS, num_labels=CLASSES, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LwDetrForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter) * (0.1 if "norm" in name else 0.5))
            if "class_embed" in name:
                parameter.mul_(6)
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 1.5)
            elif "running_mean" in name:
                buffer.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def of(scales: str) -> Path:
        if scales not in paths:
            paths[scales] = tmp_path_factory.mktemp("lw_detr")
            oracle(SCALES[scales]).save_pretrained(paths[scales])
        return paths[scales]

    return of


def batch_of(name: str) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
    size, sizes = BATCHES[name]
    mask = torch.zeros(2, *size, dtype=torch.long)
    for each, (height, width) in zip(mask, sizes, strict=True):
        each[:height, :width] = 1
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images * mask[:, None], mask, sizes


@torch.no_grad()
def theirs_of(path: Path, batch: str, *, train: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """transformers' logits and boxes of all layers, and of the proposals, by what it loads without a missing tensor."""
    images, mask, _ = batch_of(batch)
    kept: dict[str, Tensor] = {}

    def keep(logits: Any, labels: Any, device: Any, boxes: Any, config: Any, *layers: Tensor) -> Any:
        kept.update(zip(("logits", "boxes", "encoder_logits", "encoder_boxes"), layers, strict=True))
        return None, None, None

    model, info = LwDetrForObjectDetection.from_pretrained(path, output_loading_info=True, attn_implementation="sdpa")
    assert not any(info.values()), info
    model = model.to(dtype).train(train)
    model.loss_function = keep
    model(images.to(dtype), pixel_mask=mask, labels=[])
    return kept


@torch.no_grad()
def outputs_of(model: nn.Module, batch: str) -> BoxOutputs:
    images, _, sizes = batch_of(batch)
    return model(images.to(next(model.parameters()).dtype), image_sizes=sizes)


def assert_equal(outputs: BoxOutputs, kept: dict[str, Tensor], close: float = 1e-9) -> None:
    logits = torch.cat([outputs.aux_logits, outputs.pred_logits[None]])
    boxes = torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]])
    assert kept["logits"].std() > 1
    pairs = [(logits, kept["logits"]), (boxes, kept["boxes"])]
    if outputs.encoder_logits is not None:
        pairs += [(outputs.encoder_logits, kept["encoder_logits"]), (outputs.encoder_boxes, kept["encoder_boxes"])]
    for found, expected in pairs:
        spread = expected.flatten(0, -2).std(0).clamp(min=1e-3)  # of each class, or side of a box
        torch.testing.assert_close(found / spread, expected / spread, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scales", SCALES)
def test_all_layers_groups_and_proposals_equal_transformers(
    scales: str, batch: str, train: bool, dtype: torch.dtype, directory: Callable[[str], Path]
) -> None:
    model = VisionModel.from_pretrained(directory(scales))
    assert model.config.task == "detection"
    assert not model.load_report.missing
    assert not model.load_report.unexpected
    assert not model.load_report.not_built
    outputs = outputs_of(model.to(dtype).train(train), batch)
    assert outputs.pred_logits.shape[1] == (GROUPS * QUERIES if train else QUERIES)
    assert (outputs.encoder_logits is not None) == train
    assert_equal(outputs, theirs_of(directory(scales), batch, train=train, dtype=dtype), CLOSE[dtype])


def exchange_the_maps(model: Any) -> None:
    model.neck.levels = model.neck.levels[::-1]


def forget_the_windows(model: Any) -> None:
    model.backbone.windowed = frozenset()


def drop_layer_scale(model: Any) -> None:
    model.backbone.net.blocks[1].ls2 = nn.Identity()


@pytest.mark.parametrize("plant", [exchange_the_maps, forget_the_windows, drop_layer_scale])
def test_planted_fault_is_noticed(plant: Callable[[Any], None], directory: Callable[[str], Path]) -> None:
    model = VisionModel.from_pretrained(directory("two maps")).double().eval()
    kept = theirs_of(directory("two maps"), "equal sizes")
    assert_equal(outputs_of(model, "equal sizes"), kept)
    plant(model)
    with pytest.raises(AssertionError):
        assert_equal(outputs_of(model, "equal sizes"), kept)


@pytest.mark.parametrize("scales", SCALES)
def test_model_goes_back_to_transformers(scales: str, directory: Callable[[str], Path], tmp_path: Path) -> None:
    VisionModel.from_pretrained(directory(scales)).export_transformers(tmp_path)
    expected, found = (theirs_of(path, "padded", train=True) for path in (directory(scales), tmp_path))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=0)
    again = VisionModel.from_pretrained(tmp_path)
    before = VisionModel.from_pretrained(directory(scales)).config
    assert (again.config.backbone, again.config.neck, again.config.head) == (before.backbone, before.neck, before.head)
    transformers_processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert transformers_processor["image_processor_type"] == "DeformableDetrImageProcessor"


def test_layers_after_the_last_map_are_not_built_and_not_written(
    directory: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = json.loads((directory("one map") / "config.json").read_text())
    raw["backbone_config"] |= {"out_indices": [2, 3], "out_features": ["stage2", "stage3"]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").symlink_to(directory("one map") / "model.safetensors")
    model = VisionModel.from_pretrained(tmp_path)
    assert model.load_report.not_built
    assert all(".layer.3." in name or "blocks.3." in name for name in model.load_report.not_built)
    expected = theirs_of(tmp_path, "equal sizes")
    assert_equal(outputs_of(model.double().eval(), "equal sizes"), expected)
    model.float().export_transformers(tmp_path / "back")
    assert_equal(outputs_of(model.double(), "equal sizes"), theirs_of(tmp_path / "back", "equal sizes"))


def test_names_of_a_model_in_memory_and_the_old_name_of_a_weight_are_read(
    directory: Callable[[str], Path], tmp_path: Path
) -> None:
    path = directory("one map")
    raw = json.loads((path / "config.json").read_text())
    del raw["class_loss_coefficient"]
    (tmp_path / "config.json").write_text(json.dumps(raw | {"mask_loss_coefficient": 3}))
    state = {
        re.sub(r"attention\.attention\.(\w)\w+\.", r"attention.\1_proj.", name): value
        for name, value in read_tensors(path / "model.safetensors").items()
    }
    save_tensors(
        {name.replace("attention.output.", "attention.o_proj."): value for name, value in state.items()},
        tmp_path / "model.safetensors",
    )
    model = VisionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(model.state_dict(), VisionModel.from_pretrained(path).state_dict(), rtol=0, atol=0)
    assert model.config.head.loss.class_weight == 3  # type: ignore[attr-defined]


SMALL = {"hidden_size": 192, "num_hidden_layers": 10, "num_attention_heads": 12, "out_indices": [3, 5, 6, 10]}
SMALL |= {"window_block_indices": [0, 1, 3, 6, 7, 9], "image_size": 1024, "model_type": "lw_detr_vit"}
LARGE = {"projector_scale_factors": [2.0, 0.5], "d_model": 384, "decoder_n_points": 4}
LARGE |= {"decoder_self_attention_heads": 12, "decoder_cross_attention_heads": 24}
PUBLISHED = {  # what configs of published models say; parameters in millions
    "tiny": (
        {**SMALL, "num_hidden_layers": 6, "window_block_indices": [0, 2, 4], "out_indices": [2, 4, 6]},
        {"projector_scale_factors": [1.0], "num_queries": 100, "decoder_n_points": 2},
        12.1,
    ),
    "small": (SMALL, {"projector_scale_factors": [1.0], "decoder_n_points": 2}, 14.6),
    "medium": ({**SMALL, "hidden_size": 384}, {"projector_scale_factors": [1.0], "decoder_n_points": 2}, 28.2),
    "large": ({**SMALL, "hidden_size": 384}, LARGE, 46.8),
    "xlarge": ({**SMALL, "hidden_size": 768}, LARGE, 118.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_sizes_are_those_of_our_parts(name: str) -> None:
    backbone, options, millions = PUBLISHED[name]
    config = LwDetrConfig(backbone_config=backbone, num_labels=91, **options)
    raw = json.loads(config.to_json_string())
    entry = architecture_of(raw)
    with torch.device("meta"):
        theirs = LwDetrForObjectDetection(config)
        neck, head = entry.parts(raw)
        parts = {"backbone": decode_backbone(entry.backbone(raw)), "neck": from_dict(neck, "neck")}
        categories = tuple(Category(id=n, name=str(n)) for n in range(91))
        ours = VisionModel(
            VisionModelConfig(**parts, head=from_dict(head, "head"), categories=categories, task="detection")
        )
    found, not_built = from_transformers(raw, theirs.state_dict(), ours.backbone)
    assert not not_built
    expected = {key: value.shape for key, value in ours.state_dict().items()}
    found = {key: value for key, value in found.items() if key in expected or "num_batches" not in key}
    assert {key: value.shape for key, value in found.items()} == expected
    assert abs(sum(p.numel() for p in ours.parameters()) - millions * 1e6) < 0.06e6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"projector_scale_factors": []}, r"neck\.scales: some of 2, 1 and 0\.5 in this order, got \[\]"),
        ({"projector_scale_factors": [0.5, 2.0]}, r"neck\.scales: some of 2, 1 and 0\.5 in this order"),
        ({"decoder_activation_function": "gelu"}, "decoder_activation_function: 'gelu' is not built here"),
        ({"batch_norm_eps": 1e-3}, r"batch_norm_eps: 0\.001 is not built here"),
    ],
)
def test_config_that_is_not_built_is_one_line(
    change: dict[str, Any], problem: str, directory: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = json.loads((directory("one map") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    (tmp_path / "model.safetensors").symlink_to(directory("one map") / "model.safetensors")
    with pytest.raises(ConfigError, match=problem):
        VisionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "problem"),
    [
        ("neck", {"norm": "layer"}, r"neck\.norm: transformers' lw_detr has 'batch', not 'layer'"),
        ("neck", {"channels": 16}, r"neck\.channels: transformers' LW-DETR has as many as head\.hidden_dim"),
        ("backbone", {"out_norms": True}, r"backbone\.out_norms: transformers' LW-DETR has no norms on the maps"),
        (
            "backbone",
            {"type": "vit"},
            "backbone=vit: transformers has no model with it and head=rf_detr; it has rf_detr_",
        ),
        (
            "head",
            {"type": "rf_detr_seg"},
            "backbone=lw_detr_vit: transformers has no model with it and head=rf_detr_seg",
        ),
    ],
)
def test_model_that_transformers_has_not_is_one_line(
    part: str, change: dict[str, Any], problem: str, directory: Callable[[str], Path]
) -> None:
    model = VisionModel.from_pretrained(directory("one map"))
    plain = to_dict(model.config)
    plain[part] |= change
    with pytest.raises(ConfigError, match=problem):
        architecture_for(plain).export(model, plain)
