"""`head=d_fine` against transformers' D-FINE in float64: logits, boxes, distributions of every layer, eval and train.

transformers gives the outputs of all layers while training, of the last layer alone otherwise.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config
from transformers.modeling_outputs import BaseModelOutput

from vision_stack.heads import DFineHead, DFineHeadConfig
from vision_stack.outputs import BoxOutputs, EdgeDistributions
from vision_stack.structures import Features, FeatureSpec, Target
from vision_stack.weights.d_fine import convert_decoder, export_decoder

NUM_CLASSES, QUERIES, LAYERS, CHANNELS, SCALE, POINTS = 5, 12, 3, 16, 8.0, (3, 6, 3)
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
def pair() -> tuple[DFineForObjectDetection, DFineHead]:
    torch.manual_seed(0)
    backbone = HGNetV2Config(
        embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, stem_channels=[3, 4, 4], stage_in_channels=[4] * 4,
        stage_mid_channels=[4] * 4, stage_out_channels=[4] * 4, stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    config = DFineConfig(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=CHANNELS, encoder_in_channels=[4] * 3,
        decoder_in_channels=[CHANNELS] * 3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=8,
        decoder_ffn_dim=24, decoder_layers=LAYERS, decoder_n_points=list(POINTS), num_queries=QUERIES,
        num_labels=NUM_CLASSES, num_denoising=20, reg_scale=SCALE, attn_implementation="eager",
        tie_word_embeddings=False,  # its layers would share their predictors
    )  # fmt: skip
    theirs = DFineForObjectDetection(config).double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in ("model.decoder.up", "model.decoder.reg_scale"):
                continue
            scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
            if "sampling_offsets.bias" in name:
                parameter.mul_(2)  # reaches over the borders
            if "bbox_head" in name and name.endswith("layers.2.bias"):
                parameter.zero_()  # boxes that are far from 0 and 1
            if "bbox_embed" in name and "layers.2" in name:
                parameter.mul_(3)  # distributions with peaks
        for name, buffer in theirs.named_buffers():
            if "decoder_input_proj" in name and buffer.ndim:
                buffer.copy_(0.5 + torch.rand_like(buffer))
            if "num_points_scale" in name:
                buffer.copy_(torch.cat([torch.full((n,), 1 / n) for n in POINTS]))  # was made in float32
    ours = DFineHeadConfig(
        num_queries=QUERIES, hidden_dim=32, num_heads=4, ffn_dim=24, num_decoder_layers=LAYERS, num_denoising=20,
        num_points=POINTS, reg_scale=SCALE,
    ).build(SPECS, NUM_CLASSES)  # fmt: skip
    left_out = ("model.backbone.", "model.encoder.", "model.encoder_input_proj.")
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith(left_out)}
    renamed = convert_decoder(state)
    ours.double().load_state_dict({key.removeprefix("head."): value for key, value in renamed.items()})
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


@torch.no_grad()
def outputs_of(size: tuple[int, int], *, train: bool) -> tuple[Any, BoxOutputs]:
    theirs, ours = (module.train(train) for module in pair())
    targets, labels = targets_of(size)
    maps = maps_of(size)
    arguments = {"inputs_embeds": torch.zeros(2), "encoder_outputs": BaseModelOutput(list(maps))}
    torch.manual_seed(3)
    expected = theirs.model(None, **arguments, labels=labels)  # type: ignore[arg-type]
    torch.manual_seed(3)
    return expected, ours(Features(maps, size, (size,) * 2), targets if train else None)


def assert_equal(found: Tensor | None, expected: Tensor, spread: float) -> None:
    assert expected.std() >= spread
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def assert_layers_equal(expected: Any, found: BoxOutputs) -> None:
    logits = torch.cat([found.aux_logits, found.pred_logits[None]])
    boxes = torch.cat([found.aux_boxes, found.pred_boxes[None]])
    if found.denoising_logits is not None and found.denoising_boxes is not None:
        logits, boxes = torch.cat([found.denoising_logits, logits], 2), torch.cat([found.denoising_boxes, boxes], 2)
    layers = expected.intermediate_logits.shape[1]
    assert_equal(logits[-layers:], expected.intermediate_logits.transpose(0, 1), 1.0)
    assert_equal(boxes[-layers:], expected.intermediate_reference_points.transpose(0, 1), 0.1)


@pytest.mark.parametrize("size", SIZES)
def test_logits_and_boxes_equal_transformers(size: str) -> None:
    expected, found = outputs_of(SIZES[size], train=False)
    assert_layers_equal(expected, found)
    assert len(found.aux_boxes) == LAYERS
    assert found.encoder_logits is None
    assert found.edges is None


def test_every_layers_outputs_of_objects_and_noised_objects_equal_transformers_while_training() -> None:
    expected, found = outputs_of(SIZES["wide"], train=True)
    assert expected.intermediate_logits.shape[1] == LAYERS + 1
    assert_layers_equal(expected, found)
    assert_equal(found.encoder_logits, expected.enc_topk_logits, 1.0)
    assert_equal(found.encoder_boxes, expected.enc_topk_bboxes, 0.1)
    both = (found.denoising_edges, found.edges)
    edges = [each for each in both if isinstance(each, EdgeDistributions)]
    logits, boxes = torch.cat([each.logits for each in edges], 2), torch.cat([each.boxes for each in edges], 1)
    assert_equal(logits.flatten(3), expected.intermediate_predicted_corners.transpose(0, 1), 1.0)
    assert_equal(boxes.expand(LAYERS, -1, -1, -1), expected.initial_reference_points.transpose(0, 1), 0.1)


def test_names_and_constants_are_those_of_transformers_again() -> None:
    theirs, ours = pair()
    state = {f"head.{key}": value for key, value in ours.state_dict().items()}
    exported = export_decoder(state, POINTS, SCALE)
    again = convert_decoder(exported)
    assert again.keys() == state.keys()
    assert all(again[key] is value for key, value in state.items())
    in_memory = theirs.state_dict()
    for name in ("up", "reg_scale", "layers.1.encoder_attn.num_points_scale"):
        torch.testing.assert_close(exported[f"model.decoder.{name}"], in_memory[f"model.decoder.{name}"])


def test_bins_that_are_mirrored_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_stack.heads import d_fine

    plain = d_fine.bin_values
    monkeypatch.setattr(d_fine, "bin_values", lambda scale, like: plain(scale, like).flip(0))
    expected, found = outputs_of(SIZES["wide"], train=False)
    with pytest.raises(AssertionError, match="not close"):
        assert_layers_equal(expected, found)
