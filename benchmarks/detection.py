"""Mask R-CNN of vision_stack and of torchvision side by side: train step, inference, mask pasting, memory.

    python benchmarks/detection.py                          # all parts, both backbones
    python benchmarks/detection.py --parts inference --backbones resnet50 --rounds 3

Same weights, same inputs, one process, the sides take turns. A train step is forward, losses, backward and AdamW, with
frozen batch norms as in torchvision's fine-tuning; inference includes the masks in the image's own pixels, which
torchvision gives as probabilities and ours as bool. Both sides read batches that are resized and padded already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from batches import cycle, first_batches, max_rss, open_data, peak_of_process
from detection_peers import BACKBONES, Ours, Theirs
from timing import alternate, report
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vision_stack.postprocess.paste import paste_masks
from vision_stack.training.allocator import keep_freed_memory

PARTS = ("train", "inference", "paste", "memory")
SIDES = {"vision_stack": Ours, "torchvision": Theirs}
NUM_CLASSES, TRAIN_SIZE, TRAIN_BATCH, INFERENCE_SIZE = 80, 384, 2, 512


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory() if options.allocator == "tuned" else False
    if options.memory_of:
        _print_memory(options)
        return
    print(f"torch {torch.__version__}, {options.threads} threads, freed memory kept: {kept}")
    for backbone in options.backbones:
        if "train" in options.parts:
            _compare_training(backbone, options)
        if "inference" in options.parts:
            _compare_inference(backbone, options)
    if "paste" in options.parts:
        _compare_pasting(options)
    if "memory" in options.parts:
        _compare_memory(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned", help="the same for both sides")
    parser.add_argument("--memory-of", choices=list(SIDES), help=argparse.SUPPRESS)  # only one side, in its own process
    return parser.parse_args()


def _sides(backbone: str) -> dict[str, Ours | Theirs]:
    theirs = Theirs(backbone, NUM_CLASSES)
    return {"vision_stack": Ours(theirs), "torchvision": theirs}


def _compare_training(backbone: str, options: argparse.Namespace) -> None:
    batches = first_batches(open_data(options.data, TRAIN_SIZE, TRAIN_BATCH), 4)
    sides = _sides(backbone)
    for side in sides.values():
        side.model.train()
        torch.manual_seed(0)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in sorted(side.losses(batches[0]).items()))
        print(f"  {type(side).__name__}: {losses}")
    turns = {name: cycle(side.train_step, batches) for name, side in sides.items()}
    title = f"train step, {backbone}, {TRAIN_SIZE} px x {TRAIN_BATCH}"
    report(title, alternate(turns, options.rounds), "vision_stack", required=1.05)


def _compare_inference(backbone: str, options: argparse.Namespace) -> None:
    batches = first_batches(open_data(options.data, INFERENCE_SIZE, 1), 4)
    sides = _sides(backbone)
    for name, side in sides.items():
        side.model.eval()
        found = [side.predict(batch) for batch in batches]
        print(
            f"  {name}: {[count for count, _ in found]} detections, {sum(pixels for _, pixels in found):,} mask pixels"
        )
    turns = {name: cycle(side.predict, batches) for name, side in sides.items()}
    title = f"inference, {backbone}, {INFERENCE_SIZE} px, masks in {Ours.OUTPUT[0]} x {Ours.OUTPUT[1]}"
    report(title, alternate(turns, options.rounds), "vision_stack", required=1.2)


def _compare_pasting(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    corners = torch.rand(100, 2) * torch.tensor([400.0, 300.0])
    boxes = torch.cat([corners, corners + 20 + torch.rand(100, 2) * 200], 1).clamp(max=480)
    masks = torch.rand(100, 28, 28)
    with torch.no_grad():
        ours = paste_masks(masks, boxes, (480, 640), "bool")
        theirs = paste_masks_in_image(masks[:, None], boxes, (480, 640))[:, 0] > 0.5
        print(f"  {(ours != theirs).sum()} of {theirs.sum():,} pixels differ")
        turns = {
            "vision_stack": lambda: paste_masks(masks, boxes, (480, 640), "bool"),
            "vision_stack, as RLE": lambda: paste_masks(masks, boxes, (480, 640), "rle"),
            "torchvision": lambda: paste_masks_in_image(masks[:, None], boxes, (480, 640)) > 0.5,
        }
        title = "pasting 100 masks into 480 x 640"
        report(title, alternate(turns, 3 * options.rounds), "vision_stack", required=3.0)


def _compare_memory(options: argparse.Namespace) -> None:
    print("\npeak resident memory of a process that takes two train steps, MiB above that before")
    for backbone in options.backbones:
        for side in SIDES:
            how = ("--data", options.data, "--threads", options.threads, "--allocator", options.allocator)
            peak, before = peak_of_process(__file__, "--memory-of", side, "--backbones", backbone, *how)
            print(f"  {backbone:20s} {side:20s} {peak - before:7.0f}", flush=True)


def _print_memory(options: argparse.Namespace) -> None:
    side = _sides(options.backbones[0])[options.memory_of]
    batches = first_batches(open_data(options.data, TRAIN_SIZE, TRAIN_BATCH), 2)
    before = max_rss()
    side.model.train()
    for batch in batches:
        side.train_step(batch)
    print(json.dumps([max_rss(), before]))


if __name__ == "__main__":
    main()
