"""`head=rf_detr` with `neck=scale_projector` on windowed DINOv2 against transformers' RF-DETR, in float64.

transformers computes the wavelengths of the queries' positions in float32; the formula takes their place here.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models.rf_detr.modeling_rf_detr as theirs_module
from torch import Tensor
from transformers import RfDetrConfig, RfDetrForInstanceSegmentation, RfDetrForObjectDetection

from vision_stack.config import ConfigError
from vision_stack.model import VisionModel
from vision_stack.outputs import BoxOutputs

CLASSES, QUERIES, GROUPS, LAYERS = 3, 6, 3, 2
BACKBONE = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_windows": 2,
    "out_features": ["stage2", "stage4"],
}
BATCHES = {
    "equal sizes": ((96, 96), ((96, 96), (96, 96))),
    "padded": ((96, 96), ((96, 64), (75, 96))),
}


def position_encoding(boxes: Tensor, num_pos_feats: int) -> Tensor:
    """sin and cos of 2 pi x / 10000^(2k/C) by turns, for y, x, w, h: [B, Q, 4] -> [B, Q, 4 * C]."""
    channels = num_pos_feats
    angle = boxes[..., [1, 0, 2, 3], None] * 2 * math.pi / 10000 ** (torch.arange(0, channels, 2).double() / channels)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(2)


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs_module, "encode_sinusoidal_position_embedding", position_encoding)


def oracle(cls: Any = RfDetrForObjectDetection) -> Any:
    config = RfDetrConfig(
        backbone_config=BACKBONE, d_model=32, decoder_layers=LAYERS, decoder_self_attention_heads=2,
        decoder_cross_attention_heads=4, decoder_n_points=2, decoder_ffn_dim=24, num_queries=QUERIES,
        group_detr=GROUPS, num_labels=CLASSES, dropout=0.0, c2f_num_blocks=1, intermediate_size=24,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter) * (0.1 if "norm" in name else 0.5))
            if "class_embed" in name:
                parameter.mul_(3)
            if "bbox_embed" in name or "reference_point_embed" in name:
                parameter.mul_(0.9)  # sizes are exponentials
    return model.eval()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rf_detr")
    oracle().save_pretrained(path)
    return path


def batch_of(name: str) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
    size, sizes = BATCHES[name]
    mask = torch.zeros(2, *size, dtype=torch.long)
    for each, (height, width) in zip(mask, sizes, strict=True):
        each[:height, :width] = 1
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images * mask[:, None], mask, sizes


@torch.no_grad()
def outputs_of(path: Path, batch: str, *, train: bool) -> tuple[dict[str, Tensor], BoxOutputs, VisionModel]:
    """transformers' logits and boxes of all layers, and of the proposals; our outputs."""
    images, mask, sizes = batch_of(batch)
    kept: dict[str, Tensor] = {}

    def keep(logits: Any, labels: Any, device: Any, boxes: Any, config: Any, *layers: Tensor) -> Any:
        kept.update(zip(("logits", "boxes", "encoder_logits", "encoder_boxes"), layers, strict=True))
        return None, None, None

    theirs = RfDetrForObjectDetection.from_pretrained(path, attn_implementation="eager").double().train(train)
    theirs.loss_function = keep
    theirs(images, pixel_mask=mask, labels=[])
    ours = VisionModel.from_pretrained(path).double().train(train)
    return kept, ours(images, image_sizes=sizes), ours


