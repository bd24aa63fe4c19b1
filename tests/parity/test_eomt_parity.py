"""EoMT against transformers' models of the same weights, in float64, and whole directories both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from vision_stack.config import ConfigError, from_dict
from vision_stack.model import VisionModel, VisionModelConfig

CLASSES, QUERIES, BLOCKS = 3, 5, 2
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_blocks": BLOCKS,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dinov2": (EomtForUniversalSegmentation, {"image_size": 64}),
    "dinov2_swiglu": (EomtForUniversalSegmentation, {"image_size": 96, "use_swiglu_ffn": True}),
    "dinov3": (EomtDinov3ForUniversalSegmentation, {"image_size": 96, "intermediate_size": 48}),
    "dinov3_plain": (
        EomtDinov3ForUniversalSegmentation,
        {"image_size": 64, "intermediate_size": 64, "num_register_tokens": 0},
    ),
}


def _attention(module: Any, q: Any, k: Any, v: Any, attention_mask: Any, scaling: float, **_: Any) -> Any:
    """As transformers', whose softmax is float32, and whose mask too, which `scaled_dot_product_attention` misreads."""
    weights = q @ k.transpose(-1, -2) * scaling
    weights = weights if attention_mask is None else weights + attention_mask
    return (weights.softmax(-1) @ v).transpose(1, 2), None


AttentionInterface.register("in_own_type", _attention)


def oracle(name: str, probability: float = 0.0) -> Any:
    """transformers' model, perturbed until logits spread, which masks its attention with this probability."""
    cls, options = MODELS[name]
    config = (EomtConfig if cls is EomtForUniversalSegmentation else EomtDinov3Config)(**SHAPE, **options)
    if name.startswith("dinov3"):
        config.pos_embed_rescale = None  # transformers draws it in training; see `DINOv3ViTConfig`
    torch.manual_seed(0)
    model = cls(config)
    model.set_attn_implementation("in_own_type")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.3 if parameter.ndim > 1 else 0.1) * torch.randn_like(parameter)
        model.attn_mask_probs.fill_(probability)
    return model.eval()


