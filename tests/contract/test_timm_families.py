"""Every family of timm as a backbone: a few on the meta device, all of them with real numbers on request.

    pytest -m slow tests/contract/test_timm_families.py      # the largest models take minutes each

`benchmarks/backbones.py --parts coverage` prints the same as a table, with what each model costs.
"""

import sys
from pathlib import Path

import pytest
import timm
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from timm_coverage import ODD_SIZE, backbone, families, measure, native_size, wrong_maps

# Those that need more than timm's own extractor and padding.
FEW = ["beit", "coat", "inception_v3", "levit", "mvitv2", "tresnet"]
# The misses: (module, at the odd size alone) and why.
MISSES = {
    "crossvit": (False, "stride=17"),  # 240 pixels resized to 224 by the model, then patches of 16: no whole stride
    "pit": (False, "stride=8"),  # patches of 16 at stride 8 without padding: 27 cells where stride 8 means 28
    "efficientformer": (True, "up to 224 x 224 pixels"),  # attention biases of 7 x 7 cells, whatever img_size says
    "levit": (True, "up to 224 x 224 pixels"),  # attention biases of 14 x 14 cells, no img_size
}
FAMILIES = {family.module: family for family in families()}


@pytest.mark.parametrize("module", FEW)
def test_timm_family_maps_at_both_sizes_are_as_declared(module):
    family = FAMILIES[module]
    for size in (native_size(family.model), ODD_SIZE):
        if size == ODD_SIZE and module in MISSES:  # levit
            continue
        with torch.device("meta"):
            net = backbone(family, size)
            assert wrong_maps(net, net(torch.zeros(1, 3, *size)).feature_maps, size) == ""


def test_timm_list_names_models_of_their_modules():
    assert all(family.model in timm.list_models(module=family.module) for family in FAMILIES.values())


def test_timm_misses_are_few_enough():
    at_native = sum(not odd_only for odd_only, _ in MISSES.values())
    assert 1 - at_native / len(FAMILIES) >= 0.97
    assert 1 - len(MISSES) / len(FAMILIES) >= 0.8


@pytest.mark.slow
def test_timm_list_has_every_module():
    assert set(FAMILIES) >= set(timm.list_modules()), "run python benchmarks/backbones.py --update-list"


@pytest.mark.slow
@pytest.mark.parametrize("module", FAMILIES)
def test_timm_family_is_as_declared_or_misses_for_the_listed_reason(module):
    family = FAMILIES[module]
    odd_only, reason = MISSES.get(module, (False, ""))
    native, odd = measure(family, native_size(family.model)).problem, measure(family, ODD_SIZE).problem
    assert native == "" if odd_only or not reason else reason in native
    assert reason in odd if odd_only else bool(odd) == bool(reason)
