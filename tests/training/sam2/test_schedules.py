"""Laws of the optimiser's options per parameter, and their equality with the original code's.

Run: SA2VA_TEST_DATA=... pytest tests/training/sam2/test_schedules.py
"""

import json
import math
from io import BytesIO

import pytest
import torch
import yaml
from golden import references
from torch import nn

from sa2va_hf.model.configuration_sa2va import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.training.sam2.schedules import LayerDecay, OptionScheduler, parameter_groups, read_schedule

FALLING = {"type": "cosine", "start": 5e-6, "end": 5e-7}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.trunk.pos_embed = nn.Parameter(torch.zeros(2))
        self.trunk.patch_embed = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)


def options(where=0.0, layer_decay=None, module=None, **schedules):
    groups = parameter_groups(module or Net(), schedules, layer_decay)
    return {name: group.options(where) for group in groups for name in group.names}


@pytest.mark.parametrize(
    ("given", "values"),  # at 0, 1/4, 1/2, 3/4
    [
        (0.1, [0.1] * 4),
        ({"type": "linear", "start": 1, "end": 0}, [1, 0.75, 0.5, 0.25]),
        ({"type": "cosine", "start": 1, "end": 0}, [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)]),
        ({"type": "polynomial", "start": 1, "power": 2}, [1, 0.5625, 0.25, 0.0625]),
        ({"type": "steps", "values": [3, 2, 1], "at": [0.25, 0.7]}, [3, 2, 2, 1]),
    ],
)
def test_schedules_at_quarters(given, values):
    schedule = read_schedule(given, "lr")
    assert [schedule(quarter / 4) for quarter in range(4)] == pytest.approx(values)


def test_a_warm_up_is_composed_in_yaml():
    text = """
    type: composite
    parts:
    - {share: 0.2, schedule: {type: linear, start: 0, end: 4e-5}}
    - {share: 0.3, schedule: {type: constant, value: 4e-5}}
    - {share: 0.5, schedule: {type: cosine, start: 4e-5, end: 0}, rescaled: false}
    """
    schedule = read_schedule(yaml.safe_load(text), "lr")
    found = [schedule(where) for where in (0.0, 0.1, 0.3, 0.5, 0.75)]
    assert found == pytest.approx([0, 2e-5, 4e-5, 2e-5, 2e-5 * (1 - math.sqrt(0.5))])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "sine"}, "lr: expected a number or .*cosine.*got"),
        ({"type": "cosine", "begin": 1}, "lr: cosine takes start, end"),
        ({"type": "steps", "values": [1, 2], "at": [0.1, 0.2]}, "one more value than rising shares"),
        ({"type": "composite", "parts": [{"share": 0.2, "schedule": 1}]}, "shares add up to 1, got"),
        ({"type": "composite", "parts": [{"share": 1, "schedule": "high"}]}, "part 1: expected a number"),
        (None, "lr: expected a number"),
    ],
)
def test_a_wrong_schedule_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        read_schedule(given, "lr")


def test_patterns_classes_and_layer_decay():
    decay = LayerDecay(0.5, "trunk", overrides={"*pos_embed*": 1.0})
    found = options(
        layer_decay=decay,
        lr=[{"schedule": 8.0}, {"match": ["trunk.*"], "schedule": 4.0}],
        weight_decay=[{"schedule": 0.1}, {"match": ["*bias*"], "modules": ["LayerNorm"], "schedule": 0.0}],
    )
    assert {name: option["lr"] for name, option in found.items() if "bias" not in name} == {
        "head.weight": 8.0,
        "norm.weight": 8.0,
        "trunk.pos_embed": 4.0,
        "trunk.blocks.1.weight": 2.0,
        "trunk.blocks.0.weight": 1.0,
        "trunk.patch_embed.weight": 0.5,
    }
    assert {name for name, option in found.items() if option["weight_decay"] == 0} == {
        "norm.weight",
        *(name for name in found if "bias" in name),
    }


def test_frozen_parameters_are_in_no_group():
    net = Net()
    net.trunk.requires_grad_(False)
    assert not any(name.startswith("trunk") for name in options(module=net, lr=[{"schedule": 1.0}]))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"schedule": 1}, {"schedule": 2}], "one entry without `match`"),
        ([{"schedule": 1, "match": ["head.*"]}], "one entry without `match`"),
        ([{"schedule": 1}, {"schedule": 2, "match": ["tail.*"]}], "entry 2: no parameter fits"),
        (
            [{"schedule": 1}, {"schedule": 2, "match": ["head.*"]}, {"schedule": 3, "match": ["*bias"]}],
            "entries 2 and 3 both fit head.bias",
        ),
        ([{"schedule": 1, "pattern": "head"}], "`lr` entry 1: expected"),
    ],
)
def test_entries_that_leave_it_open(entries, words):
    with pytest.raises(ValueError, match=words):
        options(lr=entries)


def test_the_scheduler_sets_all_options_and_goes_on_where_it_was():
    def make():
        net = Net()
        falling = {"type": "linear", "start": 1.0, "end": 0.0}
        groups = parameter_groups(net, {"lr": [{"schedule": falling}], "weight_decay": [{"schedule": falling}]})
        parameters = dict(net.named_parameters())
        optimizer = torch.optim.AdamW([{"params": [parameters[name] for name in group.names]} for group in groups])
        return optimizer, OptionScheduler(optimizer, groups, total_steps=4)

    def walk(optimizer, scheduler, count):
        seen = []
        for _ in range(count):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))
            optimizer.step()
            scheduler.step()
        return seen

    optimizer, scheduler = make()
    assert walk(optimizer, scheduler, 4) == [(x, x) for x in (1.0, 0.75, 0.5, 0.25)]
    first, scheduler = make()
    walk(first, scheduler, 2)
    torch.save(scheduler.state_dict(), buffer := BytesIO())
    buffer.seek(0)
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(torch.load(buffer))
    assert walk(second, resumed, 2) == [(0.5, 0.5), (0.25, 0.25)]


@pytest.mark.parametrize("name", ["tiny_MOSE", "base_plus_MOSE"])
def test_the_options_of_the_original(shared_data, name):
    golden = json.loads((references(shared_data) / "C_param_groups.json").read_text())[name]
    numbers = golden["settings"]
    sam2 = build_sam2(Sa2VAGroundingConfig(version="2.1", size=numbers["size"]))

    def falling(start):
        return {"type": "cosine", "start": start, "end": start / 10}

    groups = parameter_groups(
        sam2,
        {
            "lr": [
                {"schedule": falling(numbers["lr"])},
                {"match": ["image_encoder.*"], "schedule": falling(numbers["vlr"])},
            ],
            "weight_decay": [
                {"schedule": numbers["wd"]},
                {"match": ["*bias*"], "modules": ["LayerNorm"], "schedule": 0.0},
            ],
        },
        LayerDecay(numbers["decay"]),
    )
    of_name = {parameter: group for group in groups for parameter in group.names}
    assert set(of_name) == set(golden["params"])
    bases = {"base_lr": numbers["lr"], "vision_lr": numbers["vlr"]}
    for parameter, wanted in golden["params"].items():
        found = of_name[parameter].options(0.0)
        assert found["lr"] == pytest.approx(bases[wanted["base"]] * wanted["lr_scale"], rel=1e-9), parameter
        assert found["weight_decay"] == wanted["weight_decay"], parameter
    for moment in golden["schedule"]:
        for parameter, (rate, decay) in moment["lr_and_wd"].items():
            found = of_name[parameter].options(moment["where"])
            assert found["lr"] == pytest.approx(rate, rel=1e-9) and found["weight_decay"] == decay
