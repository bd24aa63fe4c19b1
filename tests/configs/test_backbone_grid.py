"""Every backbone x neck x head of the yamls on the meta device: it builds, or fails with the listed advice.

A backbone is built once; what necks and heads say depends only on its `out_specs`, so that equal ones are asked once.
"""

import functools
import itertools
from pathlib import Path

import pytest

from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.names import named_options
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.model import VisionModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"
PLAIN = {f"{f}_{s}" for f in ("vit", "eva02") for s in ("tiny", "small", "base", "large")} | {"sam_base"}
PLAIN |= {f"{f}_{s}" for f in ("dinov2", "dinov2_reg", "dinov3") for s in ("small", "base", "large")}
PLAIN |= {"vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "lw_detr_vit", "rf_detr_dinov2"}
SEVERAL = {"rf_detr_dinov2_small"}  # plain ones that give several of their maps
# Of a plain transformer, which has one stride. Every other cell builds.
ADVICE = "neck=simple_pyramid"
FAILS = {
    ("fpn", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("fpn", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("deformable_encoder", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("deformable_encoder", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("hybrid_encoder", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("hybrid_encoder", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("scale_projector", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("scale_projector", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("lite_encoder", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("lite_encoder", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("spatial_tuning", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("spatial_tuning", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("ms_deform", "deformable_detr"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "rt_detr"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "d_fine"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "deimv2"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "rf_detr"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "rf_detr_seg"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "maskformer"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("ms_deform", "mask2former"): "neck: ms_deform needs the backbone's finest map at stride 4, got",
    ("none", "maskformer"): "head: maskformer needs a map at stride 4, got",
    ("none", "mask2former"): "head: mask2former needs a map at stride 4, got",
    ("pixel_decoder", "deformable_detr"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "rt_detr"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "d_fine"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "deimv2"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "rf_detr"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "rf_detr_seg"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "maskformer"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
    ("pixel_decoder", "mask2former"): "neck: pixel_decoder needs the backbone's finest map at stride 4, got",
}
OF_SEVERAL = {
    "deformable_encoder": "neck: deformable_encoder needs increasing strides, got",
    "fpn": "neck: fpn needs increasing strides, got",
    "hybrid_encoder": "neck: hybrid_encoder needs strides that double from map to map, got",
}
ONLY_PLAIN = "neck: spatial_tuning needs three maps of a plain ViT, or one, got"
NO_STRIDE_4 = {
    "deformable_encoder",
    "hybrid_encoder",
    "lite_encoder",
    "scale_projector",
}  # necks of detectors, whatever the backbone
BOX_HEADS = {  # of maps with equal channels at these strides
    "faster_rcnn": (4, 8, 16, 32),
    "mask_rcnn": (4, 8, 16, 32),
    "retinanet": (8, 16, 32),
    "fcos": (8, 16, 32),
}


INSIDE = {"eomt"}  # run a plain transformer's last blocks


def names(group):
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def read(group, name):
    return named_options(CONFIGS / group / f"{name}.yaml")


@functools.cache
def build_neck(name, specs, head):
    """Maps of the neck as it is with the head."""
    pyramid = from_dict(read("head", head), "head").pyramid
    with on_meta():
        return from_dict(read("neck", name), "neck").fitted(pyramid).build(specs).out_specs


@functools.cache
def build_head(name, specs):
    with on_meta():
        from_dict(read("head", name), "head").build(specs, 3)


def outcome(neck, head, specs):
    """The one line of the error; empty if it builds."""
    try:
        build_head(head, build_neck(neck, specs, head))
    except ConfigError as error:
        return str(error)
    return ""


def expected_of_box_head(neck, head, specs):
    """What the error begins with; empty if the cell builds."""
    try:
        pyramid = build_neck(neck, specs, head)
    except ConfigError:
        return "neck: "
    needed = BOX_HEADS[head]
    fits = len({spec.channels for spec in pyramid}) == 1 and set(needed) <= {spec.stride for spec in pyramid}
    return "" if fits else f"head: {head} needs maps of equal channels at strides {', '.join(map(str, needed))}, got"


@pytest.mark.parametrize("name", names("backbone"))
def test_grid_backbone_builds_as_its_yaml_says_and_so_does_every_cell(name):
    options = read("backbone", name)
    if options["type"] == "transformers":
        pytest.importorskip("transformers")
    assert options.pop("pretrained") in ("auto", False)
    config = from_dict(options, "backbone")
    assert options.keys() == to_dict(config).keys()
    with on_meta():
        backbone = config.build()
    assert backbone.out_specs == config.out_specs
    strides = [spec.stride for spec in backbone.out_specs]
    assert (len(strides) == 1) == (name in PLAIN)
    assert strides[:3] == [4, 8, 16] or name in PLAIN | SEVERAL
    for neck, head in itertools.product(names("neck"), [head for head in names("head") if head not in INSIDE]):
        if head in BOX_HEADS:
            expected = expected_of_box_head(neck, head, backbone.out_specs)
        else:
            fails = name in PLAIN | SEVERAL or neck in NO_STRIDE_4
            expected = FAILS.get((neck, head), "") if fails else ""
            if name in SEVERAL:
                expected = OF_SEVERAL.get(neck, expected)
            if neck == "spatial_tuning" and name not in PLAIN:
                expected = ONLY_PLAIN
        found = outcome(neck, head, backbone.out_specs)
        assert found.startswith(expected) if expected else not found, (neck, head, found)
        assert not found or ("neck=hybrid_encoder" if found.startswith(ONLY_PLAIN) else ADVICE) in found
        assert "\n" not in found


@pytest.mark.parametrize("name", names("backbone"))
def test_grid_heads_inside_the_backbone_build_with_plain_transformers_alone(name):
    options = read("backbone", name)
    if options["type"] == "transformers":
        pytest.importorskip("transformers")
    options.pop("pretrained")
    parts = {"backbone": options, "neck": {"type": "none"}, "categories": [{"id": 1, "name": "a"}]}
    for head in INSIDE:
        config = {**parts, "head": read("head", head)}
        if name not in PLAIN - {
            "sam_base",
            "lw_detr_vit",
            "rf_detr_dinov2",
        }:  # whose blocks do not all take the same tokens
            with pytest.raises(
                ConfigError, match=r"^backbone: \w+ has no last blocks to leave .*: backbone=dinov2_small"
            ):
                from_dict(config, cls=VisionModelConfig)
        else:
            from_dict(config, cls=VisionModelConfig)
            with pytest.raises(ConfigError, match=f"^neck: head={head} reads no maps .*; use neck=none$"):
                from_dict({**config, "neck": read("neck", "simple_pyramid")}, cls=VisionModelConfig)


def test_grid_plain_transformers_build_with_simple_pyramid_alone():
    assert {neck for neck, _ in FAILS} == set(names("neck")) - {"simple_pyramid"}
    assert set(names("backbone")) > PLAIN
