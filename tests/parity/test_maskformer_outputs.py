"""MaskFormer's outputs against transformers', R50 and Swin-T, every decoder layer, with the same perturbed weights.

The pixel decoder's transformer encoder has no counterpart in transformers; see tests/contract/test_necks.py for it.
"""

import copy
import functools
import tempfile

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

pytest.importorskip("transformers")
from maskformer_oracle import build_oracle, oracle_layers

import vision_stack.heads.maskformer
from vision_stack.model import VisionModel
from vision_stack.weights.encoder import split_encoder
from vision_stack.weights.maskformer import convert_decoder

TOLERANCE = 1e-4  # of the logits' spread; float32 rounding through R50 and six decoder layers comes to 3e-5
TOLERANCE_FLOAT64 = 1e-11  # what is left of the rounding: the same arithmetic, in another order
FAULT = 100 * TOLERANCE  # a mistake in the architecture is at least this large
NUM_CLASSES, NUM_QUERIES = 7, 20
BACKBONES = ("resnet50", "swin_tiny")


@functools.cache
def oracle(backbone):
    return build_oracle(backbone, num_classes=NUM_CLASSES, num_queries=NUM_QUERIES)


@functools.cache
def their_layers(backbone, size):
    return oracle_layers(oracle(backbone), image_batch(*size))


@functools.cache
def our_model(backbone):
    with tempfile.TemporaryDirectory() as directory:
        oracle(backbone).save_pretrained(directory)
        return VisionModel.from_pretrained(directory)


def image_batch(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def largest_difference(model, theirs, images, padding_mask=None):
    """max|ours - theirs| / std over class and mask logits of all decoder layers, after checking their spread."""
    outputs = model(images, padding_mask)
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs.all_mask_embed, outputs.mask_features)
    torch.testing.assert_close(masks[-1], outputs.pred_masks)
    worst = 0.0
    for (their_logits, their_masks), our_logits, our_masks in zip(theirs, outputs.all_logits, masks, strict=True):
        for want, got in ((their_logits, our_logits), (their_masks, our_masks)):
            assert want.shape == got.shape
            assert want.std(dim=1).mean() >= 1, "queries too much alike to tell a difference"
            worst = max(worst, float((got - want).abs().max() / want.std()))
    return worst


@pytest.mark.parametrize("size", [(96, 128), (75, 101)], ids=["multiple of 32", "odd"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_maskformer_logits_of_every_layer_equal_transformers(backbone, size):
    assert largest_difference(our_model(backbone), their_layers(backbone, size), image_batch(*size)) < TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maskformer_padded_batch_equals_transformers(backbone):
    images, padding_mask = image_batch(96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    padding_mask[1, 61:], padding_mask[1, :, 90:] = True, True
    zeroed = images.masked_fill(padding_mask[:, None], 0.0)
    theirs = oracle_layers(oracle(backbone), zeroed, (~padding_mask).long())
    assert largest_difference(our_model(backbone), theirs, images, padding_mask) < TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maskformer_in_float64_equals_transformers_but_for_rounding(backbone):
    model, reference = copy.deepcopy(our_model(backbone)).double(), copy.deepcopy(oracle(backbone)).double()
    images = image_batch(75, 101).double()
    assert largest_difference(model, oracle_layers(reference, images), images) < TOLERANCE_FLOAT64


def test_maskformer_with_swapped_axes_of_the_positions_is_told_apart(monkeypatch):
    right = vision_stack.heads.maskformer.sine_position_encoding
    monkeypatch.setattr(
        vision_stack.heads.maskformer,
        "sine_position_encoding",
        lambda height, width, channels, *rest: right(height, width, channels, *rest).roll(channels // 2, dims=1),
    )
    theirs = their_layers("resnet50", (96, 128))
    assert largest_difference(our_model("resnet50"), theirs, image_batch(96, 128)) > FAULT


def drop_last_shift(model):
    blocks = model.backbone.net.layers[3].blocks
    assert any(any(block.shift_size) for block in blocks)
    for block in blocks:
        block.shift_size = (0, 0)


def shift_before_padding(model):
    for module in model.modules():
        if isinstance(module, SwinTransformerBlock):
            module.__class__ = SwinTransformerBlock


@pytest.mark.parametrize("fault", [drop_last_shift, shift_before_padding])
def test_maskformer_swin_with_wrong_windows_is_told_apart(fault):
    model = copy.deepcopy(our_model("swin_tiny"))
    fault(model)
    assert largest_difference(model, their_layers("swin_tiny", (75, 101)), image_batch(75, 101)) > FAULT


def test_convert_decoder_names_of_older_checkpoints_give_the_same_weights():
    _, state = split_encoder(oracle("resnet50").state_dict())
    older = {key.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc"): value for key, value in state.items()}
    assert older.keys() != state.keys()
    converted, expected = convert_decoder(older), convert_decoder(state)
    assert converted.keys() == expected.keys()
    assert all(converted[key] is expected[key] or converted[key].equal(expected[key]) for key in expected)


def test_convert_decoder_unknown_key_fails_naming_it():
    with pytest.raises(ValueError, match=r"'model\.transformer_module\.decoder\.layers\.0\.extra' is not a key"):
        convert_decoder({"model.transformer_module.decoder.layers.0.extra": torch.zeros(1)})
