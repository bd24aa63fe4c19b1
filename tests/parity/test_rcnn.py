"""Faster and Mask R-CNN against torchvision's models of the same weights, in float64."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from detector_parity import BATCH, SIZES, maps
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from vision_stack.heads.rcnn import FasterRCNNHead, FasterRCNNHeadConfig, MaskRCNNHeadConfig
from vision_stack.necks.fpn import FPNConfig
from vision_stack.postprocess.paste import paste_masks
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo, Target

NUM_CLASSES = 4
SPECS = tuple(FeatureSpec(f"p{i}", 256, 2**i) for i in range(2, 7))
MODELS = [
    ("fasterrcnn_resnet50_fpn", FasterRCNNHeadConfig(version="v1")),
    ("fasterrcnn_resnet50_fpn_v2", FasterRCNNHeadConfig(version="v2")),
    ("maskrcnn_resnet50_fpn", MaskRCNNHeadConfig(version="v1")),
    ("maskrcnn_resnet50_fpn_v2", MaskRCNNHeadConfig(version="v2")),
]


@pytest.fixture(scope="module", params=MODELS, ids=[name for name, _ in MODELS])
def pair(request: pytest.FixtureRequest) -> tuple[Any, FasterRCNNHead]:
    """torchvision's model and our head with its weights, all of them perturbed so that there are detections."""
    name, config = request.param
    torch.manual_seed(0)
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        theirs.rpn.head.bbox_pred.weight.mul_(0.3)
    ours = config.build(SPECS, NUM_CLASSES).double()
    state = {k: v for k, v in theirs.state_dict().items() if k.startswith(("rpn.", "roi_heads."))}
    ours.load_state_dict(state)  # strictly: the names are torchvision's own
    return theirs, ours


def targets() -> list[Target]:
    masks = torch.zeros(2, 128, 160, dtype=torch.bool)
    masks[0, 10:60, 20:70] = True
    masks[1, 70:110, 90:150] = True
    boxes = torch.tensor([[20.0, 10.0, 70.0, 60.0], [90.0, 70.0, 150.0, 110.0]])
    nothing: Target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4), "masks": masks[:0]}
    return [{"labels": torch.tensor([0, 3]), "boxes": boxes, "masks": masks}, nothing]


def run_theirs(model: Any, features: tuple[torch.Tensor, ...], theirs: Any) -> tuple[Any, Any]:
    named = OrderedDict(zip(["0", "1", "2", "3", "pool"], features, strict=True))
    images = ImageList(torch.zeros(2, 3, *BATCH), list(SIZES))
    proposals, losses = model.rpn(images, named, theirs)
    found, more = model.roi_heads(named, proposals, list(SIZES), theirs)
    return found, {**losses, **more}


def test_losses_of_the_same_seed_are_equal(pair: tuple[Any, FasterRCNNHead]) -> None:
    model, head = pair
    model.train()
    head.train()
    theirs = [
        {"labels": t["labels"] + 1, "boxes": t["boxes"].double(), "masks": t["masks"].to(torch.uint8)}
        for t in targets()
    ]
    torch.manual_seed(3)
    _, expected = run_theirs(model, maps(SPECS), theirs)
    torch.manual_seed(3)
    losses = head.compute_loss(head(Features(maps(SPECS), BATCH, SIZES), targets()), targets())
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-12, atol=0)


