"""`head=rt_detr` against transformers' RT-DETR: logits and boxes of every layer in float64, eval and train; all losses.

While training, transformers' boxes of a layer have no gradient for the layer before it, which RT-DETR's own code and
DINO (Sec. 3.5) give them; values are the same.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
from transformers.modeling_outputs import BaseModelOutput

from vision_stack.heads import RTDETRHead, RTDETRHeadConfig
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec, Target
from vision_stack.weights.rt_detr import convert_decoder, export_decoder

NUM_CLASSES, QUERIES, LAYERS, CHANNELS = 5, 12, 3, 16
SPECS = tuple(FeatureSpec(f"p{i}", CHANNELS, 2**i) for i in (3, 4, 5))
SIZES = {"square": (128, 128), "wide": (96, 160), "odd": (75, 101)}
COUNTS = (3, 1)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """transformers makes noised boxes in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@cache
def pair() -> tuple[RTDetrForObjectDetection, RTDETRHead]:
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = RTDetrConfig(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=CHANNELS, encoder_in_channels=[4] * 3,
        decoder_in_channels=[CHANNELS] * 3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=8,
        decoder_ffn_dim=24, decoder_layers=LAYERS, num_queries=QUERIES, num_labels=NUM_CLASSES, num_denoising=20,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = RTDetrForObjectDetection(config).double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
            if "sampling_offsets.bias" in name:
                parameter.mul_(2)  # reaches over the borders
            if "bbox" in name and name.endswith("layers.2.bias"):
                parameter.zero_()  # boxes that are far from 0 and 1
        for name, buffer in theirs.named_buffers():
            if "decoder_input_proj" in name and buffer.ndim:
                buffer.copy_(0.5 + torch.rand_like(buffer))
    ours = RTDETRHeadConfig(
        num_queries=QUERIES, hidden_dim=32, num_heads=4, ffn_dim=24, num_decoder_layers=LAYERS, num_denoising=20
    ).build(SPECS, NUM_CLASSES)
    left_out = ("model.backbone.", "model.encoder.", "model.encoder_input_proj.")
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith(left_out)}
    renamed = convert_decoder(state)
    assert len(renamed) == len(state)
    ours.double().load_state_dict({key.removeprefix("head."): value for key, value in renamed.items()})
    assert convert_decoder(export_decoder(renamed)).keys() == renamed.keys()
    return theirs, ours


def maps_of(size: tuple[int, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(2, s.channels, *(-(-n // s.stride) for n in size), generator=generator, dtype=torch.float64)
        for s in SPECS
    )


def targets_of(size: tuple[int, int]) -> tuple[list[Target], list[dict[str, Tensor]]]:
    """As ours, and as transformers has them."""
    generator = torch.Generator().manual_seed(2)
    theirs = [
        {
            "class_labels": torch.randint(NUM_CLASSES, (n,), generator=generator),
            "boxes": 0.1 + 0.4 * torch.rand(n, 4, generator=generator),
        }
        for n in COUNTS
    ]
    scale = torch.tensor([size[1], size[0]] * 2)
    ours: list[Target] = [
        {"labels": t["class_labels"], "boxes": box_convert(t["boxes"], "cxcywh", "xyxy") * scale} for t in theirs
    ]
    return ours, theirs


def outputs_of(size: tuple[int, int], *, train: bool) -> tuple[Any, BoxOutputs]:
    theirs, ours = (module.train(train) for module in pair())
    targets, labels = targets_of(size)
    maps = maps_of(size)
    torch.manual_seed(3)
    expected = theirs(
        None,
        inputs_embeds=torch.zeros(2),
        encoder_outputs=BaseModelOutput(list(maps)),
        labels=labels,  # type: ignore[arg-type]
    )
    torch.manual_seed(3)
    return expected, ours(Features(maps, size, (size,) * 2), targets if train else None)


def assert_layers_equal(expected: Any, found: BoxOutputs) -> None:
    logits = torch.cat([found.aux_logits, found.pred_logits[None]])
    boxes = torch.cat([found.aux_boxes, found.pred_boxes[None]])
    if found.denoising_logits is not None and found.denoising_boxes is not None:
        logits, boxes = torch.cat([found.denoising_logits, logits], 2), torch.cat([found.denoising_boxes, boxes], 2)
    assert expected.intermediate_logits.std() >= 1
    assert expected.intermediate_reference_points.std() > 0.1
    torch.testing.assert_close(logits, expected.intermediate_logits.transpose(0, 1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(boxes, expected.intermediate_reference_points.transpose(0, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_logits_and_boxes_of_every_layer_equal_transformers(size: str) -> None:
    with torch.no_grad():
        expected, found = outputs_of(SIZES[size], train=False)
    assert_layers_equal(expected, found)
    assert found.encoder_logits is None


def test_noised_objects_proposals_and_losses_equal_transformers_while_training() -> None:
    expected, found = outputs_of(SIZES["wide"], train=True)
    assert_layers_equal(expected, found)
    torch.testing.assert_close(found.encoder_logits, expected.enc_topk_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.encoder_boxes, expected.enc_topk_bboxes, rtol=1e-9, atol=1e-9)
    losses = pair()[1].compute_loss(found, targets_of(SIZES["wide"])[0])
    assert len(losses) == 3 * (LAYERS + 1 + LAYERS)
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), expected.loss, rtol=1e-9, atol=1e-9)


def test_boxes_have_gradients_for_their_layer_and_the_one_before() -> None:
    _, found = outputs_of(SIZES["wide"], train=True)
    predictors = [each.layers[-1].bias for each in pair()[1].bbox_embed]
    gradients = torch.autograd.grad(found.pred_boxes.sum(), predictors)
    assert [bool(gradient.any()) for gradient in gradients] == [False, True, True]


def test_swapped_sides_of_the_anchors_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_stack.heads import query_selection

    plain = query_selection.proposal_logits

    def swapped(memory: Any) -> tuple[Tensor, Tensor]:
        logits, usable = plain(memory)
        return logits[..., [1, 0, 2, 3]], usable

    monkeypatch.setattr(query_selection, "proposal_logits", swapped)
    with torch.no_grad():
        expected, found = outputs_of(SIZES["wide"], train=False)
    with pytest.raises(AssertionError, match="not close"):
        assert_layers_equal(expected, found)
