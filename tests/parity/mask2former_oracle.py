"""transformers' Mask2Former with random, perturbed weights, saved as transformers does, and all that it predicts."""

from pathlib import Path

import torch
from maskformer_oracle import perturb as perturb_maskformer
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet": lambda: ResNetConfig(
        embedding_size=64, hidden_sizes=[32, 64, 96, 128], depths=[2, 1, 2, 1], out_features=STAGES
    ),
    "swin": lambda: SwinConfig(
        embed_dim=24, depths=[2, 2, 2, 2], num_heads=[2, 3, 4, 6], window_size=7, out_features=STAGES
    ),
}


def build_oracle(backbone: str, *, num_classes: int, num_queries: int = 15) -> Mask2FormerForUniversalSegmentation:
    """Full depth (six encoder layers, ten predictions) at small width, in eval mode, all weights far from the start."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone](),
        num_labels=num_classes,
        num_queries=num_queries,
        hidden_dim=64,
        feature_size=64,
        mask_feature_size=48,
        encoder_feedforward_dim=96,
        dim_feedforward=128,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    perturb(model)
    return model


@torch.no_grad()
def perturb(model: Mask2FormerForUniversalSegmentation) -> None:
    """Move every weight, as for MaskFormer, whose names differ in a few places."""
    transformer, predictor = model.model.transformer_module, model.model.transformer_module.decoder.mask_predictor
    model.mask_embedder = predictor.mask_embedder  # where MaskFormer has it
    perturb_maskformer(model)
    del model.mask_embedder
    model.class_predictor.weight.mul_(4)  # the queries grow alike from layer to layer
    predictor.mask_embedder.get_submodule("2.0").weight.mul_(5)
    model.model.pixel_level_module.decoder.level_embed.normal_()
    for layer in model.model.pixel_level_module.decoder.encoder.layers:
        attention = layer.self_attn
        attention.sampling_offsets.bias.normal_(std=2.0)  # in cells; reaches over the borders
        attention.attention_weights.weight.mul_(2)
    for layer in transformer.decoder.layers:
        layer.cross_attn.in_proj_weight.mul_(2)
    for module in (transformer.queries_features, transformer.queries_embedder, transformer.level_embed):
        assert isinstance(module, nn.Embedding)
        module.weight.normal_()


def save(model: Mask2FormerForUniversalSegmentation, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


@torch.no_grad()
def predictions(
    model: Mask2FormerForUniversalSegmentation, images: Tensor, pixel_mask: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Class and mask logits of all ten predictions, first to last."""
    outputs = model(pixel_values=images, pixel_mask=pixel_mask, output_auxiliary_logits=True)
    layers = [(each["class_queries_logits"], each["masks_queries_logits"]) for each in outputs.auxiliary_logits]
    return [*layers, (outputs.class_queries_logits, outputs.masks_queries_logits)]
