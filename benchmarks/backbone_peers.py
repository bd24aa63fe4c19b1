"""ResNet-50 and Swin-T feature extraction, ours and transformers', with the same weights and the same image.

Each side as it comes (NCHW, fp32), then ours in channels_last, which `VisionModel` uses, and with bf16 autocast on top;
transformers' in channels_last as well, so that the memory format is not taken for the merit of either side.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence

import torch
from timing import Times, alternate, report
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig, SwinBackbone, SwinConfig
from transformers.utils import logging

from vision_stack.backbones.auto import AutoBackbone

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TOLERANCE = 1e-3  # of a map's spread: dozens of fp32 layers, in another order of summation
PEERS = {
    "ResNet-50": lambda: ResNetBackbone(ResNetConfig(out_features=STAGES)),
    "Swin-T": lambda: SwinBackbone(SwinConfig(out_features=STAGES)),
}
Extract = Callable[[nn.Module, Tensor], Sequence[Tensor]]


def compare(rounds: int, size: int) -> None:
    """Print medians and ratios of inference and of forward with backward, one image of `size` x `size` pixels."""
    logging.set_verbosity_error()
    for name, make in PEERS.items():
        torch.manual_seed(0)
        theirs = make().eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = AutoBackbone.from_pretrained(folder, out_features=STAGES).eval()
        x = torch.randn(1, 3, size, size)
        print(f"\n{name}, 1 x 3 x {size} x {size}: maps differ by {_difference(theirs, ours, x):.1e} of their spread")
        _report(f"{name}, inference", alternate(_contenders(theirs, ours, x, backward=False), rounds))
        for model in (theirs, ours):
            model.train()
        _report(f"{name}, forward and backward", alternate(_contenders(theirs, ours, x, backward=True), rounds))


@torch.inference_mode()
def _difference(theirs: nn.Module, ours: nn.Module, x: Tensor) -> float:
    pairs = zip(theirs(x).feature_maps, ours(x).feature_maps, strict=True)
    worst = max(float((a - b).abs().max() / a.std()) for a, b in pairs)
    if worst > TOLERANCE:
        raise SystemExit(f"the two sides compute different maps ({worst:.1e} of their spread); nothing is compared")
    return worst


def _contenders(theirs: nn.Module, ours: nn.Module, x: Tensor, *, backward: bool) -> dict[str, Callable[[], None]]:
    """What takes turns. A change of memory format is made once, before the clock runs, on a copy of the model."""
    models = {"vision_stack": ours, "transformers": theirs}
    models |= {f"{name} channels_last": _channels_last(model) for name, model in models.items()}
    inputs = {True: x.contiguous(memory_format=torch.channels_last), False: x}
    turns = {
        name: _turn(model, inputs["channels_last" in name], backward=backward, bf16=False)
        for name, model in models.items()
    }
    name = "vision_stack channels_last"
    turns[f"{name} bf16"] = _turn(models[name], inputs[True], backward=backward, bf16=True)
    return turns


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _turn(model: nn.Module, x: Tensor, *, backward: bool, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if not backward:
                with torch.inference_mode():
                    model(x)
                return
            maps = model(x).feature_maps
        sum(y.float().square().mean() for y in maps).backward()
        model.zero_grad(set_to_none=True)

    return run


def _report(title: str, times: dict[str, Times]) -> None:
    report(title, times, "vision_stack", required=1.0)
    best = times["vision_stack"].median
    for name in ("vision_stack channels_last", "vision_stack channels_last bf16"):
        print(f"  {name}: {best / times[name].median:.2f} times as fast as vision_stack as it comes")
    ratio = times["transformers channels_last"].median / times["vision_stack channels_last"].median
    print(f"  both in channels_last: ratio {ratio:.2f} (required: 1.0)")
