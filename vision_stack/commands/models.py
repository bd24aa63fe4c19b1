"""List published models: `vision-stack models [FILTER]`. Every one of them starts a run by `weights=NAME`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from vision_stack.ops.text import matches


class Model(NamedTuple):
    """A model of the Hub, or one of torchvision's."""

    name: str  # as `weights=` takes it
    task: str
    score: float  # box AP (detection), mask AP (instance) or PQ (panoptic) on COCO val2017; mIoU on ADE20K (semantic)
    parameters: float  # in millions
    size: str  # of its images in pixels: the side of a square, or the shortest and the longest side
    licence: str  # of the weights


_SIDES = "800/1333"
_DINOV3, _NON_COMMERCIAL = "DINOv3", "CC BY-NC 4.0"

# Scores are those of the authors' model zoos: facebookresearch/MaskFormer, facebookresearch/Mask2Former, tue-mps/eomt,
# roboflow/rf-detr, Atten4Vis/LW-DETR, lyuwenyu/RT-DETR, Peterande/D-FINE, Intellindust-AI-Lab/DEIMv2,
# fundamentalvision/Deformable-DETR, torchvision.
MODELS = (
    Model("Roboflow/rf-detr-medium", "detection", 54.7, 33.7, "576", "Apache 2.0"),
    Model("Roboflow/rf-detr-small", "detection", 53.0, 32.1, "512", "Apache 2.0"),
    Model("Roboflow/rf-detr-nano", "detection", 48.4, 30.5, "384", "Apache 2.0"),
    Model("ustc-community/dfine-xlarge-obj2coco", "detection", 59.3, 62, "640", "Apache 2.0"),
    Model("ustc-community/dfine-large-obj2coco-e25", "detection", 57.3, 31, "640", "Apache 2.0"),
    Model("ustc-community/dfine-medium-obj2coco", "detection", 55.1, 19, "640", "Apache 2.0"),
    Model("ustc-community/dfine-small-obj2coco", "detection", 50.7, 10, "640", "Apache 2.0"),
    Model("ustc-community/dfine-xlarge-coco", "detection", 55.8, 62, "640", "Apache 2.0"),
    Model("ustc-community/dfine-large-coco", "detection", 54.0, 31, "640", "Apache 2.0"),
    Model("ustc-community/dfine-medium-coco", "detection", 52.3, 19, "640", "Apache 2.0"),
    Model("ustc-community/dfine-small-coco", "detection", 48.5, 10, "640", "Apache 2.0"),
    Model("ustc-community/dfine-nano-coco", "detection", 42.8, 4, "640", "Apache 2.0"),
    Model("AnnaZhang/lwdetr_xlarge_60e_coco", "detection", 58.3, 118, "640", "Apache 2.0"),
    Model("AnnaZhang/lwdetr_large_60e_coco", "detection", 56.1, 46.8, "640", "Apache 2.0"),
    Model("AnnaZhang/lwdetr_medium_60e_coco", "detection", 52.5, 28.2, "640", "Apache 2.0"),
    Model("AnnaZhang/lwdetr_small_60e_coco", "detection", 48.0, 14.6, "640", "Apache 2.0"),
    Model("AnnaZhang/lwdetr_tiny_60e_coco", "detection", 42.6, 12.1, "640", "Apache 2.0"),
    Model("harshaljanjani/DEIMv2_DINOv3_S_COCO_Transformers", "detection", 50.9, 9.7, "640", "Apache 2.0"),
    Model("harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers", "detection", 43.0, 3.6, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r101vd_coco_o365", "detection", 56.2, 76, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r50vd_coco_o365", "detection", 55.3, 42, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_v2_r101vd", "detection", 54.3, 76, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_v2_r50vd", "detection", 53.4, 42, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_v2_r34vd", "detection", 49.9, 31, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_v2_r18vd", "detection", 48.1, 20, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r101vd", "detection", 54.3, 76, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r50vd", "detection", 53.1, 42, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r34vd", "detection", 48.9, 31, "640", "Apache 2.0"),
    Model("PekingU/rtdetr_r18vd", "detection", 46.5, 20, "640", "Apache 2.0"),
    Model("SenseTime/deformable-detr-with-box-refine-two-stage", "detection", 46.9, 41, _SIDES, "Apache 2.0"),
    Model("SenseTime/deformable-detr-with-box-refine", "detection", 46.2, 41, _SIDES, "Apache 2.0"),
    Model("SenseTime/deformable-detr", "detection", 44.5, 40, _SIDES, "Apache 2.0"),
    Model("torchvision/fasterrcnn_resnet50_fpn_v2", "detection", 46.7, 43.7, _SIDES, "BSD 3-Clause"),
    Model("torchvision/retinanet_resnet50_fpn_v2", "detection", 41.5, 38.2, _SIDES, "BSD 3-Clause"),
    Model("torchvision/fcos_resnet50_fpn", "detection", 39.2, 32.3, _SIDES, "BSD 3-Clause"),
    Model("torchvision/fasterrcnn_resnet50_fpn", "detection", 37.0, 41.8, _SIDES, "BSD 3-Clause"),
    Model("torchvision/retinanet_resnet50_fpn", "detection", 36.4, 34.0, _SIDES, "BSD 3-Clause"),
    Model("Roboflow/rf-detr-seg-xxlarge", "instance", 49.9, 38.6, "768", "Apache 2.0"),
    Model("Roboflow/rf-detr-seg-xlarge", "instance", 48.8, 38.1, "624", "Apache 2.0"),
    Model("Roboflow/rf-detr-seg-large", "instance", 47.1, 36.2, "504", "Apache 2.0"),
    Model("Roboflow/rf-detr-seg-medium", "instance", 45.3, 35.7, "432", "Apache 2.0"),
    Model("Roboflow/rf-detr-seg-small", "instance", 43.1, 33.7, "384", "Apache 2.0"),
    Model("Roboflow/rf-detr-seg-nano", "instance", 40.3, 33.6, "312", "Apache 2.0"),
    Model("tue-mps/eomt-dinov3-coco-instance-large-1280", "instance", 49.9, 315, "1280", _DINOV3),
    Model("tue-mps/eomt-dinov3-coco-instance-large-640", "instance", 45.9, 315, "640", _DINOV3),
    Model("tue-mps/coco_instance_eomt_large_1280", "instance", 48.8, 322, "1280", "MIT"),
    Model("tue-mps/coco_instance_eomt_large_640", "instance", 45.2, 317, "640", "MIT"),
    Model("facebook/mask2former-swin-large-coco-instance", "instance", 50.1, 216, _SIDES, _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-small-coco-instance", "instance", 46.3, 69, _SIDES, _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-tiny-coco-instance", "instance", 45.0, 47, _SIDES, _NON_COMMERCIAL),
    Model("torchvision/maskrcnn_resnet50_fpn_v2", "instance", 41.8, 46.4, _SIDES, "BSD 3-Clause"),
    Model("torchvision/maskrcnn_resnet50_fpn", "instance", 34.6, 44.4, _SIDES, "BSD 3-Clause"),
    Model("tue-mps/eomt-dinov3-coco-panoptic-large-1280", "panoptic", 58.9, 315, "1280", _DINOV3),
    Model("tue-mps/eomt-dinov3-coco-panoptic-large-640", "panoptic", 56.8, 315, "640", _DINOV3),
    Model("tue-mps/eomt-dinov3-coco-panoptic-base-640", "panoptic", 53.1, 92, "640", _DINOV3),
    Model("tue-mps/eomt-dinov3-coco-panoptic-small-640", "panoptic", 47.2, 23, "640", _DINOV3),
    Model("tue-mps/coco_panoptic_eomt_large_1280", "panoptic", 58.3, 322, "1280", "MIT"),
    Model("tue-mps/coco_panoptic_eomt_large_640", "panoptic", 56.0, 317, "640", "MIT"),
    Model("tue-mps/coco_panoptic_eomt_base_640_2x", "panoptic", 51.6, 94, "640", "MIT"),
    Model("tue-mps/coco_panoptic_eomt_small_640_2x", "panoptic", 46.7, 24, "640", "MIT"),
    Model("facebook/mask2former-swin-large-coco-panoptic", "panoptic", 57.8, 216, _SIDES, _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-small-coco-panoptic", "panoptic", 54.6, 69, _SIDES, _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-tiny-coco-panoptic", "panoptic", 53.2, 47, _SIDES, _NON_COMMERCIAL),
    Model("facebook/maskformer-swin-large-coco", "panoptic", 52.7, 212, _SIDES, _NON_COMMERCIAL),
    Model("facebook/maskformer-swin-base-coco", "panoptic", 51.8, 102, _SIDES, _NON_COMMERCIAL),
    Model("facebook/maskformer-swin-tiny-coco", "panoptic", 47.7, 42, _SIDES, _NON_COMMERCIAL),
    Model("tue-mps/eomt-dinov3-ade-semantic-large-512", "semantic", 59.5, 315, "512", _DINOV3),
    Model("tue-mps/ade20k_semantic_eomt_large_512", "semantic", 58.4, 316, "512", "MIT"),
    Model("facebook/mask2former-swin-large-ade-semantic", "semantic", 56.1, 216, "640", _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-small-ade-semantic", "semantic", 51.3, 69, "512", _NON_COMMERCIAL),
    Model("facebook/mask2former-swin-tiny-ade-semantic", "semantic", 47.7, 47, "512", _NON_COMMERCIAL),
    Model("facebook/maskformer-swin-base-ade", "semantic", 52.7, 102, "640", _NON_COMMERCIAL),
)
_NOTES = (
    "Scores as published: box AP, mask AP and PQ on COCO val2017, mIoU on ADE20K.",
    "DEIMv2's are its authors', whose code differs from that of transformers.",
    "Fine-tune on your own images: vision-stack train weights=NAME task=TASK data=DIR",
    "As it is: vision-stack predict checkpoint=NAME source=photo.jpg",
)


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 1 if no model matches."""
    parser = argparse.ArgumentParser(
        prog="vision-stack models",
        description="List published models that weights= and checkpoint= take, with their published scores.",
        epilog="\n".join(_NOTES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("filter", nargs="?", default="", help="a task, a part of the name, or a pattern: '*eomt*640*'")
    text = parser.parse_args(argv).filter.lower()
    found = [model for model in MODELS if text == model.task or matches(text, model.name.lower())]
    widths = (shutil.get_terminal_size().columns, max((len(model.name) for model in found), default=0))
    if found:
        print(_line("weights=", "task", "score", "M param.", "licence", "pixels", *widths))
    for model in found:
        score, parameters = f"{model.score:.1f}", f"{model.parameters:g}"
        print(_line(model.name, model.task, score, parameters, model.licence, model.size, *widths))
    print("\n".join([f"{len(found)} models", *(_NOTES if found else ())]))
    return 0 if found else 1


def _line(name: str, task: str, score: str, parameters: str, licence: str, size: str, width: int, longest: int) -> str:
    """What comes last is cut, so that a row is a line."""
    return f"{name:{longest}s} {task:9s} {score:>5s} {parameters:>8s} {licence:12s} {size}"[:width].rstrip()
