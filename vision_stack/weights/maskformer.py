"""Names of transformers' MaskFormer (`MaskFormerForInstanceSegmentation`), and so of the checkpoints published in its
format, in a `VisionModel` with the plain `pixel_decoder` neck and the `maskformer` head; the backbone has names of its
own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.encoder import UNUSED
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_FPN = "model.pixel_level_module.decoder.fpn."
_DECODER = "model.transformer_module."
_LAYER = f"{_DECODER}decoder.layers.{{i}}."
_ATTENTION = {"self_attn": "self_attn", "encoder_attn": "cross_attn"}

_NAMES: Names = (
    (f"{_FPN}stem.0.{{p}}", "neck.top.conv.{p}"),
    (f"{_FPN}stem.1.{{p}}", "neck.top.norm.{p}"),
    ("model.pixel_level_module.decoder.mask_projection.{p}", "neck.mask_projection.{p}"),
    (f"{_DECODER}queries_embedder.weight", "head.query_embed.weight"),
    (f"{_DECODER}input_projection.{{p}}", "head.input_projection.{p}"),
    *(
        (f"{_LAYER}{theirs}.{part}_proj.{{p}}", f"head.layers.{{i}}.{ours}.{part}_proj.{{p}}")
        for theirs, ours in _ATTENTION.items()
        for part in ("q", "k", "v", "out")
    ),
    *(
        (f"{_LAYER}{theirs}_layer_norm.{{p}}", f"head.layers.{{i}}.{ours}_norm.{{p}}")
        for theirs, ours in _ATTENTION.items()
    ),
    (f"{_LAYER}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_LAYER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}decoder.layernorm.{{p}}", "head.decoder_norm.{p}"),
    ("class_predictor.{p}", "head.class_embed.{p}"),
    ("mask_embedder.{i}.0.{p}", "head.mask_embed.layers.{i}.{p}"),
    # Of a model in memory, in newer versions; files have the names above.
    *(
        (f"{_LAYER}{theirs}.o_proj.{{p}}", f"head.layers.{{i}}.{ours}.out_proj.{{p}}")
        for theirs, ours in _ATTENTION.items()
    ),
    (f"{_LAYER}mlp.fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' MaskFormer, as its files have it, without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    num_levels = len({k.removeprefix(f"{_FPN}layers.").split(".")[0] for k in state if k.startswith(f"{_FPN}layers.")})
    return rename(state, (*to_ours((*_NAMES, *_laterals(num_levels))), UNUSED))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`."""
    num_levels = len({k.split(".")[2] for k in state if k.startswith("neck.lateral.")})
    return rename(state, to_theirs((*_NAMES, *_laterals(num_levels))))


def _laterals(num_levels: int) -> Names:
    """Of the pyramid's levels, which transformers counts from coarse to fine."""
    return tuple(
        (f"{_FPN}layers.{num_levels - 1 - level}.{theirs}.{number}.{{p}}", f"neck.{ours}.{level}.{part}.{{p}}")
        for level in range(num_levels)
        for theirs, ours in (("proj", "lateral"), ("block", "output"))
        for number, part in enumerate(("conv", "norm"))
    )