def test_detections_are_equal_with_boxes_and_masks_in_original_pixels(pair: tuple[Any, FasterRCNNHead]) -> None:
    model, head = pair
    model.eval()
    head.eval()
    with torch.no_grad():
        expected, _ = run_theirs(model, maps(SPECS), None)
        outputs = head(Features(maps(SPECS), BATCH, SIZES))
    infos = [ImageInfo(i, "", (2 * h, 2 * w), (h, w)) for i, (h, w) in enumerate(SIZES)]
    task = "instance" if head.roi_heads.has_mask() else "detection"
    for found, theirs, info in zip(
        head.predict(outputs, infos, task, DecodeOptions(threshold=0.0)), expected, infos, strict=True
    ):
        assert len(found) > 5
        torch.testing.assert_close(found.boxes, 2 * theirs["boxes"].float(), rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(found.labels, theirs["labels"] - 1)
        torch.testing.assert_close(found.scores, theirs["scores"].float(), rtol=1e-6, atol=0)
        if task == "instance":
            pasted = paste_masks_in_image(theirs["masks"], 2 * theirs["boxes"], info.size)[:, 0]
            sure = (pasted - 0.5).abs() > 1e-4  # elsewhere rounding decides
            assert torch.equal(found.masks[sure], (pasted > 0.5)[sure])
            assert (~sure).float().mean() < 1e-3
        else:
            assert found.masks is None


def test_shifted_level_is_noticed(pair: tuple[Any, FasterRCNNHead]) -> None:
    """The comparison would fail for a planted fault."""
    model, head = pair
    model.eval()
    head.eval()
    with torch.no_grad():
        expected, _ = run_theirs(model, maps(SPECS), None)
        faulty = (maps(SPECS)[0].roll(1, dims=-1), *maps(SPECS)[1:])
        found = head.detections(head(Features(faulty, BATCH, SIZES)), DecodeOptions(threshold=0.0))
    same = [
        a.boxes.shape == b["boxes"].shape and torch.allclose(a.boxes.double(), b["boxes"], rtol=1e-6, atol=1e-4)
        for a, b in zip(found, expected, strict=True)
    ]
    assert not all(same)


@pytest.mark.parametrize("form", ["bool", "rle"])
def test_pasted_masks_also_beyond_the_border_and_empty(form: str) -> None:
    from vision_stack.ops import rle

    torch.manual_seed(0)
    masks = torch.rand(40, 28, 28)
    corners = torch.rand(40, 2) * 80 - 10
    boxes = torch.cat([corners, corners + 20 + torch.rand(40, 2) * 60], dim=1)
    boxes[0] = torch.tensor([10.0, 10.0, 10.0, 10.0])  # of no size
    expected = paste_masks_in_image(masks[:, None], boxes, (90, 110))[:, 0]
    found = paste_masks(masks, boxes, (90, 110), form)  # type: ignore[arg-type]
    if form == "rle":
        found = torch.stack([torch.from_numpy(rle.decode(code)) for code in found])
    sure = (expected - 0.5).abs() > 1e-5
    assert torch.equal(found[sure], (expected > 0.5)[sure])


@pytest.mark.parametrize(
    ("extra", "block"),
    [
        ("pool", LastLevelMaxPool()),
        ("p6p7", LastLevelP6P7(16, 16)),
        ("p6p7_on_c5", LastLevelP6P7(64, 16)),
    ],
)
def test_pyramid_with_extra_levels_is_torchvisions(extra: Any, block: Any) -> None:
    torch.manual_seed(0)
    channels, strides = (8, 16, 32, 64), (4, 8, 16, 32)
    theirs = FeaturePyramidNetwork(list(channels), 16, extra_blocks=block)
    specs = tuple(FeatureSpec(f"layer{i}", c, s) for i, (c, s) in enumerate(zip(channels, strides, strict=True)))
    ours = FPNConfig(channels=16, norm="none", extra_levels=extra).build(specs)
    state = theirs.state_dict()
    with torch.no_grad():
        for number in range(4):
            for part, name in ((ours.lateral, "inner_blocks"), (ours.output, "layer_blocks")):
                convolution = next(m for m in part[number].modules() if isinstance(m, torch.nn.Conv2d))
                convolution.weight.copy_(state[f"{name}.{number}.0.weight"])
                convolution.bias.copy_(state[f"{name}.{number}.0.bias"])
        for number, layer in enumerate(ours.extra):
            layer.load_state_dict({k: state[f"extra_blocks.p{6 + number}.{k}"] for k in ("weight", "bias")})
    inputs = [torch.randn(2, c, -(-100 // s), -(-132 // s)) for c, s in zip(channels, strides, strict=True)]
    expected = theirs(OrderedDict((str(i), x) for i, x in enumerate(inputs)))
    found = ours(tuple(inputs))
    assert [spec.stride for spec in ours.out_specs] == [4, 8, 16, 32, 64, 128][: len(found)]
    for a, b in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
