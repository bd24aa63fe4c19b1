"""RF-DETR-Seg, D-FINE and EoMT of vision_stack and of transformers side by side: loss, training, inference, decoding.

    python benchmarks/detr.py --parts train --models d_fine --sizes 640      # a part of a model at a size
    python benchmarks/detr.py --parts criterion --objects 100
    python benchmarks/detr.py --parts train inference --compile
    python benchmarks/detr.py --data DIR                 # a COCO folder; default: ../shared/data/coco_mini

The published small architectures with transformers' random weights, loaded by vision_stack from the directory that
transformers writes; same inputs, optimizer, threads and allocator. Ratios are transformers / vision_stack; more than 1
means that vision_stack is faster. "limit" is the time that the products of matrices in vision_stack's step, those of
convolutions included, would take at the speed of a large one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from attention_flops import ATTENTION
from batches import cycle, first_batches, open_data, peak_of_process
from detr_criterion import OBJECTS, SIDES, compare_criteria, peak_memory
from detr_peers import FAMILIES, Family, Ours, new_sides
from detr_postprocess import compare_postprocessing
from timing import Times, alternate, report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vision_stack.structures import Batch
from vision_stack.training.allocator import keep_freed_memory

PARTS = ("criterion", "memory", "train", "inference", "postprocess")
TRAIN_BATCH, REQUIRED = 2, 1.2


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    kept = options.allocator == "tuned" and keep_freed_memory()
    if options.memory_of:
        print(json.dumps(peak_memory(options.models[0], options.memory_of, options.sizes[0], options.objects[0])))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, freed memory kept: {kept}", flush=True)
    for name in options.models:
        family = FAMILIES[name]
        for size in dict.fromkeys(size - size % family.multiple for size in options.sizes):
            if "criterion" in options.parts:
                compare_criteria(name, family.title, size, options.objects, options.rounds)
            if "memory" in options.parts:
                _compare_memory(name, size, options)
            if "train" in options.parts:
                _compare_training(family, size, options)
            if "inference" in options.parts:
                _compare_inference(family, size, options)
        if "postprocess" in options.parts:
            compare_postprocessing(name, family.title, 3 * options.rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    sizes = "of images, rounded down to what the model's patches and windows divide"
    parser.add_argument("--sizes", nargs="+", type=int, default=[384], metavar="PIXELS", help=sizes)
    parser.add_argument("--objects", nargs="+", type=int, default=list(OBJECTS), help="an image, for the criterion")
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned", help="the same for both sides")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # only one side, in its own process
    return parser.parse_args()


def _compare_memory(name: str, size: int, options: argparse.Namespace) -> None:
    title = f"criterion, {FAMILIES[name].title}, {size} px"
    print(f"\n{title}: peak resident memory of a process that does two steps, MiB above that before")
    sides = SIDES[:2] if name == "d_fine" else (SIDES[0], SIDES[2])  # each makes the masks that it needs
    for count in options.objects:
        for side in sides:
            how = ("--threads", options.threads, "--allocator", options.allocator, "--models", name, "--sizes", size)
            peak, before = peak_of_process(__file__, "--memory-of", side, "--objects", count, *how)
            print(f"  {count:3d} objects an image   {side:28s} {peak - before:7.0f}", flush=True)


def _compare_training(family: Family, size: int, options: argparse.Namespace) -> None:
    batches = first_batches(open_data(options.data, size, TRAIN_BATCH), 4)
    sides = new_sides(family, size, compiled=options.compile, annealed=False)
    ours = sides["vision_stack"]
    assert isinstance(ours, Ours)

    def pixels(batch: Batch) -> Tensor:
        return ours.model.normalize(batch.images, batch.padding_mask)

    for name, side in sides.items():
        side.model.train()
        torch.manual_seed(0)
        print(f"\n{family.title}, total loss of a batch, {name}: {side.train_step(pixels(batches[0]), batches[0]):.3f}")
    steps = {
        name: cycle(lambda batch, side=side: side.train_step(pixels(batch), batch), batches)  # type: ignore[misc]
        for name, side in sides.items()
    }
    title = f"train step, {family.title}, {size} px x {TRAIN_BATCH}{', compiled' if options.compile else ''}"
    times = alternate(steps, options.rounds)
    report(title, times, "vision_stack", REQUIRED)
    if not options.compile:
        _print_limit(lambda: ours.train_step(pixels(batches[0]), batches[0]), times["vision_stack"])


def _compare_inference(family: Family, size: int, options: argparse.Namespace) -> None:
    sides = new_sides(family, size, compiled=options.compile, annealed=True)
    for side in sides.values():
        side.model.requires_grad_(False)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = (side.predict(pixels) for side in sides.values())
    differences = [f"{float((a - b).abs().max() / b.std()):.1e}" for a, b in zip(found, expected, strict=True)]
    print(f"\n{family.title}: largest differences in units of the spread: {', '.join(differences)}")

    @torch.inference_mode()
    def run(side: str) -> None:
        sides[side].outputs(pixels)

    title = f"inference, {family.title}, {size} px{', compiled' if options.compile else ''}"
    times = alternate({name: lambda name=name: run(name) for name in sides}, 2 * options.rounds)  # type: ignore[misc]
    report(title, times, "vision_stack", REQUIRED)
    if not options.compile:
        _print_limit(lambda: run("vision_stack"), times["vision_stack"])


def _print_limit(step: Callable[[], object], times: Times) -> None:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    a, b = torch.randn(2, 1024, 1024)
    product = min(alternate({"product": lambda: a @ b}, rounds=10)["product"].wall)
    limit = counter.get_total_flops() / (2 * 1024**3 / product)
    gflop = counter.get_total_flops() / 1e9
    print(f"  {gflop:.1f} GFLOP; limit {1e3 * limit:.1f} ms, {limit / times.median:.0%} of vision_stack's time")


if __name__ == "__main__":
    main()
