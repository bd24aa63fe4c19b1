"""One member of each named family takes a real training step under MaskFormer, from its own yaml."""

from pathlib import Path

import pytest
import torch

from vision_stack.backbones.names import named_options
from vision_stack.config import from_dict
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Category

CONFIGS = Path(__file__).parents[2] / "configs"
PYRAMIDS = "resnet18 resnext50_32x4d swin_tiny swinv2_tiny convnext_tiny convnextv2_nano efficientnet_b0 "
PYRAMIDS += "efficientnet_lite0 mobilenetv3_small mobilenetv4_small hiera_tiny maxvit_tiny pvt_v2_b0"
PLAIN = "vit_tiny dinov2_small dinov3_small eva02_tiny"
CASES = [(name, "pixel_decoder") for name in PYRAMIDS.split()] + [(name, "simple_pyramid") for name in PLAIN.split()]


def decode(kind, name, **options):
    plain = named_options(CONFIGS / kind / f"{name}.yaml") | options
    plain.pop("pretrained", None)
    return from_dict(plain, kind)


@pytest.mark.parametrize(("name", "neck"), CASES)
def test_backbone_of_each_family_takes_a_training_step_that_moves_its_stem(name, neck):
    torch.manual_seed(0)
    config = VisionModelConfig(
        backbone=decode("backbone", name),
        neck=decode("neck", neck, channels=32),
        head=MaskFormerHeadConfig(num_queries=5, hidden_dim=32, num_heads=2, ffn_dim=64, num_decoder_layers=1),
        categories=(Category(id=1, name="thing"),),
    )
    model = VisionModel(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:40, 20:50] = True
    target = {"labels": torch.zeros(1, dtype=torch.long), "masks": masks, "boxes": torch.tensor([[20.0, 10, 50, 40]])}
    stem = next(p for p in model.backbone.parameters() if p.ndim == 4)
    before = stem.detach().clone()

    outputs = model(model.normalize(torch.rand(2, 3, 64, 64)))
    losses = model.head.compute_loss(outputs, [target, target])
    sum(losses.values()).backward()
    optimizer.step()

    assert outputs.pred_masks.shape == (2, 5, 16, 16)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert stem.isfinite().all()
    assert not torch.equal(stem, before)
