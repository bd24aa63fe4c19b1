"""Detectors of torchvision, loaded as whole models by file and by name, and written back."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection, get_model_weights
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from vision_stack.config import ConfigError, from_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import ImageInfo
from vision_stack.weights.torchvision_detectors import DETECTORS

SIZE = (128, 160)
ANY_CLASSES = 5  # with the background


def detector(name: str, num_classes: int = ANY_CLASSES, **options: Any) -> Any:
    """torchvision's model in float64, which neither resizes nor normalises, perturbed so that it finds something."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    last = 1 if "backbone.fpn.layer_blocks.0.1.weight" in model.state_dict() else 0
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor += 0.02 * (noise.abs() if "running_var" in key else noise)
            if re.search(rf"fpn\.layer_blocks\.\d\.{last}\.(weight|bias)$", key):
                tensor *= 1e-3  # a random ResNet's maps grow with its depth
            if key.endswith(("classification_head.cls_logits.bias", "rpn.head.cls_logits.bias")):
                tensor += 4  # it starts at "nothing here"
            if key.endswith("classification_head.cls_logits.bias"):
                tensor.view(-1, num_classes)[:, 0] = -100  # the background, which training only ever lowers
    model.transform.min_size, model.transform.max_size = (SIZE[0],), SIZE[1]
    model.transform.image_mean, model.transform.image_std = [0.0] * 3, [1.0] * 3
    return model.double().eval()


def found_by(model: Any, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    with torch.no_grad():
        return model(list(images))


def assert_finds_the_same(ours: VisionModel, theirs: list[dict[str, torch.Tensor]], images: torch.Tensor) -> None:
    ours = ours.double().eval()
    with torch.no_grad():
        outputs = ours(images)
    infos = [ImageInfo(i, "", SIZE, SIZE) for i in range(len(images))]
    for found, expected in zip(ours.decode(outputs, infos, threshold=0.0, top_k=300), theirs, strict=True):
        assert len(found) == len(expected["scores"]) > 5
        torch.testing.assert_close(found.labels, expected["labels"] - 1)
        torch.testing.assert_close(found.scores.double(), expected["scores"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.boxes.double(), expected["boxes"], rtol=0, atol=1e-4)
        if "masks" in expected:
            differing = (found.masks != (expected["masks"][:, 0] > 0.5)).double().mean()
            assert differing < 1e-4


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", DETECTORS)
def test_state_dict_of_a_detector_finds_the_same_and_goes_back(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    theirs = detector(name)
    expected = found_by(theirs, images)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = VisionModel.from_pretrained(tmp_path / "theirs.pth").double()
    assert [c.name for c in ours.categories] == ["class 1", "class 2", "class 3", "class 4"]
    assert not ours.load_report.missing
    assert not ours.load_report.unexpected
    assert_finds_the_same(ours, expected, images)

    call = ours.export_torchvision(tmp_path / "back.pth")
    assert (
        call == f"torchvision.models.detection.{name}(weights=None, weights_backbone=None, num_classes={ANY_CLASSES})"
    )
    again = detector(name)
    again.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
    for one, other in zip(found_by(again, images), expected, strict=True):
        for key in other:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_published_weights_by_name_with_old_layer_names_and_an_epsilon_of_zero(
    name: str, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = freeze(detector(name, num_classes=91))
    overwrite_eps(theirs, 0.0)  # as torchvision does for these weights
    weights = get_model_weights(name).COCO_V1
    cached = tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save({old_name(key): value.float() for key, value in theirs.state_dict().items()}, cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    ours = VisionModel.from_pretrained(f"torchvision/{name}")
    assert [c.name for c in ours.categories][:12] == [*weights.meta["categories"][1:12], "unused 12"]
    assert ours.config.input_size.short_edge == 800
    assert ours.config.backbone.freeze_norm
    theirs.load_state_dict({key: value.float() for key, value in theirs.state_dict().items()})
    assert_finds_the_same(ours, found_by(theirs, images), images)


def freeze(model: nn.Module) -> nn.Module:
    """torchvision's batch norms of detectors that start from published weights."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features).double()
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen)
        else:
            freeze(child)
    return model


def old_name(key: str) -> str:
    """As in files from before torchvision 0.13."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
    return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)


def test_names_and_files_that_are_no_detector_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights: no detector torchvision/ssd300_vgg16; there are fasterrcnn"):
        VisionModel.from_pretrained("torchvision/ssd300_vgg16")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth: not a state dict of a detector of torchvision; give a \.ckpt"):
        VisionModel.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize("damage", ["missing", "two rows", "number"])
def test_state_dict_of_a_detector_with_a_broken_tensor_is_one_line_with_the_file(
    name: str, damage: str, tmp_path: Path
) -> None:
    state = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=ANY_CLASSES).state_dict()
    dense = "rcnn" not in name
    key = "head.regression_head.bbox_reg.weight" if dense else "roi_heads.box_predictor.cls_score.weight"
    if damage == "missing":
        state.pop(key if dense else "roi_heads.box_predictor.cls_score.bias")
    else:
        state[key] = state[key][:2] if damage == "two rows" else torch.tensor(1.0)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ConfigError, match=r"^.*broken\.pth: .*") as error:
        VisionModel.from_pretrained(tmp_path / "broken.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "neck", "head", "problem"),
    [
        ("resnet18", {"norm": "none"}, {}, "backbone=timm: not a ResNet-50"),
        ("resnet50", {"norm": "group"}, {}, r"backbone\.fpn\.inner_blocks\.0\..*: another layer"),
        ("resnet50", {"norm": "none", "channels": 96}, {}, r"backbone\.fpn\..*: another layer, or one of another size"),
        ("resnet50", {"norm": "none", "upsample": "bilinear"}, {}, r"neck\.upsample: bilinear, not nearest"),
        ("resnet50", {"norm": "none"}, {"anchor_scale": 4.0}, r"head\.anchor_scale: 4\.0, not 8\.0"),
        ("resnet50", {"norm": "none"}, {}, ""),
    ],
)
def test_only_what_torchvision_builds_is_written(
    backbone: str, neck: dict[str, Any], head: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    plain = {
        "backbone": {"type": "timm", "model_name": backbone, "out_strides": [4, 8, 16, 32]},
        "neck": {"type": "fpn", **neck},
        "head": {"type": "mask_rcnn", **head},
        "categories": [{"id": 1, "name": "a"}],
    }
    model = VisionModel(from_dict(plain, cls=VisionModelConfig))
    if not problem:
        call = model.export_torchvision(tmp_path / "file.pth")
        theirs = eval(call, {"torchvision": torchvision})
        theirs.load_state_dict(torch.load(tmp_path / "file.pth", weights_only=True))
        return
    remedy = r"train with head=mask_rcnn head\.version=v1 backbone=resnet50 neck=fpn neck\.channels=256 neck\.norm=none"
    with pytest.raises(ConfigError, match=rf"^{problem}.*, so torchvision's maskrcnn_resnet50_fpn .*; {remedy}"):
        model.export_torchvision(tmp_path / "file.pth")
    assert not (tmp_path / "file.pth").exists()
