"""VisionModel: what `predict` takes, which dtypes it runs in, and what is refused as a checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import make_model

from vision_stack.config import ConfigError, from_dict
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.model import VisionModel
from vision_stack.structures import Instances, Target

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_predict_masks_of_a_pil_image_fit_its_array_whatever_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    Image.fromarray(IMAGE).save(tmp_path / "phone.png", exif=exif)
    model = make_model()
    with Image.open(tmp_path / "phone.png") as image:
        (as_held,) = model.predict(image, threshold=0.0)
        assert as_held.masks.shape[1:] == np.asarray(image).shape[:2] == (40, 56)
    (as_file,) = model.predict(tmp_path / "phone.png", threshold=0.0)
    assert as_file.masks.shape[1:] == (56, 40)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), {}, r"images: expected .* got array uint8 \[0, 5, 3\]"),
        (IMAGE, {"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        (IMAGE, {"top_k": -1}, "top_k: must be at least 1, got -1"),
        (IMAGE, {"threshold": 50}, "threshold: expected a score from 0 to 1, got 50"),
        (IMAGE, {"threshold": {"a": -0.1}}, "threshold.a: expected a score from 0 to 1, got -0.1"),
    ],
)
def test_predict_of_what_makes_no_sense_is_one_line(image, options, message):
    with pytest.raises(ValueError, match=message):
        make_model().predict(image, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_predict_by_a_model_of_another_dtype_finds_about_the_same(dtype):
    (expected,) = make_model().predict(IMAGE, threshold=0.0)
    (found,) = make_model().to(dtype).predict(IMAGE, threshold=0.0)
    assert len(found.scores) == len(expected.scores)
    # bfloat16 has eight bits, of which some thirty layers leave about four.
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert float(found.scores.sort().values.sub(expected.scores.sort().values).abs().max()) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_and_predictions_under_another_default_dtype(dtype):
    """Which Lightning sets for precision=64-true and bf16-true; what no model's dtype decides must not follow it."""
    model = make_model(loss=MaskCriterionConfig(mask_loss="point", num_points=64))
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :30], masks[1, 10:, 20:] = True, True
    target = Target(labels=torch.tensor([0, 1]), masks=masks, boxes=torch.tensor([[0, 0, 64, 30], [20, 10, 64, 64]]))
    images = torch.rand(1, 3, 64, 64)

    def losses(model, images):
        torch.manual_seed(0)
        return {name: x.item() for name, x in model.head.compute_loss(model(images), [target]).items()}

    expected = losses(model, images)
    torch.set_default_dtype(dtype)
    try:
        found = losses(model.to(dtype), images.to(dtype))
        (instances,) = model.predict(IMAGE, threshold=0.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, rel=0.1 if dtype == torch.bfloat16 else 1e-4)
    assert instances.masks.shape[1:] == IMAGE.shape[:2]


def test_checkpoints_that_are_none_are_refused_in_one_line(tmp_path):
    contents = {
        "text.ckpt": b"hello",
        "empty.ckpt": b"",
        "list.ckpt": [1, 2],
        "state.ckpt": {"model_config": {"task": "instance"}, "state_dict": 3},
        "other.ckpt": {"state_dict": {}},
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=r"cannot be read as weights|has no 'model_config'") as error:
            VisionModel.from_pretrained(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


def test_files_of_a_directory_lead_to_the_directory_and_errors_in_it_name_the_file(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: is one file of a model; give the directory"):
        VisionModel.from_pretrained(tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["head"]["num_querys"] = 3
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"config\.json: head\.num_querys: unknown"):
        VisionModel.from_pretrained(tmp_path)


def test_head_hears_of_sizes_and_targets_but_a_mask_head_needs_neither(monkeypatch):
    model = make_model()
    seen = []
    forward = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda *args: seen.append(args) or forward(*args))
    images = torch.rand(2, 3, 64, 96)
    target = Target(labels=torch.zeros(0).long(), boxes=torch.zeros(0, 4))
    model(images, image_sizes=[(60, 96), (64, 70)], targets=[target, target])
    model(images)
    (with_targets, targets), (without, none) = seen
    assert with_targets.size == without.size == (64, 96)
    assert with_targets.image_sizes == ((60, 96), (64, 70))
    assert without.image_sizes == ((64, 96), (64, 96))
    assert targets == [target, target]
    assert none is None
    assert [x.shape[1] for x in with_targets] == [spec.channels for spec in model.neck.out_specs]


def test_instances_subset_keeps_masks_of_whatever_form():
    boxes, labels, scores = torch.rand(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.5, 0.1])
    rles = [{"size": [2, 2], "counts": bytes([n])} for n in range(3)]
    forms = (None, rles, torch.eye(3, 4, dtype=torch.bool).view(3, 2, 2))
    for masks in forms:
        for index in (scores >= 0.5, torch.tensor([0, 1]), slice(2)):
            found = Instances(boxes, labels, scores, masks)[index]
            assert found.labels.tolist() == [0, 1]
            if masks is None:
                assert found.masks is None
            elif isinstance(masks, list):
                assert found.masks == rles[:2]
            else:
                assert torch.equal(found.masks, masks[:2])


def test_plain_transformer_gives_its_tokens_to_the_head():
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    backbone = from_dict({"type": "vit", **options}, "backbone").build()
    found = backbone(torch.rand(2, 3, 48, 64))
    assert found.tokens.shape == (2, 1 + 3 * 4, 32)
    assert make_model().backbone(torch.rand(1, 3, 64, 64)).tokens is None
