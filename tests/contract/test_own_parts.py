"""The contract tests that users import, on every part of ours; and that they notice what is not kept."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import vision_stack.testing
from vision_stack.backbones import ConvNextConfig, ResNetConfig, SwinConfig, TimmBackboneConfig, ViTConfig
from vision_stack.config import from_dict, registered
from vision_stack.heads import BoxHeadConfig, FCOSHeadConfig
from vision_stack.structures import FeatureSpec, NeckConfig
from vision_stack.testing import check_backbone, check_head, check_neck

TINY_DETR = {"num_queries": 7, "ffn_dim": 32, "num_heads": 4, "num_decoder_layers": 2}
SMALL: dict[str, dict[str, Any]] = {
    "maskformer": {"num_queries": 7, "hidden_dim": 16, "ffn_dim": 32, "num_heads": 4, "num_decoder_layers": 2},
    "mask2former": {"num_queries": 7, "hidden_dim": 16, "ffn_dim": 32, "num_heads": 4, "num_decoder_layers": 3},
    "faster_rcnn": {"representation_size": 8, "rpn_post_nms_top_n": 20},
    "mask_rcnn": {"representation_size": 8, "rpn_post_nms_top_n": 20, "mask_channels": 8},
    "fcos": {"num_convs": 1},
    "deformable_detr": {**TINY_DETR, "hidden_dim": 16},
    "rt_detr": {**TINY_DETR, "hidden_dim": 16, "num_denoising": 10},
    "d_fine": {**TINY_DETR, "hidden_dim": 16, "num_denoising": 10},
    "deimv2": {**TINY_DETR, "hidden_dim": 16, "num_denoising": 10},
    "rf_detr_seg": {**TINY_DETR, "hidden_dim": 16, "cross_heads": 4, "num_groups": 2, "mask_ffn_dim": 16},
    "rf_detr": {**TINY_DETR, "hidden_dim": 16, "cross_heads": 4, "num_groups": 2},
    "deformable_encoder": {"channels": 16, "ffn_dim": 32, "num_heads": 4, "num_encoder_layers": 1},
    "eomt": {"num_queries": 7, "num_blocks": 1},
    "pixel_decoder": {"channels": 16, "mask_channels": 16, "ffn_dim": 32},
    "ms_deform": {"channels": 16, "mask_channels": 16, "ffn_dim": 32, "num_heads": 4, "num_encoder_layers": 1},
    "fpn": {"channels": 16},
    "simple_pyramid": {"channels": 16},
}
IN_SPECS = {"spatial_tuning": [FeatureSpec(f"stage{n}", 32, 16) for n in range(3)]}  # of a plain ViT
BACKBONES = [
    TimmBackboneConfig("test_resnet"),
    TimmBackboneConfig("test_convnext"),
    ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8, out_strides=[4, 8, 16, 32]),
    SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, out_features=["stage1", "stage2"]),
    ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], out_features=["stage1", "stage4"]),
    ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=64),
]


def ours(kind: str) -> list[str]:
    return [name for name, cls in registered(kind).items() if cls.__module__.startswith("vision_stack")]


@pytest.mark.parametrize("name", ours("head"))
def test_head_keeps_the_contract(name: str) -> None:
    check_head(from_dict({"type": name, **SMALL.get(name, {})}, "head"))


@pytest.mark.parametrize("options", [{"type": "retinanet", "version": "v2"}, {"type": "faster_rcnn", "version": "v2"}])
def test_second_versions_keep_the_contract(options: dict[str, Any]) -> None:
    check_head(from_dict({**SMALL.get(options["type"], {}), **options}, "head"))


@pytest.mark.parametrize("name", ours("neck"))
def test_neck_keeps_the_contract(name: str) -> None:
    check_neck(from_dict({"type": name, **SMALL.get(name, {})}, "neck"), IN_SPECS.get(name))


@pytest.mark.parametrize("config", BACKBONES, ids=lambda config: config.type)
def test_backbone_keeps_the_contract(config: Any) -> None:
    check_backbone(config)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a class of this test's own."""

    def add(kind: str, cls: Any) -> Any:
        known = registered(kind)
        monkeypatch.setattr(vision_stack.testing, "registered", lambda asked: {**known, "own": cls})
        monkeypatch.setattr(vision_stack.testing, "from_dict", lambda plain, asked: cls())
        cls.type = "own"
        return cls()

    return add