def pixels(model: Any) -> torch.Tensor:
    size = model.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def predictions(model: Any, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Masks and classes that transformers' model predicts, of every supervised layer."""
    found, predict = [], model.predict
    model.predict = lambda tokens: found.append(predict(tokens)) or found[-1]
    with torch.no_grad():
        model(images)
    model.predict = predict
    return found


def assert_equal(ours: Any, theirs: list[tuple[torch.Tensor, torch.Tensor]], *, rotary: bool = False) -> None:
    """To 1e-9 of the spread, with rotary positions, which transformers rounds to float32, to 1e-5."""
    assert len(ours) == len(theirs)
    close = 1e-5 if rotary else 1e-9
    for layer, (masks, logits) in zip(ours, theirs, strict=True):
        assert masks.std() > 1
        assert logits.std() > 1
        torch.testing.assert_close(layer.pred_logits, logits, rtol=0, atol=close * float(logits.std()))
        torch.testing.assert_close(layer.pred_masks, masks, rtol=0, atol=close * float(masks.std()))


@pytest.fixture(params=MODELS)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    oracle(request.param).save_pretrained(tmp_path / "eomt-coco-instance")
    return request.param, tmp_path / "eomt-coco-instance"


def test_directory_of_transformers_predicts_the_same_and_goes_back(directory: tuple[str, Path], tmp_path: Path) -> None:
    name, path = directory
    theirs = oracle(name).double()
    images = pixels(theirs)
    expected = predictions(theirs, images)
    ours = VisionModel.from_pretrained(path)
    assert not ours.load_report.missing
    assert not ours.load_report.unexpected
    with torch.no_grad():
        assert_equal(ours.double()(images).layers, expected, rotary=name.startswith("dinov3"))

    ours.float().export_transformers(tmp_path / "back")
    again = type(theirs).from_pretrained(tmp_path / "back")
    again.config.image_size = theirs.config.image_size  # rotary positions take any
    again.grid_size = theirs.grid_size
    for (masks, logits), (their_masks, their_logits) in zip(predictions(again.double(), images), expected, strict=True):
        torch.testing.assert_close(masks, their_masks, rtol=0, atol=1e-9 * float(masks.std()))
        torch.testing.assert_close(logits, their_logits, rtol=0, atol=1e-9 * float(logits.std()))


@pytest.mark.parametrize("name", MODELS)
def test_masked_attention_in_training_and_its_predictions_before_each_block(name: str, tmp_path: Path) -> None:
    rotary = name.startswith("dinov3")
    theirs = oracle(name, probability=1.0)
    theirs.save_pretrained(tmp_path)
    ours = VisionModel.from_pretrained(tmp_path).double()
    theirs = theirs.double()
    images = pixels(theirs)
    with torch.no_grad():
        assert_equal(ours.train()(images).layers, predictions(theirs.train(), images), rotary=rotary)
        # In eval mode too, while the probability of a block is over a half.
        assert_equal(ours.eval()(images).layers, predictions(theirs.eval(), images)[-1:], rotary=rotary)
        theirs.attn_mask_probs.zero_()
        unmasked = predictions(theirs, images)[-1][0]
        assert (ours(images).layers[-1].pred_masks - unmasked).abs().max() > 0.1  # the comparison would notice


def test_shifted_rotary_positions_are_noticed(tmp_path: Path) -> None:
    theirs = oracle("dinov3")
    theirs.save_pretrained(tmp_path)
    ours = VisionModel.from_pretrained(tmp_path).double()
    images = pixels(theirs)
    ours.backbone.net.blocks[-1].attn.num_prefix_tokens -= 1
    with pytest.raises(RuntimeError), torch.no_grad():
        ours(images)
    ours.backbone.net.blocks[-1].attn.num_prefix_tokens += 1
    ours.backbone.net.rope.temperature = 10.0
    ours.backbone.net.rope.__init__(  # type: ignore[misc]
        dim=8, temperature=10.0, rotate_half=True, grid_indexing="ij", dtype=torch.float64
    )
    with pytest.raises(AssertionError), torch.no_grad():
        assert_equal(ours(images).layers, predictions(theirs.double(), images), rotary=True)


def test_a_timm_vit_goes_to_transformers_with_equal_predictions(tmp_path: Path) -> None:
    plain = {
        "backbone": {"type": "timm", "model_name": "vit_tiny_patch16_224", "img_size": [64, 64]},
        "neck": {"type": "none"},
        "head": {"type": "eomt", "num_queries": QUERIES, "num_blocks": BLOCKS},
        "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
    }
    ours = VisionModel(from_dict(plain, cls=VisionModelConfig)).eval()
    ours.head.mask_probability.zero_()
    ours.head._read_probabilities()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours.export_transformers(tmp_path)
    theirs = EomtForUniversalSegmentation.from_pretrained(tmp_path).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        (layer,) = ours.double()(images).layers
    ((masks, logits),) = predictions(theirs, images)
    torch.testing.assert_close(layer.pred_logits, logits, rtol=0, atol=1e-6)  # positions were added in float32
    torch.testing.assert_close(layer.pred_masks, masks, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "config.json").read_text())["vision_stack"]["categories"][1]["id"] == 7


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_register_tokens": 0}, "num_register_tokens: 0 is not built here"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ({"num_blocks": 9}, "head.num_blocks: 9, but the backbone has 4 blocks; give at most 3"),
    ],
)
def test_config_that_is_not_built_is_one_line(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    oracle("dinov2").save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ConfigError, match=problem):
        VisionModel.from_pretrained(tmp_path)


def test_weights_as_differences_are_refused_with_the_remedy(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    oracle("dinov2").save_pretrained(tmp_path)
    save_file({"network.encoder.backbone.cls_token": torch.zeros(1, 1, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"as differences to its weights; give the model in transformers' format"):
        VisionModel.from_pretrained(tmp_path)
