"""Heads: from maps to predictions, losses and results. Importing this package registers them."""

from vision_stack.heads.base import Head
from vision_stack.heads.boxes import BoxHead, BoxHeadConfig
from vision_stack.heads.d_fine import DFineHead, DFineHeadConfig
from vision_stack.heads.deformable_detr import DeformableDETRHead, DeformableDETRHeadConfig
from vision_stack.heads.deimv2 import DEIMv2Head, DEIMv2HeadConfig
from vision_stack.heads.dense import FCOSHead, FCOSHeadConfig, RetinaNetHead, RetinaNetHeadConfig
from vision_stack.heads.detr import DETRHead, DETRHeadConfig
from vision_stack.heads.eomt import EoMTHead, EoMTHeadConfig
from vision_stack.heads.mask import MaskHead, MaskHeadConfig
from vision_stack.heads.mask2former import Mask2FormerHead, Mask2FormerHeadConfig
from vision_stack.heads.maskformer import MaskFormerHead, MaskFormerHeadConfig
from vision_stack.heads.rcnn import FasterRCNNHead, FasterRCNNHeadConfig, MaskRCNNHead, MaskRCNNHeadConfig
from vision_stack.heads.rf_detr import RFDETRHead, RFDETRHeadConfig, RFDETRSegHeadConfig
from vision_stack.heads.rt_detr import RTDETRHead, RTDETRHeadConfig

__all__ = [
    "BoxHead",
    "BoxHeadConfig",
    "DEIMv2Head",
    "DEIMv2HeadConfig",
    "DETRHead",
    "DETRHeadConfig",
    "DFineHead",
    "DFineHeadConfig",
    "DeformableDETRHead",
    "DeformableDETRHeadConfig",
    "EoMTHead",
    "EoMTHeadConfig",
    "FCOSHead",
    "FCOSHeadConfig",
    "FasterRCNNHead",
    "FasterRCNNHeadConfig",
    "Head",
    "Mask2FormerHead",
    "Mask2FormerHeadConfig",
    "MaskFormerHead",
    "MaskFormerHeadConfig",
    "MaskHead",
    "MaskHeadConfig",
    "MaskRCNNHead",
    "MaskRCNNHeadConfig",
    "RFDETRHead",
    "RFDETRHeadConfig",
    "RFDETRSegHeadConfig",
    "RTDETRHead",
    "RTDETRHeadConfig",
    "RetinaNetHead",
    "RetinaNetHeadConfig",
]
