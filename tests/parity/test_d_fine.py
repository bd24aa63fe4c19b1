"""`head=d_fine` and `deimv2` against transformers' D-FINE and DEIMv2 in float64: logits, boxes, distributions of edges.

transformers gives the outputs of all layers while training, of the last layer alone otherwise.
"""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deimv2.modeling_deimv2 import Deimv2MLP, Deimv2RMSNorm

from vision_stack.config import from_dict
from vision_stack.heads import DFineHead
from vision_stack.outputs import BoxOutputs, EdgeDistributions
from vision_stack.structures import Features, FeatureSpec, Target
from vision_stack.weights import d_fine, deimv2

NUM_CLASSES, QUERIES, LAYERS, CHANNELS, SCALE, POINTS = 5, 12, 3, 16, 8.0, (3, 6, 3)
SPECS = tuple(FeatureSpec(f"p{i}", CHANNELS, 2**i) for i in (3, 4, 5))
SIZES = {"square": (128, 128), "wide": (96, 160), "odd": (75, 101)}
COUNTS = (3, 1)
SMALLEST = {"use_gateway": False, "share_bbox_head": True}
MODELS: dict[str, dict[str, Any]] = {  # options that have the same name in both
    "d_fine": {},
    "deimv2": {},
    "deimv2, smallest": SMALLEST,
    "deimv2, as the authors": {},
}
AS_TRANSFORMERS = {"activation": "relu", "encoder_output": True}


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers makes noised boxes in the default type; its RMSNorm computes in float32."""

    def norm(self: Deimv2RMSNorm, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()

    monkeypatch.setattr(Deimv2RMSNorm, "forward", norm)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@cache
def pair(name: str) -> tuple[nn.Module, DFineHead]:
    torch.manual_seed(0)
    backbone = HGNetV2Config(
        embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, stem_channels=[3, 4, 4], stage_in_channels=[4] * 4,
        stage_mid_channels=[4] * 4, stage_out_channels=[4] * 4, stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    family, of_d_fine = name.partition(",")[0], name == "d_fine"
    config = (DFineConfig if of_d_fine else Deimv2Config)(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=CHANNELS, encoder_in_channels=[4] * 3,
        decoder_in_channels=[CHANNELS] * 3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=8,
        decoder_ffn_dim=24, decoder_layers=LAYERS, decoder_n_points=list(POINTS), num_queries=QUERIES,
        num_labels=NUM_CLASSES, num_denoising=20, reg_scale=SCALE, attn_implementation="eager",
        **({} if of_d_fine else {"decoder_activation_function": "silu"}),
        tie_word_embeddings=False,  # its layers would share their predictors
        **MODELS[name],
    )  # fmt: skip
    theirs = (DFineForObjectDetection if of_d_fine else Deimv2ForObjectDetection)(config).double()
    if name == "deimv2, as the authors":
        theirs.model.enc_output = nn.Identity()
        for mlp in (module for module in theirs.modules() if isinstance(module, Deimv2MLP)):
            mlp.act = nn.SiLU()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key in ("model.decoder.up", "model.decoder.reg_scale"):
                continue
            scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
            if "sampling_offsets.bias" in key:
                parameter.mul_(2)  # reaches over the borders
            if "bbox_head" in key and key.endswith("layers.2.bias"):
                parameter.zero_()  # boxes that are far from 0 and 1
            if "bbox_embed" in key and "layers.2" in key:
                parameter.mul_(3)  # distributions with peaks
        for key, buffer in theirs.named_buffers():
            if "decoder_input_proj" in key and buffer.ndim:
                buffer.copy_(0.5 + torch.rand_like(buffer))
            if "num_points_scale" in key:
                buffer.copy_(torch.cat([torch.full((n,), 1 / n) for n in POINTS]))  # was made in float32
    plain = {
        "type": family, "num_queries": QUERIES, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 24,
        "num_decoder_layers": LAYERS, "num_denoising": 20, "num_points": list(POINTS), "reg_scale": SCALE,
        **MODELS[name],
    }  # fmt: skip
    if name in ("deimv2", "deimv2, smallest"):
        plain |= AS_TRANSFORMERS | {"position_activation": "silu"}
    ours: DFineHead = from_dict(plain, "head").build(SPECS, NUM_CLASSES)
    ours.double().load_state_dict({key.removeprefix("head."): value for key, value in converted(theirs, name).items()})
    return theirs, ours


def converted(theirs: nn.Module, name: str) -> dict[str, Tensor]:
    left_out = ("model.backbone.", "model.conv_encoder.", "model.encoder.", "model.encoder_input_proj.")
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith(left_out)}
    return convert(state, name)


def convert(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    if name == "d_fine":
        return d_fine.convert_decoder(state)
    return deimv2.convert_decoder(state, share_bbox_head=MODELS[name].get("share_bbox_head", False))


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
def outputs_of(name: str, size: tuple[int, int], *, train: bool) -> tuple[Any, BoxOutputs]:
    theirs, ours = (module.train(train) for module in pair(name))
    model: Any = theirs.model
    targets, labels = targets_of(size)
    maps = maps_of(size)
    torch.manual_seed(3)
    if name == "d_fine":
        encoded = BaseModelOutput(list(maps))  # type: ignore[arg-type]
        expected = model(None, inputs_embeds=torch.zeros(2), encoder_outputs=encoded, labels=labels)
    else:  # whose model takes pixels only
        model.conv_encoder.forward = lambda pixels: list(maps)
        model.encoder.forward = lambda features: SimpleNamespace(
            feature_maps=features, hidden_states=None, attentions=None
        )
        expected = model(torch.zeros(2, 3, *size), labels=labels)
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
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_boxes_equal_transformers(name: str, size: str) -> None:
    expected, found = outputs_of(name, SIZES[size], train=False)
    assert_layers_equal(expected, found)
    assert len(found.aux_boxes) == LAYERS
    assert found.encoder_logits is None
    assert found.edges is None


@pytest.mark.parametrize("name", MODELS)
def test_every_layers_outputs_of_objects_and_noised_objects_equal_transformers_while_training(name: str) -> None:
    expected, found = outputs_of(name, SIZES["wide"], train=True)
    assert expected.intermediate_logits.shape[1] == LAYERS + 1
    assert_layers_equal(expected, found)
    assert_equal(found.encoder_logits, expected.enc_topk_logits, 1.0)
    assert_equal(found.encoder_boxes, expected.enc_topk_bboxes, 0.1)
    both = (found.denoising_edges, found.edges)
    edges = [each for each in both if isinstance(each, EdgeDistributions)]
    logits, boxes = torch.cat([each.logits for each in edges], 2), torch.cat([each.boxes for each in edges], 1)
    assert_equal(logits.flatten(3), expected.intermediate_predicted_corners.transpose(0, 1), 1.0)
    assert_equal(boxes.expand(LAYERS, -1, -1, -1), expected.initial_reference_points.transpose(0, 1), 0.1)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_constants_are_those_of_transformers_again(name: str) -> None:
    theirs, ours = pair(name)
    state = {f"head.{key}": value for key, value in ours.state_dict().items()}
    exported = (d_fine if name == "d_fine" else deimv2).export_decoder(state, POINTS, SCALE)
    again = convert(exported, name)
    assert again.keys() == state.keys()
    assert all(again[key] is value for key, value in state.items())
    in_memory = theirs.state_dict()
    for constant in ("up", "reg_scale", "layers.1.encoder_attn.num_points_scale"):
        torch.testing.assert_close(exported[f"model.decoder.{constant}"], in_memory[f"model.decoder.{constant}"])
    if name != "d_fine":  # files have the names of the model
        assert exported.keys() <= in_memory.keys()


def test_bins_that_are_mirrored_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_stack.heads import d_fine as module

    plain = module.bin_values
    monkeypatch.setattr(module, "bin_values", lambda scale, like: plain(scale, like).flip(0))
    expected, found = outputs_of("d_fine", SIZES["wide"], train=False)
    with pytest.raises(AssertionError, match="not close"):
        assert_layers_equal(expected, found)
