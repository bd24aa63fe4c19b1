"""Key map of transformers' Mask2Former (`Mask2FormerForUniversalSegmentation`), and so of the checkpoints published in
its format, to a `VisionModel` with a timm backbone, the `ms_deform` neck and the `mask2former` head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.backbones import convert_encoder
from vision_stack.weights.renaming import Rules, rename

ENCODER = "model.pixel_level_module.encoder."

_CONV_NORM = ("conv", "norm")
_PIXEL = r"model\.pixel_level_module\.decoder\."
_DECODER = r"model\.transformer_module\."
_PIXEL_LAYER = {
    r"self_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)": r"attn.\2",
    r"self_attn_layer_norm": "attn_norm",
    r"fc([12])": r"ffn.linear\2",
    r"final_layer_norm": "ffn_norm",
}
_DECODER_LAYER = {
    r"(self|cross)_attn\.([qkv]|out)_proj": r"\2_attn.\3_proj",
    r"(self|cross)_attn_layer_norm": r"\2_attn_norm",
    r"fc([12])": r"ffn.linear\2",
    r"final_layer_norm": "ffn_norm",
}
_RULES: Rules = (
    (rf"{_PIXEL}level_embed", "neck.level_embed.weight"),
    (
        rf"{_PIXEL}input_projections\.(\d+)\.([01])\.(\w+)",
        lambda m: f"neck.input_projections.{m[1]}.{_CONV_NORM[int(m[2])]}.{m[3]}",
    ),
    (rf"{_PIXEL}adapter_1\.([01])\.(\w+)", lambda m: f"neck.lateral.{_CONV_NORM[int(m[1])]}.{m[2]}"),
    (rf"{_PIXEL}layer_1\.([01])\.(\w+)", lambda m: f"neck.output.{_CONV_NORM[int(m[1])]}.{m[2]}"),
    (rf"{_PIXEL}mask_projection\.(\w+)", r"neck.mask_projection.\1"),
    *(
        (rf"{_PIXEL}encoder\.layers\.(\d+)\.{theirs}\.(?P<p>\w+)", rf"neck.layers.\1.{ours}.\g<p>")
        for theirs, ours in _PIXEL_LAYER.items()
    ),
    (rf"{_DECODER}queries_embedder\.weight", "head.query_embed.weight"),
    (rf"{_DECODER}queries_features\.weight", "head.query_feat.weight"),
    (rf"{_DECODER}level_embed\.weight", "head.level_embed.weight"),
    (rf"{_DECODER}input_projections\.(\d+)\.(\w+)", r"head.input_projections.\1.\2"),
    *(
        (rf"{_DECODER}decoder\.layers\.(\d+)\.{theirs}\.(?P<p>\w+)", rf"head.layers.\1.{ours}.\g<p>")
        for theirs, ours in _DECODER_LAYER.items()
    ),
    (rf"{_DECODER}decoder\.layernorm\.(\w+)", r"head.decoder_norm.\1"),
    (
        rf"{_DECODER}decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.(\w+)",
        r"head.mask_embed.layers.\1.\2",
    ),
    (r"class_predictor\.(\w+)", r"head.class_embed.\1"),
    (r"criterion\.empty_weight", None),  # the loss's class weights
)


def convert_mask2former(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' Mask2Former, as its files have it -> of a `VisionModel`, to be loaded strictly.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    backbone = {k.removeprefix(ENCODER): v for k, v in state.items() if k.startswith(ENCODER)}
    rest = {k: v for k, v in state.items() if not k.startswith(ENCODER)}
    return convert_encoder(backbone) | rename(_split_qkv(rest), _RULES)


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`in_proj_weight` of each cross-attention as the three that it is made of."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        start, found, kind = key.partition(".in_proj_")
        if found:
            split |= {f"{start}.{part}_proj.{kind}": x for part, x in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    return split
