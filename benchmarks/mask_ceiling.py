"""The mask AP that logits at a quarter of the input's size allow: the ground truth itself, reduced to that size.

    python benchmarks/mask_ceiling.py DIR --split train --images 4 --short-edge 384 --long-edge 512

The masks of each image are averaged over 4 x 4 pixels of the network's input, taken as logits (share - 1/2), and go the
way of a prediction: post-processing, RLE, COCO AP. No model with masks at stride 4 should be expected to score more.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.data.augment.transforms import EvalTransformConfig
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.data.readers.coco import read_coco
from vision_stack.data.readers.layout import find_splits
from vision_stack.metrics.coco import CocoEvaluator
from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import encode_instances
from vision_stack.structures import Target

STRIDE, SIZE_DIVISOR = 4, 32
CERTAIN = 30.0  # a class logit whose softmax is 1


def main() -> None:
    """Print the score and the settings that it belongs to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a data set in one of the layouts that data=coco reads")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--images", type=int, help="only the first so many that have objects")
    parser.add_argument("--short-edge", type=int, default=800)
    parser.add_argument("--long-edge", type=int, default=1333)
    options = parser.parse_args()

    paths = getattr(find_splits(options.root, required=(options.split,)), options.split)
    split = read_coco(paths.annotation_file, paths.image_dir)
    records = [record for record in split.records if record.annotations][: options.images]
    split = dataclasses.replace(split, records=records)
    transform = EvalTransformConfig(short_edge=options.short_edge, long_edge=options.long_edge)
    dataset = SegmentationDataset(split.records, transform)
    evaluator = CocoEvaluator(split.ground_truth(), split.categories)
    for index in range(len(dataset)):
        batch = collate([dataset[index]], size_divisor=SIZE_DIVISOR)
        outputs = ground_truth_outputs(batch.targets[0], len(split.categories))
        (found,) = encode_instances(outputs, batch.infos)
        evaluator.update(batch.infos[0].image_id, found)
    segm = evaluator.compute()["segm"]
    print(f"{len(dataset)} {options.split} images at {options.short_edge} / {options.long_edge} pixels:")
    scores = ", ".join(f"{name} {segm[name]:.3f}" for name in ("AP", "AP50", "AP75"))
    print(f"the ground truth at stride {STRIDE} scores, by its masks: {scores}")


def ground_truth_outputs(target: Target, num_classes: int) -> MaskOutputs:
    """What a head would give that knows the answer: query n has the class and the mask of object n."""
    count = len(target["labels"])
    masks: Tensor = target["masks"].as_subclass(Tensor).float()
    features = F.avg_pool2d(masks, STRIDE, ceil_mode=True) - 0.5
    logits = torch.zeros(1, count, num_classes + 1)
    logits[0, torch.arange(count), target["labels"]] = CERTAIN
    none = torch.empty(0)
    return MaskOutputs(logits, CERTAIN * torch.eye(count)[None], features[None], none, none)


if __name__ == "__main__":
    main()