class Halving(nn.Module):
    def __init__(self, in_specs: tuple[FeatureSpec, ...], fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.layer = nn.Conv2d(in_specs[0].channels, 4, 3, padding=1)
        self.idle = nn.Linear(1, 1) if fault == "idle" else None
        self.out_specs = (FeatureSpec("p2", 5 if fault == "channels" else 4, in_specs[0].stride),)

    def forward(self, maps: Any) -> Any:
        found = [self.layer(maps[0])]
        return found if self.fault == "list" else tuple(found)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("channels", r"map \(2, 4, 16, 16\) of an image \(64, 64\) is not FeatureSpec\(name='p2', channels=5"),
        ("idle", "the neck does not use idle.weight: it gets no gradient"),
        ("list", "the neck gives a list, not a tuple of maps"),
    ],
)
def test_check_neck_notices_what_is_not_kept(fault: str, message: str, own: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(NeckConfig):
        def build(self, in_specs: tuple[FeatureSpec, ...]) -> Halving:
            return Halving(in_specs, fault)

    config = own("neck", Own)
    if not message:
        check_neck(config)
        return
    with pytest.raises(AssertionError, match=message):
        check_neck(config)


class FaultyFCOS:
    """What goes wrong in a head, planted into one that is right."""

    @staticmethod
    def loss(head: Any) -> None:
        head.compute_loss = lambda outputs, targets: {"loss": outputs.cls_logits.sum() * float("nan")}

    @staticmethod
    def vector(head: Any) -> None:
        head.compute_loss = lambda outputs, targets: {"loss": outputs.cls_logits.flatten()}

    @staticmethod
    def labels(head: Any) -> None:
        plain = head.candidates
        head.candidates = lambda outputs: [c._replace(labels=c.labels + 1) for c in plain(outputs)]

    @staticmethod
    def outside(head: Any) -> None:
        plain = head.candidates
        head.candidates = lambda outputs: [c._replace(boxes=c.boxes + 100) for c in plain(outputs)]

    @staticmethod
    def rows(head: Any) -> None:
        head.class_rows = lambda: {"no.such.weight": torch.zeros(3, 1, dtype=torch.int64)}

    @staticmethod
    def queries(head: Any) -> None:
        head.query_rows = lambda: {"no.such.weight": torch.zeros(1, 5, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("loss", r"loss is nan with \(2, 1\) objects in a batch"),
        ("vector", r"loss has shape \[\d+\]; losses are scalars"),
        ("labels", "there are labels not within 0 and 2"),
        ("outside", "boxes reach beyond the image"),
        ("rows", "class_rows names no.such.weight, which is not a parameter"),
        ("queries", "query_rows names no.such.weight, which is not a parameter"),
    ],
)
def test_check_head_notices_what_is_not_kept(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FCOSHeadConfig(num_convs=1, score_thresh=0.0)
    build = FCOSHeadConfig.build

    def faulty(self: Any, in_specs: Any, num_classes: int) -> Any:
        head = build(self, in_specs, num_classes)
        getattr(FaultyFCOS, fault)(head)
        return head

    monkeypatch.setattr(FCOSHeadConfig, "build", faulty)
    with pytest.raises(AssertionError, match=message):
        check_head(config)


def test_check_head_notices_a_config_that_is_not_registered() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(BoxHeadConfig):
        pass

    with pytest.raises(AssertionError, match=r'Own lacks @register\("head", NAME\)'):
        check_head(Own())
