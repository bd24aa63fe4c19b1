"""The models of transformers that are loaded here, one entry for each `model_type`, and that ours are written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights import (
    d_fine,
    deformable_detr,
    deimv2,
    encoder,
    eomt,
    lw_detr,
    mask2former,
    maskformer,
    rf_detr,
    rt_detr,
)
from vision_stack.weights.torchvision_detectors import HEADS as OF_TORCHVISION

Plain = dict[str, Any]
State = Mapping[str, Tensor]


class Architecture(NamedTuple):
    """How a model of transformers becomes ours, and ours becomes it."""

    necks: tuple[str, ...]  # types of our parts
    heads: tuple[str, ...]
    parts: Callable[[Mapping[str, Any]], tuple[Plain, Plain]]  # its config.json -> plain options of neck and head
    backbone: Callable[[Mapping[str, Any]], Plain]  # its config.json -> the backbone's, as `decode_backbone` takes it
    prefix: str | tuple[str, ...] | None  # of the backbone's names in its state dict; None: it has no part of its own
    convert: Callable[[State], dict[str, Tensor]]  # its state dict without the backbone -> ours
    export: Callable[[nn.Module, Mapping[str, Any]], tuple[Plain, dict[str, Tensor]]]  # of a model and its options
    processor: str  # its image processor
    has_masks: bool = False  # that our head has, where they are an option
    backbones: tuple[str, ...] = ()  # types of the only ones that it has; where none is named, its own part says


_MASK2FORMER = Architecture(
    necks=("ms_deform",),
    heads=("mask2former",),
    parts=mask2former.parts_of,
    backbone=encoder.backbone_part,
    prefix=encoder.ENCODER,
    convert=mask2former.convert_decoder,
    export=mask2former.export,
    processor="Mask2FormerImageProcessor",
)
_MASKFORMER = Architecture(
    necks=("pixel_decoder",),
    heads=("maskformer",),
    parts=maskformer.parts_of,
    backbone=encoder.backbone_part,
    prefix=encoder.ENCODER,
    convert=maskformer.convert_decoder,
    export=maskformer.export,
    processor="MaskFormerImageProcessor",
)
_EOMT = Architecture(
    necks=("none",),
    heads=("eomt",),
    parts=eomt.parts_of,
    backbone=eomt.backbone_config,
    prefix=None,
    convert=partial(eomt.convert, eomt.DINOV2),
    export=eomt.export,
    processor="EomtImageProcessor",
)
_RF_DETR = Architecture(
    necks=("scale_projector",),
    heads=rf_detr.HEADS,
    parts=rf_detr.parts_of,
    backbone=encoder.backbone_part,
    prefix=rf_detr.ENCODER,
    convert=rf_detr.convert_decoder,
    export=rf_detr.export,
    processor="RfDetrImageProcessor",
    has_masks=True,
    backbones=(rf_detr.BACKBONE,),
)
_LW_DETR = _RF_DETR._replace(
    heads=("rf_detr",),
    parts=lw_detr.parts_of,
    prefix=lw_detr.ENCODER,
    convert=lw_detr.convert_decoder,
    export=lw_detr.export,
    processor="DeformableDetrImageProcessor",
    has_masks=False,
    backbones=(lw_detr.BACKBONE,),
)
_RT_DETR = Architecture(
    necks=("hybrid_encoder",),
    heads=("rt_detr",),
    parts=rt_detr.parts_of,
    backbone=rt_detr.backbone_config,
    prefix=rt_detr.ENCODER,
    convert=rt_detr.convert,
    export=rt_detr.export,
    processor="RTDetrImageProcessor",
)
_D_FINE = _RT_DETR._replace(heads=("d_fine",), parts=d_fine.parts_of, convert=d_fine.convert, export=d_fine.export)
_DEIMV2 = _RT_DETR._replace(
    necks=("hybrid_encoder", "spatial_tuning", "lite_encoder"),
    heads=("deimv2",),
    parts=deimv2.parts_of,
    prefix=deimv2.ENCODERS,
    convert=deimv2.convert,
    export=deimv2.export,
)
_DEFORMABLE_DETR = Architecture(
    necks=("deformable_encoder",),
    heads=("deformable_detr",),
    parts=deformable_detr.parts_of,
    backbone=deformable_detr.backbone_config,
    prefix=deformable_detr.ENCODER,
    convert=deformable_detr.convert_decoder,
    export=deformable_detr.export,
    processor="DeformableDetrImageProcessor",
)
ARCHITECTURES = {  # by `model_type`
    "mask2former": _MASK2FORMER,
    "maskformer": _MASKFORMER,
    eomt.DINOV2: _EOMT,
    eomt.DINOV3: _EOMT._replace(convert=partial(eomt.convert, eomt.DINOV3)),
    "rf_detr": _RF_DETR,
    "lw_detr": _LW_DETR,
    "rt_detr": _RT_DETR,
    "rt_detr_v2": _RT_DETR,
    "d_fine": _D_FINE,
    "deimv2": _DEIMV2,
    "deformable_detr": _DEFORMABLE_DETR,
}


def architecture_of(raw: Mapping[str, Any]) -> Architecture:
    """The entry of a config.json; ConfigError where there is none."""
    name = raw.get("model_type")
    if name == "deimv2":
        return _DEIMV2._replace(convert=partial(deimv2.convert, share_bbox_head=raw.get("share_bbox_head") is True))
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise ConfigError(f"model_type: {name!r:.60} is not loaded here, only {', '.join(ARCHITECTURES)} are")


def architecture_for(plain: Mapping[str, Any]) -> Architecture:
    """The entry that a model of these plain options is written as; ConfigError where there is none."""
    neck, head, backbone = (plain[part]["type"] for part in ("neck", "head", "backbone"))
    entries = [entry for entry in ARCHITECTURES.values() if head in entry.heads]
    if not entries:
        instead = "; to-torchvision writes it for torchvision" if head in OF_TORCHVISION else ""
        heads = dict.fromkeys(each for entry in ARCHITECTURES.values() for each in entry.heads)
        raise ConfigError(
            f"head={head}: transformers has no such model{instead}; to-transformers writes head={', '.join(heads)}"
        )
    necks = dict.fromkeys(each for entry in entries for each in entry.necks)
    if neck not in necks:
        raise ConfigError(
            f"neck: transformers has no model with neck={neck} and head={head}; it has {', '.join(necks)} with {head}"
        )
    for entry in entries:
        if neck in entry.necks and (not entry.backbones or backbone in entry.backbones):
            return entry
    backbones = dict.fromkeys(each for entry in entries for each in entry.backbones)
    raise ConfigError(
        f"backbone={backbone}: transformers has no model with it and head={head}; it has {', '.join(backbones)}"
    )
