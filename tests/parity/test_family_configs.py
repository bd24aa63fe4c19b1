"""Configs of families as files: transformers reads from ours what it reads from its own."""

import json

import pytest
import transformers
from family_parity import CASES

from vision_stack.backbones.config_json import transformers_families

# Fields of pretraining, and those that ours writes to fit the other options where a case leaves the default.
LEFT_OUT = {
    "hgnet_v2": ("embedding_size", "hidden_sizes", "depths", "stage_downsample_strides"),
    "rf_detr_dinov2": ("use_mask_token",),  # only in pretraining
    "lw_detr_vit": ("image_size",),
}


@pytest.mark.parametrize("name", CASES)
def test_family_config_saved_here_is_the_same_to_transformers_as_its_own(name, tmp_path):
    case = CASES[name]
    theirs = case.model.config_class(**case.options)
    config = transformers_families()[theirs.model_type].from_transformers(json.loads(theirs.to_json_string()))
    config.save_pretrained(tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(read) is type(theirs)
    expected = {
        key: value for key, value in theirs.to_dict().items() if key not in ("transformers_version", "_name_or_path")
    }
    if name == "vit":  # no backbone there, so that it says nothing of stages
        expected |= {"out_features": config.out_features, "out_indices": config.out_indices}
    for key in LEFT_OUT.get(theirs.model_type, ()):
        del expected[key]
    found = read.to_dict()
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()}
    assert {key: list(found[key]) if isinstance(found[key], tuple) else found[key] for key in listed} == listed
