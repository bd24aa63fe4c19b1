"""Attentions and hidden states of the families against transformers' with the same weights, in float64."""

import copy

import pytest
import torch
from family_parity import CASES, pair

from vision_stack.backbones.base import pad_to_multiple

EXACT = 1e-12  # of float64
RESAMPLED = 1e-6  # positions are resampled, rotations computed, in float32 on both sides
ATTENTIVE = [name for name in CASES if "swin" in name or "vit" in name or "dinov2" in name]
WINDOWED = [name for name in CASES if name.startswith(("rf_detr", "lw_detr"))]


@pytest.fixture(autouse=True)
def softmax_in_double(monkeypatch):
    """transformers asks for the softmax of most models in float32, where rounding would decide."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, **_: softmax(x, dim=dim))


def outputs(name, size):
    theirs, ours = (model.double() for model in pair(name))
    theirs.set_attn_implementation("eager")
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    options = {"output_hidden_states": True, "output_attentions": True}
    resampled = {"interpolate_pos_encoding": True} if name == "vit" else {}
    with torch.no_grad():
        found = ours(pixel_values, **options)
        return ours, found, theirs(pad_to_multiple(pixel_values, ours.multiple), **options, **resampled)


@pytest.mark.parametrize("name", ATTENTIVE)
@pytest.mark.parametrize("number", [0, 1], ids=["native", "odd"])
def test_family_attentions_and_hidden_states_are_those_of_transformers(name, number):
    height, width = CASES[name].sizes[number]
    in_double = "swin" in name or (name in ("vit", "dinov2", "dinov2, giant", "dinov2, raw maps") and number == 0)
    tolerance = EXACT if in_double else RESAMPLED
    ours, found, theirs = outputs(name, (height, width))
    assert ours.has_attentions
    assert len(found.attentions) == len(theirs.attentions) > 0
    for x, y in zip(found.attentions, theirs.attentions, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance)
        assert y.max() > 3 * y.mean()  # not equal by being flat
    if name in WINDOWED:  # whose hidden states are those of windows there
        return
    for spec, x, y in zip(ours.config.stages, found.hidden_states, theirs.hidden_states, strict=True):
        if y.ndim == 3:  # tokens [B, N, C]; class and register tokens come first
            size = [-(-n // spec.stride) for n in (height, width)]
            y = y[:, -size[0] * size[1] :].unflatten(1, size).permute(0, 3, 1, 2)
        torch.testing.assert_close(x, y[:, :, : x.shape[2], : x.shape[3]], rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_family_attentions_of_an_earlier_stage_are_of_the_layers_built(name):
    ours, found, _ = outputs(name, CASES[name].sizes[0])
    config = copy.deepcopy(ours.config)
    config.out_indices = [0, 2]
    early = config.build().double().eval()
    early.net.load_state_dict({key: x for key, x in ours.net.state_dict().items() if key in early.net.state_dict()})
    with torch.no_grad():
        pixel_values = torch.randn(2, 3, *CASES[name].sizes[0], generator=torch.Generator().manual_seed(1)).double()
        attentions = early(pixel_values, output_attentions=True).attentions
    assert len(attentions) == 2
    for x, y in zip(attentions, found.attentions, strict=False):
        assert torch.equal(x, y)
