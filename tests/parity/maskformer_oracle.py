"""transformers' MaskFormer with random, perturbed weights, and what each of its decoder layers predicts."""

import torch
from torch import Tensor, nn
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig
from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet50": lambda: ResNetConfig(out_features=STAGES),
    "swin_tiny": lambda: MaskFormerSwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES
    ),
}


def build_oracle(backbone: str, *, num_classes: int, num_queries: int = 20) -> MaskFormerForInstanceSegmentation:
    """R50 or Swin-T at full depth and width, in eval mode, all weights moved far from their initial values."""
    torch.manual_seed(0)
    config = MaskFormerConfig(backbone_config=BACKBONES[backbone](), num_labels=num_classes)
    config.decoder_config.num_queries = num_queries
    model = MaskFormerForInstanceSegmentation(config).eval()
    perturb(model)
    return model


@torch.no_grad()
def perturb(model: MaskFormerForInstanceSegmentation) -> None:
    """Move every weight, norm, bias and running statistic, so that no part can be left out or mixed up unseen."""
    for module in model.modules():
        is_norm = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d) and name == "weight":
                p.uniform_(0.05, 0.25)  # sixteen residual branches add up, and so do their rounding errors
            elif is_norm and name == "weight":
                p.uniform_(0.5, 1.5)
            elif p.ndim == 1:
                p.normal_(std=0.3)
            elif isinstance(module, nn.Embedding) or name == "relative_position_bias_table":
                p.normal_()
            else:  # fan-in scaling: the signal neither fades nor explodes on its way through fifty layers
                p.normal_(std=p[0].numel() ** -0.5)
    for name, p in model.model.transformer_module.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "encoder_attn.v_proj.weight")):
            p.mul_(2)  # else every query reads the mean of the map, and all end up alike
    model.class_predictor.weight.mul_(16)
    model.mask_embedder.get_submodule("2.0").weight.mul_(3)
    _settle_batch_norms(model)


def _settle_batch_norms(model: nn.Module) -> None:
    """Running statistics near those of the signal, as in a trained network; far off them, rounding errors grow."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(pixel_values=torch.randn(2, 3, 96, 96))
    for norm in norms:
        norm.eval().momentum = 0.1
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))


@torch.no_grad()
def oracle_layers(
    model: MaskFormerForInstanceSegmentation, images: Tensor, pixel_mask: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Class and mask logits of every decoder layer, first to last.

    Through hooks, because the model raises when it is asked for its auxiliary outputs.
    """
    decoder = model.model.transformer_module.decoder
    hidden: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: hidden.append(out)) for layer in decoder.layers]
    outputs = model(pixel_values=images, pixel_mask=pixel_mask)
    for hook in hooks:
        hook.remove()
    layers = []
    for x in hidden:
        x = decoder.layernorm(x)
        masks = torch.einsum("bqc,bchw->bqhw", model.mask_embedder(x), outputs.pixel_decoder_last_hidden_state)
        layers.append((model.class_predictor(x), masks))
    torch.testing.assert_close(layers[-1], (outputs.class_queries_logits, outputs.masks_queries_logits))
    return layers
