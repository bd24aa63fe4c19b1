"""Mask2Former of vision_stack and of transformers side by side: loss, train step, inference, post-processing, memory.

    python benchmarks/mask2former.py                                       # everything
    python benchmarks/mask2former.py --parts criterion --objects 100
    python benchmarks/mask2former.py --parts train inference --backbones swin_tiny --compile
    python benchmarks/mask2former.py --data DIR                 # a COCO folder; default: ../shared/data/coco_mini
    python benchmarks/mask2former.py --allocator default        # glibc as it comes, instead of as train.py sets it

Same weights (transformers' random ones, in the directory that it writes), same inputs, optimizer, threads and
allocator. Ratios are transformers / vision_stack; more than 1 means that vision_stack is faster.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from batches import cycle, first_batches, open_data, peak_of_process
from mask2former_criterion import REQUIRED as OBJECTS
from mask2former_criterion import SIDES, compare_criteria, peak_memory
from mask2former_peers import BACKBONES, Ours, Theirs
from mask2former_postprocess import compare_postprocessing
from timing import alternate, report
from torch import Tensor

from vision_stack.structures import Batch
from vision_stack.training.allocator import keep_freed_memory

TRAIN_SIZE, TRAIN_BATCH, INFERENCE_SIZE = 384, 2, 512
PARTS = ("criterion", "memory", "train", "inference", "postprocess")


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    kept = options.allocator == "tuned" and keep_freed_memory()
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of, options.objects[0])))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, freed memory kept: {kept}")
    if "criterion" in options.parts:
        compare_criteria(options.objects, options.rounds)
    if "memory" in options.parts:
        _compare_memory(options)
    for backbone in options.backbones:
        if "train" in options.parts:
            _compare_training(backbone, options)
        if "inference" in options.parts:
            _compare_inference(backbone, options)
    if "postprocess" in options.parts:
        compare_postprocessing(options.rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--objects", nargs="+", type=int, default=list(OBJECTS), help="an image, for the criterion")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned", help="the same for both sides")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # only one side, in its own process
    return parser.parse_args()


def _compare_memory(options: argparse.Namespace) -> None:
    print("\npeak resident memory of a process that does two steps of the criterion, MiB above that before")
    for count in options.objects:
        for side in SIDES:
            how = ("--threads", options.threads, "--allocator", options.allocator)
            peak, before = peak_of_process(__file__, "--memory-of", side, "--objects", count, *how)
            print(f"  {count:3d} objects an image   {side:28s} {peak - before:7.0f}", flush=True)


def _sides(backbone: str, num_classes: int, compiled: bool) -> dict[str, Ours | Theirs]:
    theirs = Theirs(backbone, num_classes)
    sides = {"vision_stack": Ours(theirs), "transformers": theirs}
    if compiled:
        torch.compiler.reset()  # sizes seen before would make the next ones dynamic, of whichever side is hurt by it
        for side in sides.values():
            side.compile()
    return sides


def _compare_training(backbone: str, options: argparse.Namespace) -> None:
    data = open_data(options.data, TRAIN_SIZE, TRAIN_BATCH)
    batches = first_batches(data, 6)
    sides = _sides(backbone, len(data.categories), options.compile)
    ours = sides["vision_stack"]
    assert isinstance(ours, Ours)

    def pixels(batch: Batch) -> Tensor:
        return ours.model.normalize(batch.images, batch.padding_mask)

    for name, side in sides.items():
        with torch.no_grad():
            losses = ", ".join(f"{side.loss(pixels(batch), batch).item():.3f}" for batch in batches[:3])
        print(f"\n{backbone}, total loss of three batches in eval mode, points drawn at random, {name}: {losses}")
        side.model.train()
    steps = {
        name: cycle(lambda batch, side=side: side.train_step(pixels(batch), batch), batches)  # type: ignore[misc]
        for name, side in sides.items()
    }
    title = f"train step, {backbone}, {TRAIN_SIZE} px x {TRAIN_BATCH}{', compiled' if options.compile else ''}"
    report(title, alternate(steps, options.rounds), "vision_stack", required=1.1)


@torch.inference_mode()
def _compare_inference(backbone: str, options: argparse.Namespace) -> None:
    sides = _sides(backbone, num_classes=80, compiled=options.compile)
    pixels = torch.randn(1, 3, INFERENCE_SIZE, INFERENCE_SIZE, generator=torch.Generator().manual_seed(0))
    found = {name: side.predict(pixels) for name, side in sides.items()}
    exact = Theirs(backbone, num_classes=80)
    exact.model.double()
    expected = exact.predict(pixels.double())
    print(f"\n{backbone}: largest difference from transformers in float64, in units of the spread")
    for name, own in found.items():
        classes, masks = (float((a - b).abs().max() / b.std()) for a, b in zip(own, expected, strict=True))
        print(f"  {name:28s} classes {classes:.1e}, masks {masks:.1e}")
    calls = {name: lambda side=side: side.predict(pixels) for name, side in sides.items()}  # type: ignore[misc]
    title = f"inference, {backbone}, {INFERENCE_SIZE} px{', compiled' if options.compile else ''}"
    report(title, alternate(calls, options.rounds), "vision_stack", required=1.1)


if __name__ == "__main__":
    main()
