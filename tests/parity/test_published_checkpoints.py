"""Directories that transformers writes load here, and are written back such that transformers gives equal logits."""

import copy
import json

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig  # noqa: E402

from vision_stack.backbones import TimmBackboneConfig  # noqa: E402
from vision_stack.config import ConfigError, registered  # noqa: E402
from vision_stack.heads import Mask2FormerHeadConfig, MaskFormerHeadConfig  # noqa: E402
from vision_stack.model import InputSize, PanopticOptions, VisionModel, VisionModelConfig  # noqa: E402
from vision_stack.necks import FPNConfig, MSDeformConfig, PixelDecoderConfig  # noqa: E402
from vision_stack.structures import Category  # noqa: E402
from vision_stack.weights.transformers_config import guess_task  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Of the logits' spread, in float64: rounding through up to a hundred layers, some with batch norms that were never
# settled. In float32 it may flip an attention mask. A tensor in the wrong place changes logits by their spread.
TOLERANCE = 1e-8
# Depths, windows and the ratio of heads as published, at a quarter of the width.
SWIN = {
    "tiny": {"embed_dim": 24, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "small": {"embed_dim": 24, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "base": {"embed_dim": 32, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "large": {"embed_dim": 48, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
RESNET = {
    "18": {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "50": {"hidden_sizes": [32, 64, 128, 256], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
    "101": {"hidden_sizes": [32, 64, 128, 256], "depths": [3, 4, 23, 3], "layer_type": "bottleneck"},
}
SIZES = [*(("swin", size) for size in SWIN), *(("resnet", size) for size in RESNET)]
CASES = [*(("mask2former", *each) for each in SIZES), ("maskformer", "swin", "base"), ("maskformer", "resnet", "50")]


def mask2former(family, size, classes=3):
    if family == "swin":
        backbone = transformers.SwinConfig(out_features=STAGES, **SWIN[size])
    else:
        backbone = transformers.ResNetConfig(out_features=STAGES, **RESNET[size])
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=classes,
        num_queries=10,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_attention_heads=4,
        encoder_layers=1,
        decoder_layers=3,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer(family, size, classes=3):
    if family == "swin":
        backbone = MaskFormerSwinConfig(out_features=STAGES, **SWIN[size])
    else:
        backbone = transformers.ResNetConfig(out_features=STAGES, **RESNET[size])
    decoder = transformers.DetrConfig(
        num_queries=10, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32
    )
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder.to_dict(),
        num_labels=classes,
        fpn_feature_size=32,
        mask_feature_size=32,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


BUILD = {"mask2former": mask2former, "maskformer": maskformer}


def logits(model, size):
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval().double()(images)
    if isinstance(model, VisionModel):
        return outputs.pred_logits, outputs.pred_masks
    return outputs.class_queries_logits, outputs.masks_queries_logits


def largest_difference(model, other, size=(75, 101)):
    pairs = zip(logits(model, size), logits(other, size), strict=True)
    return max(float((got - want).abs().max() / want.std()) for got, want in pairs)


@pytest.mark.parametrize(("architecture", "family", "size"), CASES)
def test_checkpoint_of_transformers_loads_strictly_and_back_with_equal_logits(architecture, family, size, tmp_path):
    torch.manual_seed(0)
    theirs = BUILD[architecture](family, size)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = VisionModel.from_pretrained(tmp_path / "theirs")
    assert len(ours.load_report.matched) == len(ours.state_dict())
    assert ours.load_report.missing == ours.load_report.unexpected == ()
    assert largest_difference(ours, theirs) < TOLERANCE
    ours.export_transformers(tmp_path / "back")
    back, info = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    assert largest_difference(back, theirs) == 0


def test_checkpoint_with_a_planted_fault_is_told_apart(tmp_path):
    theirs = mask2former("resnet", "18")
    theirs.save_pretrained(tmp_path)
    ours = VisionModel.from_pretrained(tmp_path)
    with torch.no_grad():  # query and key of one attention exchanged
        attention = ours.head.layers[0].cross_attn
        for name in ("weight", "bias"):
            q, k = (getattr(getattr(attention, f"{part}_proj"), name) for part in "qk")
            q.data, k.data = k.data.clone(), q.data.clone()
    assert largest_difference(ours, theirs) > 10 * TOLERANCE


# Features as their class, ours of another class than transformers', and one whose names timm's own conversion spoils.
@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "edgenext_xx_small"]
)
@pytest.mark.parametrize("architecture", BUILD)
def test_timm_backbones_of_the_recipes_are_written_for_transformers(architecture, name, tmp_path):
    small = {"num_queries": 7, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 32, "num_decoder_layers": 2}
    if architecture == "mask2former":
        neck = MSDeformConfig(channels=32, mask_channels=32, num_encoder_layers=1, num_heads=4, ffn_dim=32)
        head = Mask2FormerHeadConfig(**small)
    else:
        neck, head = PixelDecoderConfig(channels=32, mask_channels=32), MaskFormerHeadConfig(**small)
    config = VisionModelConfig(
        backbone=TimmBackboneConfig(name, out_strides=[4, 8, 16, 32], out_norms="swin" in name),
        neck=neck,
        head=head,
        categories=(Category(id=7, name="cat"), Category(id=9, name="dog")),
    )
    ours = VisionModel(config)
    ours.export_transformers(tmp_path)
    theirs, info = type(BUILD[architecture]("resnet", "18")).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.id2label == {0: "cat", 1: "dog"}
    size = (64, 96) if name.startswith("edgenext") else (75, 101)  # whose maps timm rounds down; ours are padded
    assert largest_difference(ours, theirs, size) < TOLERANCE
    assert largest_difference(VisionModel.from_pretrained(tmp_path), theirs, size) < TOLERANCE


def test_export_of_parts_that_transformers_has_not_fails_in_one_line(tmp_path):
    parts = {
        "backbone": TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]),
        "categories": (Category(id=1, name="a"),),
    }
    model = VisionModel(
        VisionModelConfig(neck=FPNConfig(channels=16), head=Mask2FormerHeadConfig(hidden_dim=16), **parts)
    )
    with pytest.raises(ConfigError, match="no model with neck=fpn and head=mask2former; it has ms_deform"):
        model.export_transformers(tmp_path)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_export_of_a_detector_points_to_torchvision(head, tmp_path):
    model = VisionModel(
        VisionModelConfig(
            backbone=TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]),
            neck=FPNConfig(channels=16),
            head=registered("head")[head](),
            categories=(Category(id=1, name="a"),),
            task="instance" if head == "mask_rcnn" else "detection",
        )
    )
    with pytest.raises(ConfigError, match=rf"^head={head}: transformers has no such model; to-torchvision writes it"):
        model.export_transformers(tmp_path)


@pytest.mark.parametrize(
    ("norms", "levels", "message"),
    [(True, 3, r"backbone\.out_norms: only Swin .*"), (False, 2, r"head\.num_levels: .* reads 3 levels, not 2")],
)
def test_export_never_leaves_out_what_transformers_cannot_hold(norms, levels, message, tmp_path):
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32], out_norms=norms),
        neck=MSDeformConfig(channels=32, mask_channels=16, num_encoder_layers=1),
        head=Mask2FormerHeadConfig(hidden_dim=16, num_levels=levels),
        categories=(Category(id=1, name="a"),),
    )
    with pytest.raises(ConfigError, match=message):
        VisionModel(config).export_transformers(tmp_path)


