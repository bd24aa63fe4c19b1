"""Names of transformers' Deformable DETR (`DeformableDetrForObjectDetection`), and so of the checkpoints published in
its format, in a `VisionModel` with the `deformable_encoder` neck and the `deformable_detr` head; the backbone has names
of its own.

Those of files come first; a model in memory has other names for a few of them, in newer versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, Rules, rename, to_ours

_ENCODER = "model.encoder.layers.{i}."
_DECODER = "model.decoder.layers.{i}."
_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_BACKBONE_MAPS = 3  # the fourth projection, and any after it, halves the map before it

DECODER_LAYERS: Names = (  # RT-DETR's, too
    *((f"{_DECODER}encoder_attn.{part}.{{p}}", f"head.layers.{{i}}.cross_attn.{part}.{{p}}") for part in _DEFORMABLE),
    *(
        (f"{_DECODER}self_attn.{theirs}_proj.{{p}}", f"head.layers.{{i}}.self_attn.{ours}_proj.{{p}}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out"), ("o", "out"))
    ),
    (f"{_DECODER}self_attn_layer_norm.{{p}}", "head.layers.{i}.self_attn_norm.{p}"),
    (f"{_DECODER}encoder_attn_layer_norm.{{p}}", "head.layers.{i}.cross_attn_norm.{p}"),
    *((f"{_DECODER}{mlp}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}") for mlp in ("", "mlp.")),
    (f"{_DECODER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
)
_NAMES: Names = (
    ("model.level_embed", "neck.level_embed.weight"),
    *((f"{_ENCODER}self_attn.{part}.{{p}}", f"neck.layers.{{i}}.attn.{part}.{{p}}") for part in _DEFORMABLE),
    (f"{_ENCODER}self_attn_layer_norm.{{p}}", "neck.layers.{i}.attn_norm.{p}"),
    *((f"{_ENCODER}{mlp}fc{{j}}.{{p}}", "neck.layers.{i}.ffn.linear{j}.{p}") for mlp in ("", "mlp.")),
    (f"{_ENCODER}final_layer_norm.{{p}}", "neck.layers.{i}.ffn_norm.{p}"),
    *DECODER_LAYERS,
    ("model.query_position_embeddings.weight", "head.query_embed.weight"),
    ("model.reference_points.{p}", "head.reference_points.{p}"),
    ("model.enc_output.{p}", "head.proposals.output.{p}"),
    ("model.enc_output_norm.{p}", "head.proposals.output_norm.{p}"),
    ("model.pos_trans.{p}", "head.proposals.query.{p}"),
    ("model.pos_trans_norm.{p}", "head.proposals.query_norm.{p}"),
    ("class_embed.{i}.{p}", "head.class_embed.{i}.{p}"),
    ("bbox_embed.{i}.layers.{j}.{p}", "head.bbox_embed.{i}.layers.{j}.{p}"),
)
_PROJECTIONS: Names = tuple(
    (f"model.input_proj.{level}.{number}.{{p}}", f"neck.{ours}.{part}.{{p}}")
    for level, ours in [(n, f"projections.{n}") for n in range(_BACKBONE_MAPS)] + [(_BACKBONE_MAPS, "extra.0")]
    for number, part in enumerate(("conv", "norm"))
)
_COPIES: Rules = ((r"model\.decoder\.(class|bbox)_embed\..*", None),)  # of those outside of the decoder


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' Deformable DETR of four levels, without the backbone -> that of neck and head.

    Without box refinement all layers share the first one's predictors. In two stages the last predictors are those of
    the proposals, whose classifier's first row is the only one that is used.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    refine = any(key.startswith("model.decoder.bbox_embed.") for key in state)
    last = max(int(key.split(".")[1]) for key in state if key.startswith("class_embed."))
    special: Rules = ((r"(class|bbox)_embed\.[1-9].*", None),)
    if refine:
        special = ()
    if "model.enc_output.weight" in state:
        special = (
            (rf"class_embed\.{last}\.(\w+)", r"head.proposals.objectness.\1"),
            (rf"bbox_embed\.{last}\.(.+)", r"head.proposals.bbox_embed.\1"),
        )
    renamed = rename(state, (*special, *_COPIES, *to_ours(_PROJECTIONS), *to_ours(_NAMES)))
    return {key: value[:1] if ".objectness." in key else value for key, value in renamed.items()}
