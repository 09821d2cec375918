"""Laws of the table of names: one line serves both directions, and what it does not cover is an error."""

import pytest
import torch

from sa2va_hf.checkpoints.rules import STACKED_QKV, Rule, common_rules, moves

RULES = [
    Rule("tower.{layer}.norm.{rest}", "blocks.{layer}.ln.{rest}"),
    Rule(("tower.{layer}.q.{rest}", "tower.{layer}.k.{rest}", "tower.{layer}.v.{rest}"), "blocks.{layer}.qkv.{rest}"),
    Rule("tower.{rest}", "blocks.{rest}"),
]


def pairs(names, rules=RULES):
    return {move.released: move.ours for move in moves(names, rules)}


def test_the_first_rule_that_fits_decides_and_carries_over_what_it_matched():
    names = ["tower.3.norm.weight", "tower.3.mlp.fc1.weight", "tower.head"]
    assert pairs(names) == {
        "blocks.3.ln.weight": ("tower.3.norm.weight",),
        "blocks.3.mlp.fc1.weight": ("tower.3.mlp.fc1.weight",),
        "blocks.head": ("tower.head",),
    }


def test_parts_of_one_tensor_are_brought_together_in_the_order_of_the_rule():
    names = [f"tower.{layer}.{letter}.{kind}" for kind in ("bias", "weight") for letter in "vqk" for layer in (0, 11)]
    found = pairs(names)
    assert set(found) == {f"blocks.{layer}.qkv.{kind}" for layer in (0, 11) for kind in ("bias", "weight")}
    assert found["blocks.11.qkv.bias"] == ("tower.11.q.bias", "tower.11.k.bias", "tower.11.v.bias")


def test_a_layer_is_one_part_of_a_name_and_dots_are_dots():
    assert pairs(["tower.a.b.norm.weight"]) == {"blocks.a.b.norm.weight": ("tower.a.b.norm.weight",)}
    with pytest.raises(ValueError, match="towerx.head.*no such tensor"):
        moves(["towerx.head"], RULES)


def test_what_the_table_cannot_place_is_named():
    with pytest.raises(ValueError, match="critic.weight.*no such tensor"):
        moves(["tower.head", "critic.weight"], RULES)
    with pytest.raises(ValueError, match="blocks.0.qkv.bias holds .* tower.0.k.bias is missing"):
        moves(["tower.0.q.bias", "tower.0.v.bias"], RULES)
    with pytest.raises(ValueError, match="tower.0.ln.w and tower.0.norm.w would both be called blocks.0.ln.w"):
        moves(["tower.0.norm.w", "tower.0.ln.w"], RULES)


def test_joining_is_undone_by_cutting_and_works_without_values():
    parts = [torch.randn(4, 3) for _ in range(3)]
    fused = STACKED_QKV.join(parts)
    assert all(torch.equal(a, b) for a, b in zip(STACKED_QKV.split(fused), parts, strict=True))
    assert STACKED_QKV.join([part.to("meta") for part in parts]).shape == (12, 3)


def test_two_mask_decoders_change_places():
    sam = "grounding_encoder.sam2_model."
    names = [f"{sam}sam_mask_decoder.iou_token.weight", "grounding_encoder.tracking_decoder.iou_token.weight"]
    one, two = common_rules(tracking_decoder=False), common_rules(tracking_decoder=True)
    assert pairs(names[:1], one) == {names[0]: (names[0],)}
    assert pairs(names, two) == {
        f"{sam}sam_mask_decoder_modified.iou_token.weight": (names[0],),
        names[0]: (names[1],),
    }
    with pytest.raises(ValueError, match="tracking_decoder.*no such tensor"):
        moves(names, one)
