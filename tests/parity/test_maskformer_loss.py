"""The criterion against the losses of transformers, layer by layer."""

import pytest
import torch

from vision_stack.losses import MaskCriterionConfig
from vision_stack.outputs import MaskOutputs

transformers = pytest.importorskip("transformers")
from transformers.models.mask2former import modeling_mask2former as hf2  # noqa: E402
from transformers.models.maskformer import modeling_maskformer as hf  # noqa: E402

NUM_CLASSES, QUERIES, CHANNELS, LAYERS = 5, 12, 16, 3
# Relative; sums over up to 60,000 pixels in float32 in another order give about 1e-6.
TOLERANCE = 1e-5
WEIGHTS = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


def hf_maskformer_losses(logits, masks, targets):
    matcher = hf.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    criterion = hf.MaskFormerLoss(NUM_CLASSES, matcher=matcher, weight_dict=WEIGHTS, eos_coef=0.1)
    losses = criterion(masks, logits, [t["masks"].float() for t in targets], [t["labels"] for t in targets])
    return {name: WEIGHTS[name] * value for name, value in losses.items()}


def make_case(counts, size=(96, 128), padded_to=None, seed=0):
    """Head outputs with a logit spread of several units and targets made of random rectangles, some padded."""
    generator = torch.Generator().manual_seed(seed)
    height, width = padded_to or size
    batch = len(counts)
    shape = (-(-height // 4), -(-width // 4))
    targets = []
    for count in counts:
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask in masks:
            x0, y0 = (int(torch.randint(limit // 2, (1,), generator=generator)) for limit in (size[1], size[0]))
            mask[y0 : y0 + size[0] // 3, x0 : x0 + size[1] // 3] = True
            mask[size[0] :], mask[:, size[1] :] = False, False
        targets.append({"labels": torch.randint(NUM_CLASSES, (count,), generator=generator), "masks": masks})
    outputs = MaskOutputs(
        *(torch.randn(shape_, generator=generator).requires_grad_() for shape_ in (
            (batch, QUERIES, NUM_CLASSES + 1), (batch, QUERIES, CHANNELS), (batch, CHANNELS, *shape),
            (LAYERS, batch, QUERIES, NUM_CLASSES + 1), (LAYERS, batch, QUERIES, CHANNELS),
        ))
    )  # fmt: skip
    return outputs, targets


def layer_outputs(outputs):
    """(suffix, class logits, mask logits) of every layer."""
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs.all_mask_embed, outputs.mask_features)
    suffixes = [*(f"_{i}" for i in range(LAYERS)), ""]
    return zip(suffixes, outputs.all_logits, masks, strict=True)


def relative(ours, theirs):
    return float((ours - theirs).detach().abs() / theirs.detach().abs().clamp(min=1e-6))


CASES = {
    "usual": {"counts": (4, 2)},
    "image without objects": {"counts": (3, 0)},
    "padded batch": {"counts": (3, 5), "padded_to": (128, 160)},
    "size not divisible by four": {"counts": (3, 2), "size": (90, 126), "padded_to": (97, 130)},
    "more objects than queries": {"counts": (14, 1)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.filterwarnings("ignore:some images have more objects")
def test_focal_losses_and_gradients_equal_transformers_in_every_layer(case):
    outputs, targets = make_case(**case)
    ours = MaskCriterionConfig().build(NUM_CLASSES)(outputs, targets)
    theirs_total = 0.0
    for suffix, logits, masks in layer_outputs(outputs):
        theirs = hf_maskformer_losses(logits, masks, targets)
        theirs_total = theirs_total + sum(theirs.values())
        for name, value in theirs.items():
            own = ours[name.replace("cross_entropy", "class") + suffix]
            assert relative(own, value) < TOLERANCE, (name, suffix)
    own_gradients = torch.autograd.grad(sum(ours.values()), outputs)
    their_gradients = torch.autograd.grad(theirs_total, outputs)
    for name, own, value in zip(outputs._fields, own_gradients, their_gradients, strict=True):
        assert float((own - value).abs().max() / value.abs().max()) < TOLERANCE, name


def test_total_of_a_batch_without_any_object_equals_the_classification_loss_of_transformers():
    outputs, targets = make_case((0, 0))
    ours = MaskCriterionConfig().build(NUM_CLASSES)(outputs, targets)
    for suffix, logits, _ in layer_outputs(outputs):
        nothing = [(torch.empty(0, dtype=torch.long),) * 2] * 2
        criterion = hf.MaskFormerLoss(NUM_CLASSES, matcher=None, weight_dict=WEIGHTS, eos_coef=0.1)
        labels = [target["labels"] for target in targets]
        expected = criterion.loss_labels(logits, labels, nothing)["loss_cross_entropy"]
        own = sum(ours[f"loss_{part}{suffix}"] for part in ("class", "mask", "dice"))
        assert relative(own, expected) < TOLERANCE


@pytest.mark.parametrize("fault", ["transposed mask", "shifted label", "wrong focal weight"])
def test_planted_fault_is_found(fault):
    outputs, targets = make_case((4, 2), size=(96, 96))
    expected = sum(hf_maskformer_losses(outputs.pred_logits, outputs.pred_masks, targets).values())
    config = MaskCriterionConfig(mask_weight=19.9 if fault == "wrong focal weight" else 20.0)
    if fault == "transposed mask":
        targets[0]["masks"][0] = targets[0]["masks"][0].T.clone()
    if fault == "shifted label":
        targets[1]["labels"] = (targets[1]["labels"] + 1) % NUM_CLASSES
    ours = config.build(NUM_CLASSES)(outputs, targets)
    total = sum(ours[f"loss_{part}"] for part in ("class", "mask", "dice"))
    assert relative(total, expected) > 1e-4


def test_point_losses_equal_transformers_mask2former_with_the_same_points(monkeypatch):
    draw, generator, drawn = torch.rand, torch.Generator().manual_seed(0), {}

    def same_points(*shape, **_):
        """What is drawn first for so many points is drawn again, for all masks, layers and images."""
        if shape[-2] not in drawn:
            drawn[shape[-2]] = draw(*shape[-2:], generator=generator)
        return drawn[shape[-2]].expand(*shape).contiguous()

    outputs, targets = make_case((4, 2), size=(96, 128))
    config = transformers.Mask2FormerConfig(num_labels=NUM_CLASSES, train_num_points=500)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    criterion = MaskCriterionConfig(
        class_weight=2, mask_weight=5, dice_weight=5, mask_loss="point", num_points=500
    ).build(NUM_CLASSES)
    monkeypatch.setattr(torch, "rand", same_points)
    ours = criterion(outputs, targets)
    reference = hf2.Mask2FormerLoss(config=config, weight_dict=weights)
    total = 0.0
    for suffix, logits, masks in layer_outputs(outputs):
        theirs = reference(masks, logits, [t["masks"].float() for t in targets], [t["labels"] for t in targets])
        for name, weight in weights.items():
            own = ours[name.replace("cross_entropy", "class") + suffix]
            assert relative(own, weight * theirs[name]) < TOLERANCE, (name, suffix)
            total = total + weight * theirs[name]
    assert sorted(drawn) == [125, 500, 1500]  # uniform, matching, candidates
    own_gradients = torch.autograd.grad(sum(ours.values()), outputs)
    for name, own, value in zip(outputs._fields, own_gradients, torch.autograd.grad(total, outputs), strict=True):
        assert float((own - value).abs().max() / value.abs().max()) < TOLERANCE, name
