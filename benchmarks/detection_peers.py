"""The two Mask R-CNNs that are compared: torchvision's with random weights, and vision_stack's loaded from it."""

from __future__ import annotations

from typing import ClassVar

import torch
from maskformer_peers import adamw, take_step
from torch import Tensor
from torchvision import models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from vision_stack.backbones import TorchvisionBackboneConfig
from vision_stack.heads import MaskRCNNHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import FPNConfig
from vision_stack.structures import Batch, Category, ImageInfo
from vision_stack.weights.torchvision_detectors import Detector, to_ours

BACKBONES = {  # name -> the layers at strides 4, 8, 16, 32, their channels
    "resnet50": ({f"layer{i}": str(i - 1) for i in range(1, 5)}, [256, 512, 1024, 2048]),
    "mobilenet_v3_large": ({"3": "0", "6": "1", "12": "2", "15": "3"}, [24, 40, 112, 160]),
}


class Theirs:
    """torchvision's Mask R-CNN, which neither resizes nor normalises."""

    def __init__(self, backbone: str, num_classes: int) -> None:
        torch.manual_seed(0)
        layers, channels = BACKBONES[backbone]
        net = models.get_model(backbone, weights=None, norm_layer=FrozenBatchNorm2d)
        self.backbone = backbone
        body = net if backbone == "resnet50" else net.features
        pyramid = BackboneWithFPN(body, layers, channels, 256)
        anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(2, 7)), ((0.5, 1.0, 2.0),) * 5)
        self.model = MaskRCNN(
            pyramid, num_classes + 1, rpn_anchor_generator=anchors, image_mean=[0.0] * 3, image_std=[1.0] * 3
        )
        with torch.no_grad():  # so that there are detections
            for module in self.model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.running_var.fill_(1.3)
            self.model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        self.optimizer = adamw(self.model)

    def _images(self, batch: Batch) -> list[Tensor]:
        size = batch.images.shape[-1]
        self.model.transform.min_size, self.model.transform.max_size = (size,), size
        return list((batch.images - 0.45) / 0.23)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        targets = [
            {
                "boxes": t["boxes"].as_subclass(Tensor),
                "labels": t["labels"] + 1,
                "masks": t["masks"].as_subclass(Tensor).to(torch.uint8),
            }
            for t in batch.targets
        ]
        return self.model(self._images(batch), targets)

    def train_step(self, batch: Batch) -> float:
        return take_step(torch.stack(list(self.losses(batch).values())).sum(), self.optimizer)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[int, int]:
        """Detections and pixels of their masks, in an image of `Ours.OUTPUT`."""
        images = self._images(batch)
        sizes = [tuple(image.shape[-2:]) for image in images]
        inputs, _ = self.model.transform(images)
        features = self.model.backbone(inputs.tensors)
        proposals, _ = self.model.rpn(inputs, features)
        found, _ = self.model.roi_heads(features, proposals, inputs.image_sizes)
        results = self.model.transform.postprocess(found, sizes, [Ours.OUTPUT] * len(images))
        return len(results[0]["scores"]), int((results[0]["masks"] > 0.5).sum())


class Ours:
    """vision_stack's model with their weights."""

    OUTPUT: ClassVar[tuple[int, int]] = (640, 640)  # (height, width) of the masks

    def __init__(self, theirs: Theirs) -> None:
        num_classes = theirs.model.roi_heads.mask_predictor.mask_fcn_logits.out_channels - 1
        config = VisionModelConfig(
            backbone=TorchvisionBackboneConfig(theirs.backbone, out_strides=[4, 8, 16, 32], freeze_norm=True),
            neck=FPNConfig(norm="none", extra_levels="pool"),
            head=MaskRCNNHeadConfig(),
            categories=tuple(Category(id=i, name=str(i)) for i in range(num_classes)),
            image_mean=(0.45,) * 3,
            image_std=(0.23,) * 3,
        )
        self.model = VisionModel(config)
        state = to_ours(Detector("mask_rcnn", "v1"), theirs.model.state_dict(), "")
        if theirs.backbone != "resnet50":
            state = {k.replace("backbone.net.", "backbone.net.features."): v for k, v in state.items()}
        missing = self.model.load_state_dict(state, strict=False)
        assert not missing.missing_keys, missing
        self.optimizer = adamw(self.model)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images = self.model.normalize(batch.images, batch.padding_mask)
        outputs = self.model(images, image_sizes=[tuple(batch.images.shape[-2:])] * len(images), targets=batch.targets)
        return self.model.head.compute_loss(outputs, batch.targets)

    def train_step(self, batch: Batch) -> float:
        return take_step(torch.stack(list(self.losses(batch).values())).sum(), self.optimizer)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> tuple[int, int]:
        """Detections and pixels of their masks, in an image of `OUTPUT`."""
        outputs = self.model(self.model.normalize(batch.images, batch.padding_mask))
        size = tuple(batch.images.shape[-2:])
        (found,) = self.model.decode(outputs, [ImageInfo(0, "", self.OUTPUT, size)], threshold=0.05)
        return len(found), int(found.masks.sum())