def assert_equal(outputs: BoxOutputs, kept: dict[str, Tensor]) -> None:
    logits = torch.cat([outputs.aux_logits, outputs.pred_logits[None]])
    boxes = torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]])
    assert kept["logits"].std() > 1
    assert kept["boxes"].std((0, 1, 2)).min() > 0.01  # shares of the image
    torch.testing.assert_close(logits, kept["logits"], rtol=0, atol=1e-9 * float(kept["logits"].std()))
    torch.testing.assert_close(boxes, kept["boxes"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", BATCHES)
def test_logits_and_boxes_of_every_layer_equal_transformers(batch: str, directory: Path) -> None:
    kept, outputs, model = outputs_of(directory, batch, train=False)
    assert model.config.task == "detection"
    assert not model.load_report.missing
    assert not model.load_report.unexpected
    assert_equal(outputs, kept)
    assert outputs.encoder_logits is None


@pytest.mark.parametrize("batch", BATCHES)
def test_all_groups_and_their_proposals_equal_transformers_in_training(batch: str, directory: Path) -> None:
    kept, outputs, _ = outputs_of(directory, batch, train=True)
    assert outputs.pred_logits.shape == (2, GROUPS * QUERIES, CLASSES)
    assert_equal(outputs, kept)
    torch.testing.assert_close(outputs.encoder_logits, kept["encoder_logits"], rtol=0, atol=1e-9)
    torch.testing.assert_close(outputs.encoder_boxes, kept["encoder_boxes"], rtol=0, atol=1e-9)


def test_queries_that_see_other_groups_are_noticed(directory: Path) -> None:
    images, _, sizes = batch_of("equal sizes")
    kept, _, model = outputs_of(directory, "equal sizes", train=True)
    forward = type(model.head.layers[0]).forward
    for layer in model.head.layers:
        layer.forward = lambda *inputs, layer=layer, num_groups=1: forward(layer, *inputs)  # one group of all
    with pytest.raises(AssertionError), torch.no_grad():
        assert_equal(model(images, image_sizes=sizes), kept)


def test_model_goes_back_to_transformers(directory: Path, tmp_path: Path) -> None:
    VisionModel.from_pretrained(directory).export_transformers(tmp_path)
    images, mask, _ = batch_of("padded")
    one, other = (
        RfDetrForObjectDetection.from_pretrained(path, attn_implementation="eager").double().eval()
        for path in (directory, tmp_path)
    )
    with torch.no_grad():
        expected, found = (model(images, pixel_mask=mask) for model in (one, other))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_feature_levels": 2}, "num_feature_levels: 2 is not built here, only 1 is"),
        ({"decoder_cross_attention_heads": 5}, r"head\.cross_heads: 5 does not divide hidden_dim \(32\)"),
    ],
)
def test_config_that_is_not_built_is_one_line(
    change: dict[str, Any], problem: str, directory: Path, tmp_path: Path
) -> None:
    raw = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(ConfigError, match=problem):
        VisionModel.from_pretrained(tmp_path)


@torch.no_grad()
def masks_of(path: Path, batch: str, *, train: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Mask logits of all decoder layers and of the proposals, transformers' and ours."""
    images, mask, sizes = batch_of(batch)
    theirs = RfDetrForInstanceSegmentation.from_pretrained(path, attn_implementation="eager").double().train(train)
    kept: list[Tensor] = []
    head = theirs.get_mask_logits
    theirs.get_mask_logits = lambda *inputs: kept.append(head(*inputs)) or kept[-1]
    theirs(images, pixel_mask=mask)
    ours = VisionModel.from_pretrained(path).double().train(train)
    assert ours.config.task == "instance"
    outputs = ours(images, image_sizes=sizes)
    found = [
        torch.einsum("bqc,bchw->bqhw", *pair) for pair in zip(outputs.masks.embed, outputs.masks.features, strict=True)
    ]
    if train:
        found.insert(0, torch.einsum("bqc,bchw->bqhw", outputs.masks.encoder_embed, outputs.masks.encoder_features))
    return kept, found


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_masks_equal_transformers_and_go_back(batch: str, train: bool, tmp_path: Path) -> None:
    oracle(RfDetrForInstanceSegmentation).save_pretrained(tmp_path / "theirs")
    expected, found = masks_of(tmp_path / "theirs", batch, train=train)
    expected = expected if train else expected[-1:]
    assert len(expected) == len(found) == (LAYERS + 1 if train else 1)
    for a, b in zip(found, expected, strict=True):
        assert b.std() > 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(b.std()))
    VisionModel.from_pretrained(tmp_path / "theirs").export_transformers(tmp_path / "back")
    again, _ = masks_of(tmp_path / "back", batch, train=train)
    torch.testing.assert_close(again[-1], expected[-1], rtol=0, atol=0)
