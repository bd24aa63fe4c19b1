"""`MaskFormerForInstanceSegmentation` against transformers' class of that name: same arguments, outputs and loss."""

import functools
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")
import transformers
from maskformer_oracle import oracle_layers, perturb

from vision_stack import MaskFormerConfig, MaskFormerForInstanceSegmentation
from vision_stack.published import PublishedModel, convert, from_transformers

NUM_LABELS = 7
TOLERANCE = 1e-4  # of the logits' spread, and relative for the loss; float32 rounding comes to 3e-5
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}


@functools.cache
def pair(use_auxiliary_loss):
    """Theirs and ours, with the same perturbed weights."""
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(**RESNET, out_features=STAGES)
    decoder = {"num_queries": 12, "decoder_layers": 3, "d_model": 64, "decoder_ffn_dim": 96}
    common = {"fpn_feature_size": 64, "mask_feature_size": 64, "dice_weight": 2.0, "mask_weight": 15.0}
    theirs = transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=backbone,
            decoder_config={"model_type": "detr", **decoder},
            num_labels=NUM_LABELS,
            **common,
        )
    ).eval()
    perturb(theirs)
    names = {i: f"class {i}" for i in range(NUM_LABELS)}
    common |= {"use_auxiliary_loss": use_auxiliary_loss, "output_auxiliary_logits": use_auxiliary_loss}
    config = MaskFormerConfig(backbone_config=backbone.to_dict(), decoder_config=decoder, id2label=names, **common)
    ours = MaskFormerForInstanceSegmentation(config).eval()
    model = ours.vision_model
    to_ours = partial(from_transformers, {"model_type": "maskformer"}, theirs.state_dict())
    state, _ = convert(PublishedModel("", {}, theirs.state_dict(), to_ours), model.backbone, model.state_dict())
    model.load_state_dict(state, strict=True)
    return theirs, ours


def batch():
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, 64, 96, generator=generator)
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.long)
    pixel_mask[1, 50:] = 0
    pixel_values *= pixel_mask[:, None]  # transformers leaves the padding to its processor, which fills it with zeros
    masks = [torch.zeros(3, 64, 96), torch.zeros(1, 64, 96)]
    for i, (y, x) in enumerate([(0, 0), (20, 30), (32, 64)]):
        masks[0][i, y : y + 24, x : x + 30] = 1
    masks[1][0, 10:40, 5:60] = 1
    return pixel_values, pixel_mask, masks, [torch.tensor([2, 0, 6]), torch.tensor([3])]


@torch.no_grad()
def run(model, pixel_values, pixel_mask, mask_labels, class_labels):
    return model(pixel_values=pixel_values, pixel_mask=pixel_mask, mask_labels=mask_labels, class_labels=class_labels)


def test_dress_logits_and_loss_equal_those_of_transformers():
    theirs, ours = pair(False)
    expected, found = run(theirs, *batch()), run(ours, *batch())
    for name in ("class_queries_logits", "masks_queries_logits"):
        want, got = getattr(expected, name), getattr(found, name)
        assert want.std() >= 1
        assert (got - want).abs().max() < TOLERANCE * want.std(), name
    torch.testing.assert_close(found.loss.reshape(()), expected.loss.reshape(()), rtol=TOLERANCE, atol=0)
    assert found.auxiliary_logits is None


@torch.no_grad()
def test_dress_auxiliary_loss_and_logits_are_those_of_every_layer():
    """transformers' model fails with its own auxiliary loss; its loss takes what its layers give."""
    theirs, ours = pair(True)
    pixel_values, pixel_mask, masks, classes = batch()
    names = ("class_queries_logits", "masks_queries_logits")
    *earlier, last = [dict(zip(names, x, strict=True)) for x in oracle_layers(theirs, pixel_values, pixel_mask)]
    losses = theirs.get_loss_dict(last[names[1]], last[names[0]], masks, classes, earlier)
    found = run(ours, pixel_values, pixel_mask, masks, classes)
    torch.testing.assert_close(found.loss, sum(losses.values()).reshape(()), rtol=TOLERANCE, atol=0)
    assert len(losses) == 9  # three of each layer
    for got, want in zip(found.auxiliary_logits, earlier, strict=True):
        for name in names:
            assert (got[name] - want[name]).abs().max() < TOLERANCE * want[name].std()


def test_dress_labels_mixed_up_are_told_apart():
    theirs, ours = pair(False)
    pixel_values, pixel_mask, masks, classes = batch()
    expected = run(theirs, pixel_values, pixel_mask, masks, classes).loss
    wrong = [classes[0].flip(0), classes[1]]
    assert abs(run(ours, pixel_values, pixel_mask, masks, wrong).loss - expected) > 20 * TOLERANCE * expected
    inverted = run(ours, pixel_values, 1 - pixel_mask, masks, classes)  # the reverse sense of the mask
    assert abs(inverted.loss - expected) > 20 * TOLERANCE * expected


def test_dress_images_without_objects_and_without_labels():
    _, ours = pair(False)
    pixel_values, pixel_mask, _, _ = batch()
    empty = [torch.zeros(0, 64, 96)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    assert run(ours, pixel_values, pixel_mask, *empty).loss > 0
    assert ours(pixel_values).loss is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"class_labels": None}, "mask_labels: given without class_labels, or the reverse; the loss needs both"),
        ({"mask_labels": [torch.zeros(1, 64, 96)]}, "mask_labels: of 1 images, class_labels of 2, not 2"),
        (
            {"mask_labels": [torch.zeros(3, 32, 96), torch.zeros(1, 64, 96)]},
            r"mask_labels\[0\]: \[3, 32, 96\] is not \[3, 64, 96\]",
        ),
        (
            {"class_labels": [torch.tensor([2, 0, 7]), torch.tensor([3])]},
            r"class_labels\[0\]: \[2, 0, 7\] are not all in 0 to 6",
        ),
    ],
)
def test_dress_labels_that_do_not_fit_give_one_line(change, line):
    _, ours = pair(False)
    pixel_values, pixel_mask, mask_labels, class_labels = batch()
    labels = {"mask_labels": mask_labels, "class_labels": class_labels} | change
    with pytest.raises(ValueError, match=line):
        ours(pixel_values, pixel_mask, **labels)


def test_dress_keeps_stages_that_maskformer_can_take(capsys):
    config = MaskFormerConfig(backbone_config={"model_type": "resnet", **RESNET, "out_features": STAGES[:3]})
    assert config.backbone_config.out_features == STAGES[:3]
    assert not capsys.readouterr().err


def test_dress_trains_one_step():
    _, ours = pair(False)
    ours.train()
    ours(*batch()).loss.backward()
    assert ours.vision_model.backbone.net.conv1.weight.grad.abs().sum() > 0
    ours.eval().zero_grad()
