"""Mask2Former's ten predictions against transformers', ResNet and Swin, with the same perturbed weights, which are
read from a directory that transformers wrote."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
from mask2former_oracle import build_oracle, predictions, save

import vision_stack.necks.ms_deform
from vision_stack.model import VisionModel

TOLERANCE = 1e-4  # of the logits' spread: float32 rounding through some fifty layers; no attention mask flips here
TOLERANCE_FLOAT64 = 1e-11  # what is left of the rounding: the same arithmetic, in another order
FAULT = 100 * TOLERANCE  # a mistake in the architecture is at least this large
NUM_CLASSES = 6
BACKBONES = ("resnet", "swin")


@functools.cache
def oracle(backbone):
    return build_oracle(backbone, num_classes=NUM_CLASSES)


@functools.cache
def their_predictions(backbone, size):
    return predictions(oracle(backbone), image_batch(*size))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return {name: VisionModel.from_pretrained(save(oracle(name), tmp_path_factory.mktemp(name))) for name in BACKBONES}


def image_batch(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def differences(model, theirs, images, padding_mask=None):
    """max|ours - theirs| / std of class and mask logits of each prediction, after checking their spread."""
    outputs = model(images, padding_mask)
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs.all_mask_embed, outputs.mask_features)
    worst = []
    for (their_logits, their_masks), our_logits, our_masks in zip(theirs, outputs.all_logits, masks, strict=True):
        for want, got in ((their_logits, our_logits), (their_masks, our_masks)):
            assert want.shape == got.shape
            assert want.std(dim=1).mean() >= 1, "queries too much alike to tell a difference"
            worst.append(float((got - want).abs().max() / want.std()))
    assert len(worst) == 20
    return worst


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (40, 33)], ids=["multiple of 32", "odd", "tiny"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_mask2former_ten_predictions_equal_transformers(ours, backbone, size):
    assert max(differences(ours[backbone], their_predictions(backbone, size), image_batch(*size))) < TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mask2former_padded_batch_equals_transformers(ours, backbone):
    images, padding_mask = image_batch(96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    padding_mask[1, 61:], padding_mask[1, :, 90:] = True, True
    theirs = predictions(oracle(backbone), images.masked_fill(padding_mask[:, None], 0.0), (~padding_mask).long())
    assert max(differences(ours[backbone], theirs, images, padding_mask)) < TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mask2former_in_float64_equals_transformers_but_for_rounding(ours, backbone):
    model, reference = copy.deepcopy(ours[backbone]).double(), copy.deepcopy(oracle(backbone)).double()
    images, padding_mask = image_batch(75, 101).double(), torch.zeros(2, 75, 101, dtype=torch.bool)
    padding_mask[1, 61:], padding_mask[1, :, 90:] = True, True
    images = images.masked_fill(padding_mask[:, None], 0.0)
    theirs = predictions(reference, images, (~padding_mask).long())
    assert max(differences(model, theirs, images, padding_mask)) < TOLERANCE_FLOAT64


def swap_levels(model, monkeypatch):
    with torch.no_grad():
        model.neck.level_embed.weight.copy_(model.neck.level_embed.weight.flip(0))


def swap_offset_axes(model, monkeypatch):
    with torch.no_grad():
        for layer in model.neck.layers:
            offsets = layer.attn.sampling_offsets
            offsets.bias.copy_(offsets.bias.view(-1, 2).flip(1).flatten())


def drop_an_encoder_layer(model, monkeypatch):
    del model.neck.layers[5]


def upsample_by_nearest(model, monkeypatch):
    monkeypatch.setattr(
        vision_stack.necks.ms_deform.F, "interpolate", lambda x, size, mode, **_: right(x, size=size, mode="nearest")
    )


def look_everywhere(model, monkeypatch):
    monkeypatch.setattr(
        model.head,
        "_attend",
        lambda hidden, resized: torch.ones(*hidden.shape[:2], resized.shape[2], dtype=torch.bool),
    )


right = F.interpolate
FAULTS = (swap_levels, swap_offset_axes, drop_an_encoder_layer, upsample_by_nearest, look_everywhere)


@pytest.mark.parametrize("fault", FAULTS)
def test_mask2former_with_a_planted_fault_is_told_apart(ours, fault, monkeypatch):
    model = copy.deepcopy(ours["resnet"])
    fault(model, monkeypatch)
    assert max(differences(model, their_predictions("resnet", (96, 128)), image_batch(96, 128))) > FAULT
