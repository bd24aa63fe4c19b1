"""Key map of transformers' MaskFormer (`MaskFormerForInstanceSegmentation`), and so of the checkpoints published in its
format, to a `VisionModel` with a timm backbone, the plain `pixel_decoder` neck and the `maskformer` head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.backbones import convert_encoder
from vision_stack.weights.renaming import Rules, rename

ENCODER = "model.pixel_level_module.encoder."
FPN_LAYERS = "model.pixel_level_module.decoder.fpn.layers."

_CONV_NORM = ("conv", "norm")
_LAYER = {
    r"self_attn\.([qkv])_proj": r"self_attn.\2_proj",
    r"encoder_attn\.([qkv])_proj": r"cross_attn.\2_proj",
    r"self_attn\.o(ut)?_proj": r"self_attn.out_proj",  # the longer names are those of older versions
    r"encoder_attn\.o(ut)?_proj": r"cross_attn.out_proj",
    r"(mlp\.)?fc([12])": r"ffn.linear\3",
    r"self_attn_layer_norm": r"self_attn_norm",
    r"encoder_attn_layer_norm": r"cross_attn_norm",
    r"final_layer_norm": r"ffn_norm",
}


def convert_maskformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' MaskFormer -> state dict of a `VisionModel`, to be loaded strictly.

    The backbone may be transformers' ResNet or Swin (then `out_norms` belongs to our backbone) or one of timm's.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    backbone = {k.removeprefix(ENCODER): v for k, v in state.items() if k.startswith(ENCODER)}
    rest = {k: v for k, v in state.items() if not k.startswith(ENCODER)}
    num_levels = len({k.removeprefix(FPN_LAYERS).split(".")[0] for k in rest if k.startswith(FPN_LAYERS)})
    return convert_encoder(backbone) | rename(rest, _rules(num_levels))


def _rules(num_levels: int) -> Rules:
    """Of neck and head; `num_levels` laterals, which transformers counts from coarse to fine."""

    def lateral(part: str) -> Rules:
        pattern = rf"model\.pixel_level_module\.decoder\.fpn\.layers\.(\d+)\.{part}\.([01])\.(\w+)"
        ours = {"proj": "lateral", "block": "output"}[part]
        return ((pattern, lambda m: f"neck.{ours}.{num_levels - 1 - int(m[1])}.{_CONV_NORM[int(m[2])]}.{m[3]}"),)

    return (
        (
            r"model\.pixel_level_module\.decoder\.fpn\.stem\.([01])\.(\w+)",
            lambda m: f"neck.top.{_CONV_NORM[int(m[1])]}.{m[2]}",
        ),
        *lateral("proj"),
        *lateral("block"),
        (r"model\.pixel_level_module\.decoder\.mask_projection\.(\w+)", r"neck.mask_projection.\1"),
        (r"model\.transformer_module\.queries_embedder\.weight", "head.query_embed.weight"),
        (r"model\.transformer_module\.input_projection\.(\w+)", r"head.input_projection.\1"),
        *(
            (
                rf"model\.transformer_module\.decoder\.layers\.(\d+)\.{theirs}\.(?P<p>weight|bias)",
                rf"head.layers.\1.{ours}.\g<p>",
            )
            for theirs, ours in _LAYER.items()
        ),
        (r"model\.transformer_module\.decoder\.layernorm\.(\w+)", r"head.decoder_norm.\1"),
        (r"class_predictor\.(\w+)", r"head.class_embed.\1"),
        (r"mask_embedder\.(\d+)\.0\.(\w+)", r"head.mask_embed.layers.\1.\2"),
        (r"criterion\.empty_weight", None),  # the loss's class weights
    )
