"""A model of a few thousand weights, and its training checkpoint."""

import torch

from vision_stack.backbones import TimmBackboneConfig
from vision_stack.config import to_dict
from vision_stack.heads import Mask2FormerHeadConfig
from vision_stack.model import InputSize, VisionModel, VisionModelConfig
from vision_stack.necks import MSDeformConfig
from vision_stack.structures import Category


def make_model(**head):
    torch.manual_seed(0)
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("test_resnet", out_strides=[4, 8, 16]),
        neck=MSDeformConfig(channels=16, mask_channels=16, num_encoder_layers=1, num_heads=2, ffn_dim=16),
        head=Mask2FormerHeadConfig(num_queries=5, hidden_dim=16, num_heads=2, ffn_dim=16, num_decoder_layers=2, **head),
        categories=(Category(id=3, name="a"), Category(id=8, name="b")),
        input_size=InputSize(short_edge=48, long_edge=64),
    )
    return VisionModel(config).eval()


def checkpoint_of(model, **changes):
    """What training writes, without what only resuming needs."""
    state = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {"format_version": 1, "model_config": to_dict(model.config), "state_dict": state, "run_config": {}} | changes
