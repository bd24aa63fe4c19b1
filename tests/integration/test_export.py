"""torch.export of whole models: saved, loaded, and run on other batches and sizes than those it was traced with."""

import io

import pytest
import torch
from tiny_run import TINY, compose_options
from torch.export import Dim

from vision_stack.config import from_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Category
from vision_stack.training.auto import fitting


def saved_and_loaded(model, multiple=32):
    """Exported for images whose edges are multiples of so many pixels."""
    sizes = {n: multiple * Dim(name, min=2, max=40) for n, name in ((2, "rows"), (3, "columns"))}
    images = torch.randn(2, 3, 2 * multiple, 3 * multiple)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch"), **sizes},), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")  # torch's, of shared weights
@pytest.mark.parametrize(("head", "neck"), [("mask2former", "ms_deform"), ("maskformer", "pixel_decoder")])
def test_exported_model_saved_and_loaded_takes_any_batch_and_size(head, neck):
    layers = ["neck.num_encoder_layers=1"] if neck == "ms_deform" else []  # tracing takes long
    options = compose_options("train", [*TINY, f"head={head}", f"neck={neck}", "neck.mask_channels=16", *layers])
    options = fitting(options, ())
    options["backbone"].pop("pretrained")
    parts = {kind: from_dict(options[kind], kind) for kind in ("backbone", "neck", "head")}
    torch.manual_seed(0)
    model = VisionModel(VisionModelConfig(**parts, categories=(Category(id=1, name="a"),))).eval()
    loaded = saved_and_loaded(model)
    for shape in ((3, 3, 96, 160), (1, 3, 128, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            outputs, expected = loaded(images), model(images)
        assert isinstance(outputs, MaskOutputs)
        torch.testing.assert_close(tuple(outputs), tuple(expected), rtol=1e-4, atol=1e-4)  # grid_sample: other sums


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")
@pytest.mark.parametrize(("backbone", "trained"), [("vit", 1.0), ("dinov3_vit", 1.0), ("vit", 0.1)])
def test_exported_eomt_takes_any_batch_and_size(backbone, trained):
    """With masked attention, too, which is there until the model was trained to the end."""
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    plain = {
        "backbone": {"type": backbone, **shape},
        "neck": {"type": "none"},
        "head": {"type": "eomt", "num_queries": 5, "num_blocks": 1},
        "categories": [{"id": 1, "name": "a"}],
    }
    torch.manual_seed(0)
    model = VisionModel(from_dict(plain, cls=VisionModelConfig)).eval()
    model.head.set_progress(trained, 1)
    loaded = saved_and_loaded(model)
    for size in ((3, 3, 96, 160), (1, 3, 128, 64)):
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)


TINY_DETR = {"num_heads": 2, "ffn_dim": 16}
TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
RESNET = {"type": "timm", "model_name": "test_resnet", "out_strides": [8, 16]}
WINDOWED = {"type": "rf_detr_dinov2", **TINY_VIT, "num_windows": 2, "out_indices": [2, 4]}
DETRS = {  # backbone, neck; tracing takes long
    "deformable_detr": (RESNET, {"type": "deformable_encoder", "num_encoder_layers": 1, **TINY_DETR}),
    "rt_detr": (RESNET, {"type": "hybrid_encoder", "num_blocks": 1, **TINY_DETR}),
    "d_fine": (RESNET, {"type": "hybrid_encoder", "num_blocks": 1, **TINY_DETR}),
    "deimv2": (
        {"type": "dinov3_vit", **TINY_VIT, "intermediate_size": 32, "out_indices": [1, 2, 3]},
        {"type": "spatial_tuning", "num_blocks": 1, **TINY_DETR},
    ),
    "rf_detr": (WINDOWED, {"type": "scale_projector"}),
}


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")
@pytest.mark.parametrize("head", DETRS)
def test_exported_detector_with_queries_takes_any_batch_and_size(head):
    backbone, neck = DETRS[head]
    plain = {
        "backbone": backbone,
        "neck": {**neck, "channels": 16},
        "head": {"type": head, "num_queries": 5, "hidden_dim": 16, "num_decoder_layers": 1, **TINY_DETR},
        "categories": [{"id": 1, "name": "a"}],
        "task": "detection",
    }
    torch.manual_seed(0)
    model = VisionModel(from_dict(plain, cls=VisionModelConfig)).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    multiple = 28 if backbone is WINDOWED else 32
    loaded = saved_and_loaded(model, multiple)
    for batch, rows, columns in ((3, 3, 5), (1, 4, 2)):
        images = torch.randn(batch, 3, rows * multiple, columns * multiple)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)
