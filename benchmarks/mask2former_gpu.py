"""Mask2Former of vision_stack and of transformers side by side on a GPU: time, memory, synchronisations, use of it.

    python benchmarks/mask2former_gpu.py                                   # 1024 px, bf16, training in batches of 8
    python benchmarks/mask2former_gpu.py --compile                         # eager, then compiled
    python benchmarks/mask2former_gpu.py --backbones swin_tiny --parts inference
    python benchmarks/mask2former_gpu.py --device cpu --size 64 --batch 1 --rounds 1 --steps 1   # does it run at all?

Same weights (transformers' random ones, in the directory that it writes), same inputs, already on the device, same
optimizer. Weights are float32, the arithmetic is autocast's. A round is `--steps` steps one after the other and a wait
for the device; sides alternate. Of what the columns say:

    ms       median of a step (training: loss, backward, optimizer; inference: class and mask logits of the last layer)
    ratio    transformers / vision_stack; more than 1 means that vision_stack is faster
    MiB      most that was allocated in a step, with weights, gradients and optimizer state of only this side
    syncs    times that the host waited for the device within a step, as `torch.cuda.set_sync_debug_mode` sees them
    TFLOP    of a step, as `FlopCounterMode` counts them: matrix products, convolutions and attention, eager
    share    TFLOP/s in parts of what one large matrix product reaches in the same process
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from batches import cycle, first_batches, open_data
from mask2former_peers import BACKBONES, Ours, Theirs
from synchronisations import synchronisations
from timing import alternate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vision_stack.structures import Batch

PARTS = ("inference", "train")
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCHES = 4  # different ones, at most, that the training steps go through
HEADER = f"{'':28} {'side':12} {'ms':>8} {'ratio':>6} {'MiB':>8} {'syncs':>5} {'TFLOP':>8} {'TFLOP/s':>8} {'share':>6}"

Step = Callable[[], object]
Sides = dict[str, Ours | Theirs]


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    limit = _limit(options)
    name = torch.cuda.get_device_name(options.device) if _on_gpu(options) else "CPU"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, transformers {transformers.__version__}")
    print(f"limit: a matrix product in {options.precision} reaches {limit:.3g} TFLOP/s here")
    print(f"{options.size} px; training: batches of {options.batch}; inference: of {options.inference_batch}; "
          f"medians of {options.rounds} rounds of {options.steps} steps")  # fmt: skip
    if not _on_gpu(options):
        print("MiB and syncs are the CUDA allocator's and CUDA's; on a CPU there are none")
    print(f"\n{HEADER}")
    notes: list[str] = []
    try:
        for backbone in options.backbones:
            for part in options.parts:
                notes += _compare(part, backbone, options, limit)
    finally:
        print("", *notes, sep="\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16", help="autocast's, for both sides")
    parser.add_argument("--size", type=int, default=1024, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--inference-batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="of a round, before the host waits for the device")
    parser.add_argument(
        "--compile", nargs="?", const="inductor", metavar="BACKEND", help="also with torch.compile of both networks"
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.device != "cpu" and not (options.device.startswith("cuda") and torch.cuda.is_available()):
        parser.error(f"--device {options.device}: no such GPU here; --device cpu --size 64 --batch 1 tries the script")
    return options


def _compare(part: str, backbone: str, options: argparse.Namespace, limit: float) -> list[str]:
    """Print a line of the table for each side; returns what is to be said below it."""
    torch.compiler.reset()  # what was compiled before would keep its model in memory
    prepare = _training if part == "train" else _inference
    sides, steps, agreement = prepare(backbone, options)
    notes = [f"{part} {backbone}: {agreement}"]
    flops = {name: _flops(step) for name, step in steps.items()}
    for compiled in (False, True) if options.compile else (False,):
        title = f"{part} {backbone}{' compiled' if compiled else ''}"
        for side in sides.values() if compiled else ():
            side.compile(options.compile)
        results = _measure(sides, steps, options)
        base = results["vision_stack"].seconds
        for name, result in results.items():
            print(_line(title, name, result, base, flops[name] / 1e12, limit), flush=True)
            notes += [f"{title}: {name} waits at {place}" for place in _named(result.syncs)]
    return notes


class Result(NamedTuple):
    seconds: float
    peak: float | None = None  # MiB
    syncs: list[str] | None = None  # file and line of each


def _measure(sides: Sides, steps: Mapping[str, Step], options: argparse.Namespace) -> dict[str, Result]:
    rounds = {name: _repeated(step, options) for name, step in steps.items()}
    times = {name: each.median / options.steps for name, each in alternate(rounds, options.rounds).items()}
    if not _on_gpu(options):
        return {name: Result(seconds) for name, seconds in times.items()}
    results = {}
    for name, step in steps.items():
        others = sum(_held(side) for other, side in sides.items() if other != name)
        torch.cuda.reset_peak_memory_stats(options.device)
        step()
        peak = (torch.cuda.max_memory_allocated(options.device) - others) / 2**20
        with synchronisations() as places:
            step()
        results[name] = Result(times[name], peak, places)
    return results


def _line(title: str, side: str, result: Result, base: float, tflop: float, limit: float) -> str:
    peak = "-" if result.peak is None else f"{result.peak:.0f}"
    syncs = "-" if result.syncs is None else f"{len(result.syncs)}"
    rate = tflop / result.seconds
    return (
        f"{title:28} {side:12} {1e3 * result.seconds:8.1f} {result.seconds / base:6.2f} {peak:>8} {syncs:>5} "
        f"{tflop:8.3f} {rate:8.3g} {rate / limit:6.1%}"
    )


def _training(backbone: str, options: argparse.Namespace) -> tuple[Sides, dict[str, Step], str]:
    data = open_data(options.data, options.size, options.batch)
    batches = first_batches(data, BATCHES, options.device)
    sides, ours = _sides(backbone, len(data.categories), options)

    def loss(side: Ours | Theirs, batch: Batch) -> Tensor:
        return side.loss(ours.model.normalize(batch.images, batch.padding_mask), batch)

    def step(side: Ours | Theirs, batch: Batch) -> None:
        with _autocast(options):
            total = loss(side, batch)
        side.optimizer.zero_grad()
        total.backward()
        side.optimizer.step()

    with torch.no_grad(), _exact():
        losses = {name: loss(side, batches[0]).item() for name, side in sides.items()}
    for side in sides.values():
        side.model.train()
    steps = {
        name: cycle(lambda batch, side=side: step(side, batch), batches)  # type: ignore[misc]
        for name, side in sides.items()
    }
    objects = [len(target["labels"]) for batch in batches for target in batch.targets]
    shown = ", ".join(f"{name} {value:.2f}" for name, value in losses.items())
    return sides, steps, f"{sum(objects) / len(objects):.1f} objects an image; fp32 loss at random points: {shown}"


def _inference(backbone: str, options: argparse.Namespace) -> tuple[Sides, dict[str, Step], str]:
    sides, _ = _sides(backbone, 80, options)
    for side in sides.values():
        side.model.requires_grad_(False)  # FlopCounterMode would look for gradients, even in inference mode
    generator = torch.Generator().manual_seed(0)
    shape = (options.inference_batch, 3, options.size, options.size)
    pixels = torch.randn(shape, generator=generator).to(options.device)

    @torch.inference_mode()
    def step(side: Ours | Theirs) -> None:
        with _autocast(options):
            side.predict(pixels)

    with torch.inference_mode(), _exact():
        found, expected = (side.predict(pixels) for side in sides.values())
    classes, masks = (float((a - b).abs().max() / b.std()) for a, b in zip(found, expected, strict=True))
    steps: dict[str, Step] = {name: lambda side=side: step(side) for name, side in sides.items()}  # type: ignore[misc]
    return sides, steps, f"fp32 classes differ by at most {classes:.1e}, masks by {masks:.1e} of their spread"


def _sides(backbone: str, num_classes: int, options: argparse.Namespace) -> tuple[Sides, Ours]:
    theirs = Theirs(backbone, num_classes, options.device)
    ours = Ours(theirs)
    return {"vision_stack": ours, "transformers": theirs}, ours


def _repeated(step: Step, options: argparse.Namespace) -> Step:
    def run() -> None:
        for _ in range(options.steps):
            step()
        if _on_gpu(options):
            torch.cuda.synchronize(options.device)

    return run


def _flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _limit(options: argparse.Namespace) -> float:
    """TFLOP/s of a matrix product that is large for the device."""
    size = 8192 if _on_gpu(options) else 512
    a, b = (torch.randn(size, size, device=options.device, dtype=PRECISIONS[options.precision]) for _ in range(2))
    times = alternate({"product": _repeated(lambda: a @ b, options)}, rounds=10)["product"]
    return 2 * size**3 * options.steps / min(times.wall) / 1e12


def _held(side: Ours | Theirs) -> int:
    """Bytes of weights, gradients, buffers and optimizer state."""
    tensors = [*side.model.parameters(), *side.model.buffers()]
    tensors += [parameter.grad for parameter in side.model.parameters() if parameter.grad is not None]
    tensors += [value for state in side.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in tensors if tensor.is_cuda)


def _named(places: list[str] | None) -> list[str]:
    return [f"{place}, {count} x" for place, count in Counter(places or ()).most_common()]


def _autocast(options: argparse.Namespace) -> torch.autocast:
    dtype = PRECISIONS[options.precision]
    return torch.autocast(torch.device(options.device).type, dtype, enabled=dtype != torch.float32)


def _exact() -> AbstractContextManager[None]:
    """Convolutions without TF32, so that what differs is not the rounding of tensor cores."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _on_gpu(options: argparse.Namespace) -> bool:
    return str(options.device).startswith("cuda")


if __name__ == "__main__":
    main()
