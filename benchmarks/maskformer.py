"""MaskFormer R50 of vision_stack and of transformers side by side: train step, post-processing, memory.

    python benchmarks/maskformer.py                            # everything
    python benchmarks/maskformer.py --parts train --rounds 9
    python benchmarks/maskformer.py --data DIR                 # a COCO folder; default: ../shared/data/coco_mini
    python benchmarks/maskformer.py --allocator default        # glibc as it comes, instead of as train.py sets it

Same weights, same 384 x 384 batches of 2, same optimizer, same threads, same allocator, dropout off on both sides so
that their losses can be compared. transformers supervises only its last decoder layer; for all six, its own loss is
called on every layer's outputs. Ratios are transformers / vision_stack; more than 1 means that vision_stack is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from batches import cycle, first_batches, max_rss, open_data, peak_of_process
from maskformer_peers import Ours, Theirs, new_state
from maskformer_postprocess import compare_postprocessing
from timing import Times, alternate, report

from vision_stack.structures import Batch
from vision_stack.training.allocator import keep_freed_memory

SIZE, BATCH_SIZE = 384, 2
SIDES = ("vision_stack", "transformers", "transformers channels_last")


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    kept = options.allocator == "tuned" and keep_freed_memory()
    if options.memory_of:
        print(json.dumps(_peak_memory(options.memory_of, options)))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, freed memory kept: {kept}, {SIZE} px x {BATCH_SIZE}")
    if "train" in options.parts:
        _compare_training(options)
    if "memory" in options.parts:
        _compare_memory(options)
    if "postprocess" in options.parts:
        compare_postprocessing(options.rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["train", "memory", "postprocess"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned", help="the same for both sides")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # only one side, in its own process
    parser.add_argument("--layers", nargs="+", choices=["all", "last"], default=["all", "last"], help="supervised ones")
    return parser.parse_args()


def _build(side: str, state: dict[str, torch.Tensor], num_classes: int, all_layers: bool) -> Ours | Theirs:
    if side == "vision_stack":
        return Ours(state, num_classes, all_layers)
    return Theirs(state, num_classes, all_layers, channels_last="channels_last" in side)


def _compare_training(options: argparse.Namespace) -> None:
    data = open_data(options.data, SIZE, BATCH_SIZE)
    batches = first_batches(data, 6)
    objects = [len(target["labels"]) for batch in batches for target in batch.targets]
    num_classes = len(data.categories)
    print(f"{len(objects)} images, {sum(objects) / len(objects):.1f} objects each, {num_classes} classes")
    state = new_state(num_classes)
    for layers in options.layers:
        all_layers, required = (True, 1.1) if layers == "all" else (False, 1.0)
        sides = {name: _build(name, state, num_classes, all_layers) for name in SIDES}
        what = "all six decoder layers supervised" if all_layers else "last decoder layer supervised"
        for name, side in sides.items():
            print(f"loss of three batches in eval mode, {what}, {name}: {_losses(side, batches[:3])}", flush=True)
        steps = {name: cycle(side.train_step, batches) for name, side in sides.items()}
        times = alternate(steps, options.rounds)
        report(f"train step, {what}", times, "vision_stack", required)
        if all_layers:
            _print_shares(sides, batches, times)


@torch.no_grad()
def _losses(side: Ours | Theirs, batches: list[Batch]) -> str:
    """In eval mode, since with batch statistics a random network turns rounding errors into visible differences."""
    side.model.eval()
    losses = [side.loss(batch).item() for batch in batches]
    side.model.train()
    return ", ".join(f"{loss:.5f}" for loss in losses)


def _print_shares(sides: dict[str, Ours | Theirs], batches: list[Batch], times: dict[str, Times]) -> None:
    """Where the time goes: convolutions by the profiler, loss and matcher (both ways) by running them separately."""
    loss = alternate({name: cycle(side.loss_step(batches), batches) for name, side in sides.items()}, rounds=5)
    print("  shares of the step (loss: with the matcher, forward and backward):")
    for name, side in sides.items():
        step = times[name].median
        convolutions = _convolution_share(lambda side=side: [side.train_step(batch) for batch in batches[:3]])  # type: ignore[misc]
        alone = loss[name].median
        print(f"  {name:28s} convolutions {convolutions:4.0%}   loss {alone / step:4.0%} ({1e3 * alone:.0f} ms)")


def _convolution_share(steps: Callable[[], object]) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        steps()
    events = profile.key_averages()
    convolutions = sum(e.self_cpu_time_total for e in events if "conv" in e.key.lower())
    return float(convolutions / sum(e.self_cpu_time_total for e in events))


def _compare_memory(options: argparse.Namespace) -> None:
    print("\npeak resident memory of a process that builds the model and takes six steps, MiB (above that before)")
    for layers, side in itertools.product(options.layers, SIDES):
        how = ("--data", options.data, "--threads", options.threads, "--allocator", options.allocator)
        peak, before = peak_of_process(__file__, "--memory-of", side, "--layers", layers, *how)
        print(f"  {layers:4s} layers   {side:28s} {peak:7.0f}   ({peak - before:.0f})", flush=True)


def _peak_memory(side: str, options: argparse.Namespace) -> tuple[float, float]:
    """MiB at the peak and before the model was built."""
    data = open_data(options.data, SIZE, BATCH_SIZE)
    batches = first_batches(data, 6)
    before = max_rss()
    trained = _build(side, {}, len(data.categories), options.layers == ["all"])
    for batch in batches:
        trained.train_step(batch)
    return max_rss(), before


if __name__ == "__main__":
    main()
