"""`head=deformable_detr` with `neck=deformable_encoder` against transformers' `DeformableDetrForObjectDetection`.

Every layer's logits and boxes in float64, padded and not. transformers encodes proposals in float32 (by a cast in
`get_proposal_pos_embed`), so that the paper's formula takes its place here, written out.
"""

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from vision_stack.heads import DeformableDETRHead, DeformableDETRHeadConfig
from vision_stack.necks import DeformableEncoderConfig
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec
from vision_stack.weights.deformable_detr import convert_decoder

NUM_CLASSES, QUERIES, LAYERS = 3, 9, 3
VARIANTS = {"plain": (False, False), "refine": (True, False), "two_stage": (True, True)}
WIDTHS = (8, 12, 16)  # of the maps at strides 8, 16, 32
SPECS = (FeatureSpec("stage1", 4, 4), *(FeatureSpec(f"stage{i + 2}", w, 8 * 2**i) for i, w in enumerate(WIDTHS)))
BATCHES = {
    "equal sizes": ((96, 128), ((96, 128), (96, 128))),
    "padded": ((96, 128), ((96, 81), (70, 128))),
    "padded, odd size": ((75, 101), ((75, 60), (33, 101))),
}


def build_oracle(refine: bool, two_stage: bool) -> DeformableDetrForObjectDetection:
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, *WIDTHS], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DeformableDetrConfig(
        backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=LAYERS, encoder_ffn_dim=24,
        decoder_ffn_dim=24, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=QUERIES,
        two_stage_num_proposals=QUERIES, num_labels=NUM_CLASSES, with_box_refine=refine, two_stage=two_stage,
        encoder_n_points=2, decoder_n_points=3, attn_implementation="eager",
    )  # fmt: skip
    model = DeformableDetrForObjectDetection(config).double()
    decoder = model.model.decoder
    if refine:  # transformers ties the layers' predictors even where they are refined, and published ones differ
        model.bbox_embed = nn.ModuleList(copy.deepcopy(each) for each in model.bbox_embed)
        model.class_embed = nn.ModuleList(copy.deepcopy(each) for each in model.class_embed)
        decoder.bbox_embed = model.bbox_embed
        decoder.class_embed = model.class_embed if two_stage else None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                scale = 1.0 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
                parameter.add_(scale * torch.randn_like(parameter) * (0.1 if "norm" in name else 0.5))
                if "sampling_offsets.bias" in name:
                    parameter.mul_(2)  # reaches over the borders
                if "embed" in name:  # predictions that spread and are far from 0 and 1
                    parameter.mul_(2 if name.endswith("weight") else 0)
    model.model.get_proposal_pos_embed = proposal_encoding
    return model.eval()


def proposal_encoding(logits: Tensor) -> Tensor:
    """sin and cos of 2 pi x / 10000^(2k/C), for each coordinate x of the boxes: [B, Q, 4] -> [B, Q, 4 * C]."""
    channels = 16
    angle = logits.sigmoid()[..., None] * 2 * math.pi / 10000 ** (torch.arange(0, channels, 2).double() / channels)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(2)


@cache
def pair(variant: str) -> tuple[DeformableDetrForObjectDetection, nn.Module, DeformableDETRHead]:
    refine, two_stage = VARIANTS[variant]
    oracle = build_oracle(refine, two_stage)
    neck = DeformableEncoderConfig(channels=32, ffn_dim=24, num_heads=4, num_points=2, num_encoder_layers=2).build(
        SPECS
    )
    head = DeformableDETRHeadConfig(
        num_queries=QUERIES, hidden_dim=32, ffn_dim=24, num_heads=4, num_points=3, num_decoder_layers=LAYERS,
        dropout=0.0, with_box_refine=refine, two_stage=two_stage,
    ).build(neck.out_specs, NUM_CLASSES)  # fmt: skip
    state = {k: v for k, v in oracle.state_dict().items() if "backbone" not in k}
    ours = nn.ModuleDict({"neck": neck, "head": head}).double().eval()
    ours.load_state_dict(convert_decoder(state))
    return oracle, neck, head


