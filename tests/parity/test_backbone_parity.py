"""timm's and torchvision's maps against transformers' backbones, with the same, perturbed weights."""

import pytest
import torch
import transformers
from family_parity import perturb

from vision_stack.backbones import TimmBackboneConfig, TorchvisionBackboneConfig
from vision_stack.weights.resnet import convert_resnet
from vision_stack.weights.swin import convert_swin

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TOLERANCE = 1e-4  # of a map's standard deviation: fp32, other kernels, tens of layers
SIZES = {"resnet": (65, 98), "swin": (259, 318)}  # odd, and for Swin maps that are larger than a window in each stage


def load(backbone, state, norms=()):
    """timm's state into `backbone`, strictly but for batch counters; `norms`: the oracle's norms of its outputs."""
    converted, not_built = backbone.convert_weights(state)
    assert not not_built
    for i, norm in enumerate(norms):
        converted |= {f"norms.{i}.{name}": value for name, value in norm.state_dict().items()}
    report = backbone.load_state_dict(converted, strict=False)
    assert not report.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in report.missing_keys)
    return backbone.eval()


def pair(family):
    """transformers' backbone, ours with its weights."""
    if family == "resnet":
        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        theirs = perturb(transformers.ResNetBackbone(transformers.ResNetConfig(out_features=STAGES, **sizes)))
        ours = TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]).build()
        return theirs, load(ours, convert_resnet(theirs.state_dict()))
    theirs = perturb(transformers.MaskFormerSwinBackbone(transformers.MaskFormerSwinConfig(out_features=STAGES)))
    config = TimmBackboneConfig("swin_tiny_patch4_window7_224", out_strides=[4, 8, 16, 32], out_norms=True)
    state = {k: v for k, v in theirs.model.state_dict().items() if not k.startswith("layernorm.")}  # of the classifier
    return theirs, load(config.build(), convert_swin(state), theirs.hidden_states_norms)


@torch.no_grad()
def differences(theirs, ours, size):
    """Largest difference of each map, in standard deviations of that map."""
    pixel_values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    maps = ours(pixel_values).feature_maps
    expected = [x[..., : y.shape[-2], : y.shape[-1]] for x, y in zip(theirs(pixel_values), maps, strict=True)]
    assert all(x.shape == y.shape for x, y in zip(expected, maps, strict=True))
    return [float((x - y).abs().max() / x.std()) for x, y in zip(expected, maps, strict=True)]


def drop_last_shift(ours):
    ours.net.layers_3.blocks[1].shift_size = (0, 0)


def swap_norms(ours):
    ours.norms[2].weight.data = ours.norms[2].weight.data.flip(0)


def lose_a_bias(ours):
    ours.net.layer3[1].bn2.bias.data.zero_()


@pytest.mark.parametrize(
    ("family", "faults"), [("resnet", [(lose_a_bias, 2)]), ("swin", [(swap_norms, 2), (drop_last_shift, 3)])]
)
def test_timm_maps_equal_those_of_transformers_and_a_planted_fault_shows(family, faults):
    theirs, ours = pair(family)
    assert max(differences(lambda x: theirs(x).feature_maps, ours, SIZES[family])) < TOLERANCE
    for plant, level in faults:
        plant(ours)
        assert differences(lambda x: theirs(x).feature_maps, ours, SIZES[family])[level] > 100 * TOLERANCE


def test_torchvision_maps_equal_those_of_timm_with_the_same_file():
    theirs = perturb(TorchvisionBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]).build())
    ours = TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]).build()
    load(ours, {name.removeprefix("net."): value for name, value in theirs.state_dict().items()})
    assert max(differences(lambda x: theirs(x).feature_maps, ours, (65, 98))) < TOLERANCE
