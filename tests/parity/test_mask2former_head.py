"""Mask2Former's decoder against transformers' transformer module, same random weights: every prediction of it."""

import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

from vision_stack.heads.mask2former import Mask2FormerHead, Mask2FormerHeadConfig
from vision_stack.structures import FeatureSpec

DIM, QUERIES, LAYERS = 32, 9, 5
STRIDES = (4, 8, 16, 32)


def build_oracle() -> Mask2FormerTransformerModule:
    config = Mask2FormerConfig(
        hidden_dim=DIM,
        feature_size=DIM,
        mask_feature_size=DIM,
        num_attention_heads=4,
        dim_feedforward=64,
        decoder_layers=LAYERS + 1,  # counts the prediction before the first layer
        num_queries=QUERIES,
        enforce_input_projection=True,
        dropout=0.0,
    )
    torch.manual_seed(0)
    module = Mask2FormerTransformerModule(DIM, config).eval()
    for name, p in module.named_parameters():
        if p.ndim == 1:
            p.data.normal_(mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.3)
        else:
            p.data.normal_(std=1.0 if "quer" in name or "level" in name else 1.5 * p[0].numel() ** -0.5)
    return module


def convert(oracle: Mask2FormerTransformerModule) -> dict[str, Tensor]:
    state = {}
    for name, ours in (("queries_embedder", "query_embed"), ("queries_features", "query_feat")):
        state[f"{ours}.weight"] = oracle.get_submodule(name).weight
    state["level_embed.weight"] = oracle.level_embed.weight
    rename(state, "decoder_norm", oracle.decoder.layernorm)
    for i, projection in enumerate(oracle.input_projections):
        rename(state, f"input_projections.{i}", projection)
    linears = [m for m in oracle.decoder.mask_predictor.modules() if isinstance(m, nn.Linear)]
    for i, linear in enumerate(linears):
        rename(state, f"mask_embed.layers.{i}", linear)
    for i, layer in enumerate(oracle.decoder.layers):
        place = f"layers.{i}"
        for part, weight, bias in zip(
            "qkv", layer.cross_attn.in_proj_weight.chunk(3), layer.cross_attn.in_proj_bias.chunk(3), strict=True
        ):
            state[f"{place}.cross_attn.{part}_proj.weight"], state[f"{place}.cross_attn.{part}_proj.bias"] = (
                weight,
                bias,
            )
            rename(state, f"{place}.self_attn.{part}_proj", layer.self_attn.get_submodule(f"{part}_proj"))
        rename(state, f"{place}.cross_attn.out_proj", layer.cross_attn.out_proj)
        rename(state, f"{place}.self_attn.out_proj", layer.self_attn.out_proj)
        rename(state, f"{place}.ffn.linear1", layer.fc1)
        rename(state, f"{place}.ffn.linear2", layer.fc2)
        rename(state, f"{place}.cross_attn_norm", layer.cross_attn_layer_norm)
        rename(state, f"{place}.self_attn_norm", layer.self_attn_layer_norm)
        rename(state, f"{place}.ffn_norm", layer.final_layer_norm)
    return state


def rename(state: dict[str, Tensor], place: str, module: nn.Module) -> None:
    state |= {f"{place}.{name}": p for name, p in module.named_parameters()}


def build_ours(oracle: Mask2FormerTransformerModule) -> Mask2FormerHead:
    specs = (FeatureSpec("mask_features", DIM, 4), *(FeatureSpec(f"p{s}", DIM, s) for s in STRIDES[1:]))
    config = Mask2FormerHeadConfig(
        num_queries=QUERIES,
        hidden_dim=DIM,
        num_heads=4,
        ffn_dim=64,
        num_decoder_layers=LAYERS,
        enforce_input_projection=True,
    )
    head = config.build(specs, num_classes=3).eval()
    missing, unexpected = head.load_state_dict(convert(oracle), strict=False)
    assert unexpected == []
    assert set(missing) == {"class_embed.weight", "class_embed.bias"}  # which is outside of the module there
    return head


@torch.no_grad()
def largest_difference(head: Mask2FormerHead, oracle: Mask2FormerTransformerModule, size: tuple[int, int]) -> float:
    """Over masks and hidden states (by the class head) of all predictions, in units of their spread."""
    generator = torch.Generator().manual_seed(1)
    mask_features, *levels = (
        torch.randn(2, DIM, -(-size[0] // s), -(-size[1] // s), generator=generator) for s in STRIDES
    )
    theirs = oracle(levels[::-1], mask_features)
    ours = head((mask_features, *levels))
    differences = []
    for layer, (masks, hidden) in enumerate(
        zip(theirs.masks_queries_logits, theirs.intermediate_hidden_states, strict=True)
    ):
        own = torch.einsum("bqc,bchw->bqhw", ours.all_mask_embed[layer], mask_features)
        assert masks.std() >= 1  # else a missing part could hide in the tolerance
        differences.append(((own - masks).abs().max() / masks.std()).item())
        logits = head.class_embed(hidden.transpose(0, 1))
        differences.append(((ours.all_logits[layer] - logits).abs().max() / logits.std()).item())
    assert len(differences) == 2 * (LAYERS + 1)
    return max(differences)


@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_mask2former_head_every_prediction_equals_transformers(size):
    oracle = build_oracle()
    # float32 through five layers; no attention mask's threshold flips with these seeds
    assert largest_difference(build_ours(oracle), oracle, size) < 1e-4


def test_mask2former_head_with_unmasked_attention_is_found_out():
    oracle = build_oracle()
    head = build_ours(oracle)
    head._attend = lambda hidden, resized: torch.ones(len(hidden), QUERIES, resized.shape[2], dtype=torch.bool)
    assert largest_difference(head, oracle, (96, 128)) > 1e-2
