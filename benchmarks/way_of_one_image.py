"""Files and functions of vision_stack that one image crosses, from disk to loss.

    python benchmarks/way_of_one_image.py [--head mask_rcnn --task detection] [--list]

Trains on generated scenes, which are written before the counting: what is counted is a batch read by the data
set, collated, and taken through one training step of the model (forward, losses), each function once. Comprehensions
and lambdas belong to the function that they are in; what torch, timm, torchvision and Lightning do is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import vision_stack
from vision_stack.backbones import TimmBackboneConfig
from vision_stack.config import from_dict
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.model import VisionModel, VisionModelConfig

PACKAGE = Path(vision_stack.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neck", default="ms_deform")
    parser.add_argument("--head", default="mask2former")
    parser.add_argument("--task", default="instance")
    parser.add_argument("--list", action="store_true", help="print the functions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    neck = "fpn" if options.head in ("faster_rcnn", "mask_rcnn", "retinanet", "fcos") else options.neck
    with tempfile.TemporaryDirectory() as folder:
        config = ShapesDataConfig(root=folder, image_size=64, num_train=4, num_val=1, batch_size=2, cache="none")
        data = build_datamodule(config, task=options.task)
        data.prepare_data()
        model = VisionModel(
            VisionModelConfig(
                backbone=TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]),
                neck=from_dict({"type": neck}, "neck"),
                head=from_dict({"type": options.head}, "head"),
                categories=tuple(data.categories),
                task=options.task,
            )
        ).train()
        batches = iter(data.train_dataloader())
        next(batches)  # what is done once is done
        crossed: dict[str, set[str]] = defaultdict(set)

        def note(frame: FrameType, event: str, argument: Any) -> None:
            path = Path(frame.f_code.co_filename)
            if event == "call" and path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
                crossed[str(path.relative_to(PACKAGE))].add(frame.f_code.co_qualname)

        sys.setprofile(note)
        batch = next(batches)
        images = model.normalize(batch.images, batch.padding_mask)
        outputs = model(images, image_sizes=batch.image_sizes, targets=batch.targets)
        sum(model.head.compute_loss(outputs, batch.targets).values())
        sys.setprofile(None)
    for file, functions in sorted(crossed.items()):
        print(f"  {file:40s} {len(functions):3d}  {', '.join(sorted(functions)) if options.list else ''}")
    print(f"{options.head}: {len(crossed)} files, {sum(map(len, crossed.values()))} functions")


if __name__ == "__main__":
    main()
