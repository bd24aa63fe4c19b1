"""Changes of colour: SSD's distortion, and transforms of torchvision and albumentations by name.

Names come from a fixed list, arguments are plain values: a config can neither import nor run anything else. The
libraries draw from generators of their own, which are seeded from ours and put back.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vision_stack.config import ConfigError, suggest

Change = Callable[[Tensor, int], Tensor]  # uint8 [3, H, W] and a seed -> uint8 [3, H, W]

# fmt: off
TORCHVISION = (
    "ColorJitter", "GaussianBlur", "GaussianNoise", "JPEG", "RandomAdjustSharpness", "RandomAutocontrast",
    "RandomChannelPermutation", "RandomEqualize", "RandomGrayscale", "RandomInvert", "RandomPhotometricDistort",
    "RandomPosterize", "RandomSolarize",
)
ALBUMENTATIONS = (
    "AdvancedBlur", "AutoContrast", "Blur", "CLAHE", "ChannelDropout", "ChannelShuffle", "ColorJitter", "Defocus",
    "Downscale", "Emboss", "Equalize", "FancyPCA", "GaussNoise", "GaussianBlur", "HueSaturationValue", "ISONoise",
    "Illumination", "ImageCompression", "InvertImg", "MedianBlur", "MotionBlur", "MultiplicativeNoise",
    "PlanckianJitter", "Posterize", "RGBShift", "RandomBrightnessContrast", "RandomFog", "RandomGamma", "RandomRain",
    "RandomShadow", "RandomSnow", "RandomSunFlare", "RandomToneCurve", "RingingOvershoot", "SaltAndPepper", "Sharpen",
    "ShotNoise", "Solarize", "Spatter", "ToGray", "ToSepia", "UnsharpMask", "ZoomBlur",
)
# fmt: on
LIBRARY = "albumentations"


def color_jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """SSD's photometric distortion (Liu et al. 2016) of a uint8 image [3, H, W]: each change with probability 1/2.

    Brightness by +-1/8 and hue by +-1/20 of the circle, contrast and saturation by 0.5 to 1.5, contrast first or last.
    The ranges and operations are torchvision's `RandomPhotometricDistort`, without its permutation of channels.
    """
    changes = [
        (F.adjust_brightness, rng.uniform(0.875, 1.125)),
        (F.adjust_contrast, rng.uniform(0.5, 1.5)),
        (F.adjust_saturation, rng.uniform(0.5, 1.5)),
        (F.adjust_hue, rng.uniform(-0.05, 0.05)),
    ]
    chosen = rng.random(4) < 0.5
    contrast_last = rng.random() < 0.5
    for i in (0, 2, 3, 1) if contrast_last else (0, 1, 2, 3):
        if chosen[i]:
            change, amount = changes[i]
            image = change(image, amount)
    return image


def apply_changes(image: Tensor, entries: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Tensor:
    """Each entry of `photometric` with its probability, in order; uint8 [3, H, W]."""
    for entry in entries:
        seed = int(rng.integers(2**32))  # drawn in any case, so that one entry's luck does not shift the next one's
        if rng.random() < entry.get("probability", 1.0):
            image = find_change(entry)(image, seed)
    return image


def check_changes(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for an entry with an unknown name, or arguments that its transform refuses."""
    probe = torch.arange(3 * 64 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(3, 64, 64)
    for i, entry in enumerate(entries):
        probability = entry.get("probability", 1.0)
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise ConfigError(f"photometric[{i}].probability: {probability!r} is not a number from 0 to 1")
        try:
            changed = find_change(entry)(probe, 0)
        except ConfigError as error:
            raise ConfigError(f"photometric[{i}].{error}") from None
        except Exception as error:  # whatever the library makes of foreign arguments
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ConfigError(f"photometric[{i}]: {entry['name']} refuses its arguments: {reason}") from None
        if changed.shape != probe.shape or changed.dtype != torch.uint8:
            kind = f"{list(changed.shape)} {changed.dtype}"
            raise ConfigError(f"photometric[{i}]: {entry['name']} must give an image like its input, gave {kind}")


def find_change(entry: Mapping[str, Any]) -> Change:
    """The transform that an entry names, `{name: GaussianBlur, kernel_size: 5}`, with its other values as arguments.

    Raises:
        ConfigError: there is no such name, or its library is not installed.
    """
    name = entry.get("name")
    arguments = {key: value for key, value in entry.items() if key not in ("name", "probability")}
    if not isinstance(name, str):
        raise ConfigError(f"name: missing; give one of torchvision's, as in {{name: {TORCHVISION[1]}, kernel_size: 5}}")
    if name in TORCHVISION:
        return _of_torchvision(getattr(v2, name), arguments)
    library, _, short = name.rpartition(".")
    if library == LIBRARY and short in ALBUMENTATIONS:
        if importlib.util.find_spec(LIBRARY) is None:
            raise ConfigError(f"name: {name} needs {LIBRARY}, which is not installed; pip install {LIBRARY}")
        return _of_albumentations(short, arguments)
    known = [f"{LIBRARY}.{each}" for each in ALBUMENTATIONS] if library == LIBRARY else TORCHVISION
    raise ConfigError(f"name: {name[:60]!r} is not a change of colour that is known; {suggest(name, known)}")


def _of_torchvision(cls: type[v2.Transform], arguments: Mapping[str, Any]) -> Change:
    def change(image: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed: Tensor = cls(**arguments)(image)
        return changed

    return change


def _of_albumentations(name: str, arguments: Mapping[str, Any]) -> Change:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its latest version
    try:
        library: Any = importlib.import_module(LIBRARY)
    except Exception as error:  # its parts do not fit each other, or NumPy
        raise ConfigError(f"name: {LIBRARY} cannot be imported ({error!r:.100}); install it again") from None
    if not hasattr(library, name):
        raise ConfigError(f"name: albumentations {library.__version__} has no {name}; leave it out, or install another")

    def change(image: Tensor, seed: int) -> Tensor:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        changed = library.Compose([getattr(library, name)(**arguments)], seed=seed)(image=pixels)["image"]
        return torch.from_numpy(np.ascontiguousarray(changed)).permute(2, 0, 1)

    return change