def batch_of(name: str) -> tuple[Tensor, Tensor, tuple[int, int], tuple[tuple[int, int], ...]]:
    size, sizes = BATCHES[name]
    mask = torch.zeros(2, *size, dtype=torch.long)
    for each, (height, width) in zip(mask, sizes, strict=True):
        each[:height, :width] = 1
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images * mask[:, None], mask, size, sizes


@torch.no_grad()
def outputs_of(variant: str, batch: str, *, train: bool = False) -> tuple[Any, tuple[Tensor, Tensor], BoxOutputs]:
    """transformers' outputs, its logits and boxes of each layer [L, B, Q, ...], and our outputs."""
    oracle, neck, head = pair(variant)
    images, mask, size, sizes = batch_of(batch)
    layers: dict[str, Tensor] = {}

    def keep(logits: Tensor, labels: Any, device: Any, boxes: Tensor, config: Any, *all_layers: Tensor) -> Any:
        layers.update(zip(("logits", "boxes"), all_layers, strict=True))
        return None, None, None

    oracle.loss_function = keep
    theirs = oracle(images, pixel_mask=mask, labels=[])
    maps = tuple(oracle.model.backbone.model(images).feature_maps)
    finest = torch.zeros(2, 4, 1, 1, dtype=torch.float64)  # stride 4, which is not read
    features = neck(Features((finest, *maps), size, sizes))
    ours = head.train(train)(Features(features, size, sizes))  # has no dropout
    return theirs, (layers["logits"], layers["boxes"]), ours


def difference(ours: BoxOutputs, theirs: tuple[Tensor, Tensor]) -> float:
    """The largest of all layers' logits and boxes, logits in standard deviations."""
    logits = torch.cat([ours.aux_logits, ours.pred_logits[None]])
    boxes = torch.cat([ours.aux_boxes, ours.pred_boxes[None]])
    return max(float((logits - theirs[0]).abs().max() / theirs[0].std()), float((boxes - theirs[1]).abs().max()))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_boxes_of_every_layer_equal_transformers(variant: str, batch: str) -> None:
    _, layers, ours = outputs_of(variant, batch)
    assert layers[0].std() >= 1
    assert layers[1].std((0, 1, 2)).min() > 0.005  # shares of the image
    assert len(layers[0]) == LAYERS
    assert difference(ours, layers) < 1e-9
    assert ours.encoder_logits is None


@pytest.mark.parametrize("batch", ["padded", "padded, odd size"])
def test_proposals_equal_transformers_while_training_and_change_nothing_else(batch: str) -> None:
    theirs, layers, ours = outputs_of("two_stage", batch, train=True)
    assert difference(ours, layers) < 1e-9
    assert ours.encoder_logits is not None
    torch.testing.assert_close(ours.encoder_logits[..., 0], theirs.enc_outputs_class[..., 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.encoder_boxes, theirs.enc_outputs_coord_logits.sigmoid(), rtol=1e-9, atol=1e-9)


def test_float32_stays_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, neck, head = pair("refine")
    images, _, size, sizes = batch_of("padded")
    _, layers, _ = outputs_of("refine", "padded")
    with torch.no_grad():
        maps = tuple(x.float() for x in oracle.model.backbone.model(images).feature_maps)
        features = copy.deepcopy(neck).float()(Features((torch.zeros(2, 4, 1, 1), *maps), size, sizes))
        ours = copy.deepcopy(head).float()(Features(features, size, sizes))
    assert difference(ours, layers) < 1e-4


def test_swapped_axes_of_the_valid_part_are_noticed() -> None:
    from vision_stack.layers import deformable

    def swapped(features: Any, shapes: Any) -> Any:
        found = plain(features, shapes)
        return found and found._replace(valid=found.valid.flip(2))

    plain = deformable.padding_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vision_stack.heads.detr.padding_of", swapped)
        _, layers, ours = outputs_of("plain", "padded")
    assert difference(ours, layers) > 1e-3
