"""RetinaNet and FCOS against torchvision's models of the same weights, in float64, where rounding decides nothing."""

from typing import Any

import pytest
import torch
from detector_parity import BATCH, SIZES, maps
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from vision_stack.heads.dense import DenseHead, FCOSHeadConfig, RetinaNetHeadConfig
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo, Target

NUM_CLASSES = 4
SPECS = tuple(FeatureSpec(f"p{i}", 256, 2**i) for i in range(3, 8))
MODELS = [
    ("retinanet_resnet50_fpn", RetinaNetHeadConfig(version="v1")),
    ("retinanet_resnet50_fpn_v2", RetinaNetHeadConfig(version="v2")),
    ("fcos_resnet50_fpn", FCOSHeadConfig()),
]


@pytest.fixture(scope="module", params=MODELS, ids=[name for name, _ in MODELS])
def pair(request: pytest.FixtureRequest) -> tuple[Any, DenseHead]:
    """torchvision's model and our head with its weights, all of them perturbed so that there are detections."""
    name, config = request.param
    torch.manual_seed(0)
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES).double()
    with torch.no_grad():
        for parameter in theirs.head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        theirs.head.classification_head.cls_logits.bias += 2.0
    ours = config.build(SPECS, NUM_CLASSES).double()
    state = {k: v for k, v in theirs.state_dict().items() if k.startswith("head.")}
    ours.load_state_dict(state)  # strictly: the names are torchvision's own
    return theirs, ours


def targets() -> list[Target]:
    boxes = torch.tensor([[20.0, 10.0, 70.0, 60.0], [90.0, 70.0, 150.0, 110.0], [3.0, 80.0, 20.0, 101.0]])
    nothing: Target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return [{"labels": torch.tensor([0, 3, 1]), "boxes": boxes}, nothing]


def theirs_of(model: Any, features: tuple[torch.Tensor, ...]) -> tuple[Any, list[torch.Tensor], list[int]]:
    outputs = model.head(list(features))
    anchors = model.anchor_generator(ImageList(torch.zeros(2, 3, *BATCH), list(SIZES)), list(features))
    each = len(anchors[0]) // sum(x.shape[2] * x.shape[3] for x in features)
    return outputs, anchors, [each * x.shape[2] * x.shape[3] for x in features]


def losses_of(model: Any, features: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    outputs, anchors, counts = theirs_of(model, features)
    theirs = [{**target, "boxes": target["boxes"].double()} for target in targets()]
    more = [counts] if isinstance(model, detection.FCOS) else []
    losses: dict[str, torch.Tensor] = model.compute_loss(theirs, outputs, anchors, *more)
    return losses


def detections_of(model: Any, features: tuple[torch.Tensor, ...]) -> list[dict[str, torch.Tensor]]:
    outputs, anchors, counts = theirs_of(model, features)
    split = {name: list(value.split(counts, dim=1)) for name, value in outputs.items()}
    found: list[dict[str, torch.Tensor]] = model.postprocess_detections(
        split, [list(a.split(counts)) for a in anchors], list(SIZES)
    )
    return found


def test_losses_are_equal(pair: tuple[Any, DenseHead]) -> None:
    model, head = pair
    expected = losses_of(model, maps(SPECS))
    losses = head.train().compute_loss(head(Features(maps(SPECS), BATCH, SIZES)), targets())
    assert losses.keys() == {f"loss_{name}" for name in expected}
    for name, loss in expected.items():
        assert loss > 0.01
        torch.testing.assert_close(losses[f"loss_{name}"], loss, rtol=1e-12, atol=0)


def test_detections_are_equal_in_original_pixels(pair: tuple[Any, DenseHead]) -> None:
    model, head = pair
    head.eval()
    with torch.no_grad():
        expected = detections_of(model, maps(SPECS))
        outputs = head(Features(maps(SPECS), BATCH, SIZES))
    infos = [ImageInfo(i, "", (2 * h, 2 * w), (h, w)) for i, (h, w) in enumerate(SIZES)]
    options = DecodeOptions(threshold=0.0, top_k=1000)
    for found, theirs, info in zip(head.predict(outputs, infos, "detection", options), expected, infos, strict=True):
        assert len(found) > 20
        assert found.masks is None
        torch.testing.assert_close(found.boxes, 2 * theirs["boxes"].float(), rtol=0, atol=1e-4)
        assert torch.equal(found.labels, theirs["labels"])
        torch.testing.assert_close(found.scores, theirs["scores"].float(), rtol=0, atol=1e-7)
        assert (found.boxes[:, 2:] <= torch.tensor(info.size).flip(0)).all()


def test_shifted_level_is_noticed(pair: tuple[Any, DenseHead]) -> None:
    """The comparison would fail for a planted fault."""
    model, head = pair
    faulty = (maps(SPECS)[0].roll(1, dims=-1), *maps(SPECS)[1:])
    losses = head.train().compute_loss(head(Features(faulty, BATCH, SIZES)), targets())
    assert any(abs(losses[f"loss_{name}"] - loss) > 1e-6 for name, loss in losses_of(model, maps(SPECS)).items())
