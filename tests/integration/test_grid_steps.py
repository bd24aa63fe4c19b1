"""Every head on backbones of every kind takes a training step, through a neck that fits."""

from typing import Any

import pytest
import torch

from vision_stack.backbones.names import named_backbones, named_options
from vision_stack.config import from_dict, registered
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Batch, ImageInfo, Target
from vision_stack.training.lightning_module import training_losses

PLAIN = ("vit_tiny", "dinov2_small")
PYRAMIDS = ("resnet18", "swin_tiny", "convnext_tiny", "mobilenetv4_small", "hiera_tiny")
SMALL: dict[str, Any] = {
    "num_queries": 5, "hidden_dim": 32, "ffn_dim": 32, "num_heads": 4, "cross_heads": 4, "num_decoder_layers": 1,
    "num_groups": 2, "num_denoising": 4, "mask_ffn_dim": 32, "num_blocks": 1, "representation_size": 16,
    "rpn_post_nms_top_n": 20, "box_batch_size_per_image": 16, "mask_channels": 16, "num_convs": 1,
}  # fmt: skip
OURS = {name: cls for name, cls in registered("head").items() if cls.__module__.startswith("vision_stack")}
CELLS = [
    (head, backbone, "instance" if "instance" in config.tasks else "detection")
    for head, config in OURS.items()
    for backbone in (PLAIN if config().tail else (*PLAIN[:1], *PYRAMIDS))
]
CELLS += [  # heads that are built otherwise without masks
    (head, backbone, "detection")
    for head, config in OURS.items()
    if "detection" in config.tasks and config().fitted("detection") != config().fitted("instance")
    for backbone in ("vit_tiny", "resnet18")
]
HEIGHT, WIDTH = 64, 96


def batch() -> Batch:
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, 8:40, 16:60] = True
    box = torch.tensor([[16.0, 8.0, 60.0, 40.0]])
    target: Target = {"labels": torch.ones(1, dtype=torch.int64), "boxes": box, "masks": masks}
    nothing: Target = {"labels": target["labels"][:0], "boxes": box[:0], "masks": masks[:0]}
    infos = tuple(ImageInfo(n, "", (HEIGHT, WIDTH), (HEIGHT, WIDTH)) for n in range(2))
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool), (target, nothing), infos)


@pytest.mark.parametrize(("head", "backbone", "task"), CELLS)
def test_step(head: str, backbone: str, task: str) -> None:
    config: Any = registered("head")[head]
    fields = config.__dataclass_fields__
    options = named_options(named_backbones()[backbone])
    options.pop("pretrained")
    neck = {"type": "simple_pyramid" if backbone in PLAIN else "fpn", "channels": 32}
    plain = {
        "backbone": options,
        "neck": {"type": "none"} if config().tail else neck,
        "head": {"type": head, **{name: value for name, value in SMALL.items() if name in fields}},
        "task": task,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    torch.manual_seed(0)
    model = VisionModel(from_dict(plain, cls=VisionModelConfig)).train()
    loss = torch.stack(list(training_losses(model, batch()).values())).sum()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    before = model.head.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert any(not torch.equal(value, before[name]) for name, value in model.head.state_dict().items())