def test_export_keeps_task_ids_things_and_thresholds_unless_the_classes_change(tmp_path):
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]),
        neck=MSDeformConfig(channels=32, mask_channels=32, num_encoder_layers=1),
        head=Mask2FormerHeadConfig(hidden_dim=32, num_decoder_layers=1),
        categories=(Category(id=7, name="cat"), Category(id=11, name="sky", is_thing=False)),
        task="panoptic",
        panoptic=PanopticOptions(score_threshold=0.3, overlap_threshold=0.6),
    )
    VisionModel(config).export_transformers(tmp_path)
    back = VisionModel.from_pretrained(tmp_path).config
    assert (back.categories, back.task, back.panoptic) == (config.categories, config.task, config.panoptic)
    transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert VisionModel.from_pretrained(tmp_path / "again").config.categories == config.categories
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["id2label"]["0"] = "lion"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    changed = VisionModel.from_pretrained(tmp_path).config.categories
    assert [(category.id, category.name) for category in changed] == [(0, "lion"), (1, "sky")]


@pytest.mark.parametrize(
    ("backbone", "channels", "message"),
    [
        ("swin_s3_tiny_224", 32, r"windows of one size, this one of \[7, 14\]"),
        (
            "swin_tiny_patch4_window7_224",
            48,
            r"neck\.channels: transformers' group norms need a multiple of 32, not 48",
        ),
    ],
)
def test_export_never_writes_what_transformers_could_not_load(backbone, channels, message, tmp_path):
    config = VisionModelConfig(
        backbone=TimmBackboneConfig(backbone, out_strides=[4, 8, 16, 32], out_norms=True),
        neck=MSDeformConfig(channels=channels, mask_channels=32, num_encoder_layers=1),
        head=Mask2FormerHeadConfig(hidden_dim=32),
        categories=(Category(id=1, name="a"),),
    )
    with pytest.raises(ConfigError, match=message):
        VisionModel(config).export_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8]}],
    ids=["usual", "not normalised", "not rescaled", "to -1 .. 1"],
)
def test_published_processor_pixels_equal_transformers(options, tmp_path):
    mask2former("resnet", "18").save_pretrained(tmp_path)
    size = {"shortest_edge": 64, "longest_edge": 96}
    processor = transformers.Mask2FormerImageProcessor(size=size, **options)
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    model = VisionModel.from_pretrained(tmp_path)
    ours = model.normalize(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert model.config.input_size == InputSize(short_edge=64, long_edge=96)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_published_size_without_aspect_is_warned_about_and_bad_scale_refused(tmp_path):
    mask2former("resnet", "18").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json: size: .*'height': 384.* keep their aspect"):
        assert VisionModel.from_pretrained(tmp_path).config.input_size == InputSize(short_edge=384, long_edge=384)
    file.write_text(json.dumps({"size": 384}))
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json: size: 384 is not a shortest and longest edge"):
        assert VisionModel.from_pretrained(tmp_path).config.input_size == InputSize()
    file.write_text(json.dumps({"rescale_factor": "much"}))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: rescale_factor: expected a positive number"):
        VisionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("task", "classes", "things"), [("panoptic", 133, 80), ("panoptic", 5, 5), ("instance", 133, 133)]
)
def test_only_panoptic_models_of_cocos_classes_have_stuff(tmp_path, task, classes, things):
    directory = tmp_path / f"mask2former-tiny-coco-{task}"
    mask2former("resnet", "18", classes=classes).save_pretrained(directory)
    config = VisionModel.from_pretrained(directory).config
    assert config.task == task
    assert sum(category.is_thing for category in config.categories) == things


@pytest.mark.parametrize(
    ("name", "architecture", "task"),
    [
        ("facebook/mask2former-swin-tiny-coco-instance", "mask2former", "instance"),
        ("facebook/mask2former-swin-large-cityscapes-semantic", "mask2former", "semantic"),
        ("facebook/maskformer-swin-base-ade", "maskformer", "semantic"),
        ("facebook/maskformer-resnet50-coco-stuff", "maskformer", "semantic"),
        ("facebook/maskformer-swin-small-coco", "maskformer", "panoptic"),
        ("some/model", "maskformer", "instance"),
        ("/data/semantic/mask2former-coco-panoptic/", "mask2former", "panoptic"),
    ],
)
def test_task_of_published_names(name, architecture, task):
    assert guess_task(name, architecture) == task
