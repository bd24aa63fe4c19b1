"""Necks: between the backbone's maps and what a head reads. Importing this package registers them."""

from vision_stack.necks.deformable_encoder import DeformableEncoder, DeformableEncoderConfig
from vision_stack.necks.fpn import FPN, FPNConfig
from vision_stack.necks.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from vision_stack.necks.lite_encoder import LiteEncoder, LiteEncoderConfig
from vision_stack.necks.ms_deform import MSDeform, MSDeformConfig
from vision_stack.necks.none import NoNeck, NoNeckConfig
from vision_stack.necks.pixel_decoder import PixelDecoder, PixelDecoderConfig
from vision_stack.necks.scale_projector import ScaleProjector, ScaleProjectorConfig
from vision_stack.necks.simple_pyramid import SimplePyramid, SimplePyramidConfig
from vision_stack.necks.spatial_tuning import SpatialTuning, SpatialTuningConfig

__all__ = [
    "FPN",
    "DeformableEncoder",
    "DeformableEncoderConfig",
    "FPNConfig",
    "HybridEncoder",
    "HybridEncoderConfig",
    "LiteEncoder",
    "LiteEncoderConfig",
    "MSDeform",
    "MSDeformConfig",
    "NoNeck",
    "NoNeckConfig",
    "PixelDecoder",
    "PixelDecoderConfig",
    "ScaleProjector",
    "ScaleProjectorConfig",
    "SimplePyramid",
    "SimplePyramidConfig",
    "SpatialTuning",
    "SpatialTuningConfig",
]
