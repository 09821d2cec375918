"""Laws of the command line: default < YAML < command line, and nothing that is mistyped goes unnoticed."""

from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import TrainingArguments

from sa2va_hf.arguments import ARGUMENTS, Sa2VATrainingArguments, parse, save_config
from sa2va_hf.training.dual_loop.arguments import DUAL_LOOP_ARGUMENTS
from sa2va_hf.training.sam2.arguments import Sam2TrainingArguments

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {CONFIGS / "shapes_tiny.yaml", CONFIGS / "shapes_boxes.yaml"}  # of make_shapes_tiny.py, no arguments
BASE = {"model_name_or_path": "some/model", "train_data": [{"path": "prepared"}]}


@pytest.fixture
def write(tmp_path):
    def write(name="run.yaml", text="", **values):
        path = tmp_path / name
        path.write_text(text or yaml.safe_dump({**BASE, "output_dir": str(tmp_path / "out"), **values}))
        return str(path)

    return write


def test_the_defaults_are_the_released_recipe(write):
    model, data, training = parse([write()])
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (4e-5, 0.05, 1.0)
    assert (training.adam_beta1, training.adam_beta2, training.warmup_steps) == (0.9, 0.999, 0.05)
    assert training.lr_scheduler_type == "cosine" and training.num_train_epochs == 1
    assert (model.lora_rank, model.lora_alpha, model.lora_dropout) == (128, 256, 0.05)
    assert (data.max_length, data.num_frames, data.max_expressions) == (8192, 5, 5)


def test_yaml_beats_the_defaults_and_the_command_line_beats_yaml(write):
    path = write(text="model_name_or_path: m\ntrain_data: d\nlearning_rate: 4e-4\nlora_rank: 8\nlora_targets: [a]\n")
    model, _, training = parse([path, "--lora_rank", "16", "--output_dir", str(Path(path).parent)])
    assert training.learning_rate == 4e-4 and isinstance(training.learning_rate, float)
    assert model.lora_rank == 16 and model.lora_alpha == 32 and model.lora_targets == ["a"]


def test_the_saved_yaml_gives_the_same_run(write):
    first = parse([write(eval_data="val", eval_strategy="steps", eval_steps=5), "--num_points", "0"])
    again = parse([str(save_config(first[2]))])
    assert again[0] == first[0] and again[1] == first[1]
    assert again[2].to_dict() == first[2].to_dict()


def test_secrets_are_not_written_down(write):
    training = parse([write(), "--hub_token", "hf_secret"])[2]
    assert "hf_secret" not in save_config(training).read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learing_rate": 1e-4}, r"run\.yaml: unknown key `learing_rate` \(did you mean `learning_rate`"),
        ({"learning_rate": "fast"}, r"run\.yaml: `learning_rate` expected a number, got 'fast' \(str\)"),
        ({"lora_rank": 1.5}, r"`lora_rank` expected a whole number, got 1\.5"),
        ({"lora_rank": True}, r"`lora_rank` expected a whole number, got True"),
        ({"train_vision": "yes please"}, r"`train_vision` expected true or false, got 'yes please'"),
        ({"lora_targets": "q_proj"}, r"`lora_targets` expected a list of text, got 'q_proj'"),
        ({"train_llm": "adapter"}, r"`train_llm` expected one of lora, full, none, got 'adapter'"),
        ({"eval_strategy": "often"}, r"`eval_strategy` expected one of no, steps, epoch"),
        ({"train_data": [{"path": "x", "repeat": 2}]}, r"`train_data` entry 1: unknown key `repeat`.*`repeats`"),
        ({"train_data": [{"path": "x", "repeats": "2x"}]}, r"entry 1: `repeats` expected a number, got '2x'"),
        ({"train_data": [{"path": "x", "repeats": 0}]}, r"`repeats` of x: expected a number above 0"),
        ({"train_data": [{"repeats": 2}]}, r"`train_data` entry 1: expected {path: DIR"),
        ({"train_data": []}, r"`train_data` is missing"),
        ({"train_data": "missing.yaml"}, r"missing\.yaml: no such file"),
        ({"eval_data": [{"path": "x", "repeats": 2}]}, r"`eval_data` x: every sample counts once, got `repeats: 2"),
        ({"eval_data": [{"path": "x", "samples": 9}]}, r"`eval_data` x: every sample counts once, got `samples: 9"),
        ({"lora_dropout": 1.0}, r"`lora_dropout`: expected a number in \[0, 1\)"),
        (
            {"object_score_loss_weight": 0.5, "train_grounding_encoder": "none"},
            r"`object_score_loss_weight`: the head that it trains is part of SAM 2",
        ),
        ({"model_name_or_path": None}, r"`model_name_or_path` is missing"),
        ({"remove_unused_columns": True}, r"`remove_unused_columns`: must stay False"),
    ],
)
def test_a_mistake_in_yaml_is_named(write, values, message):
    with pytest.raises(ValueError, match=message):
        parse([write(**values)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lora_rnak", "3"], r"command line: unknown argument '--lora_rnak' \(did you mean `lora_rank`"),
        (["--lora_ran", "3"], r"unknown argument '--lora_ran'"),  # no guessing at abbreviations
        (["--lora_rank", "many"], r"command line: argument --lora_rank"),
        (["second.yaml"], r"unknown argument 'second\.yaml'"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(write, argv, message):
    with pytest.raises(ValueError, match=message):
        parse([write(), *argv])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_rank: 1\nlora_rank: 2\n", r"key `lora_rank` is given twice"),
        ("- a\n- b\n", r"expected a mapping"),
        ("a: [1\n", r"not valid YAML"),
    ],
)
def test_a_broken_yaml_file_is_named(write, text, message):
    with pytest.raises(ValueError, match=message):
        parse([write(text=text)])


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.yaml")) - RECIPES), ids=lambda path: path.stem)
def test_every_shipped_config_parses(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    # Without a launcher there is no second rank for DeepSpeed to find; the file it names is looked at instead.
    kinds = DUAL_LOOP_ARGUMENTS if path.stem.startswith("dual_loop") else ARGUMENTS
    _, data, *_ = parse([str(path), "--deepspeed", ""], kinds)
    assert data.train_entries
    preset = yaml.safe_load(path.read_text()).get("deepspeed")
    assert preset is None or Path(preset).is_file()


def test_the_released_recipes_have_the_released_effective_batch_and_rank(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    for size, gpus, rank in (("2b", 16, 128), ("8b", 32, 256), ("14b", 32, 256)):
        model, data, training = parse([f"configs/sa2va_internvl3_{size}.yaml", "--deepspeed", ""])
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps * gpus == 256
        assert (model.lora_rank, model.lora_alpha) == (rank, 2 * rank)
        repeats = {part.path.rsplit("/")[-1]: part.repeats for part in data.train_entries}
        assert repeats["refcoco_train"] == 5 and repeats["revos_train"] == 10
        assert repeats["grand_f_train"] == (100 if size == "14b" else 50)


def stock_defaults():
    """(name, default) of every field of `TrainingArguments`."""
    return [
        (item.name, getattr(item.default, "value", item.default))
        for item in fields(TrainingArguments)
        if item.default is not MISSING and not isinstance(item.default, property)
    ]


def refused(name, value):
    return name in Sa2VATrainingArguments._FIXED and value != Sa2VATrainingArguments._FIXED[name][0]


def test_the_saved_yaml_is_the_run_for_every_default_of_transformers(write):
    """All of them at once: the values that equal a default of the base class are the ones that get lost."""
    values = {name: value for name, value in stock_defaults() if value is not None and not refused(name, value)}
    values |= {"report_to": "none", "output_dir": str(Path(write()).parent / "out")}
    assert values["learning_rate"] == 5e-5 and values["weight_decay"] == 0 and values["num_train_epochs"] == 3
    first = parse([write(**{name: value for name, value in values.items() if name not in ("local_rank", "debug")})])
    again = parse([str(save_config(first[2]))])
    assert again[2].to_dict() == first[2].to_dict()
    for name in ("learning_rate", "weight_decay", "num_train_epochs", "per_device_train_batch_size", "warmup_steps"):
        assert getattr(again[2], name) == values[name], name
    assert again[2].lr_scheduler_type == "linear" and again[2].average_tokens_across_devices is True


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"train_sampling_strategy": "sequential"}, "`train_sampling_strategy`: must stay random"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy`: must stay random"),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics`: must stay False"),
        ({"accelerator_config": '{"split_batches": true}'}, "`accelerator_config`: split_batches must stay False"),
        (
            {"accelerator_config": '{"dispatch_batches": true}'},
            "`accelerator_config`: dispatch_batches must stay False",
        ),
        ({"accelerator_config": {"even_batches": False}}, "`accelerator_config`: even_batches must stay True"),
        ({"fp16": True, "use_cpu": True}, "`fp16`: float16 needs a GPU"),
        ({"bf16_full_eval": True}, "`bf16_full_eval`: must stay False"),
        ({"enable_jit_checkpoint": True}, "`enable_jit_checkpoint`: must stay False"),
        pytest.param(
            {"dataloader_in_order": False},
            "`dataloader_in_order`: must stay True",
            marks=pytest.mark.skipif(
                "dataloader_in_order" not in dict(stock_defaults()), reason="transformers 5.3 has no such setting"
            ),
        ),
        ({"label_names": ["labels"]}, "`label_names`: must stay None"),
        ({"use_liger_kernel": True, "use_cpu": True}, "`use_liger_kernel`: its kernels need a GPU"),
    ],
)
@pytest.mark.parametrize("kind", [Sa2VATrainingArguments, Sam2TrainingArguments])
def test_a_setting_without_effect_is_refused_by_name(tmp_path, kind, setting, words):
    if kind is Sam2TrainingArguments and "use_liger_kernel" in setting:
        words = "`use_liger_kernel`: must stay False"
    with pytest.raises(ValueError, match=words):
        kind(output_dir=str(tmp_path), **setting)


def test_each_trainer_declares_only_arguments_that_it_reads():
    """What SAM 2 cannot do is unknown to it, not known and forbidden."""
    ours = {item.name for item in fields(Sa2VATrainingArguments)} - {item.name for item in fields(TrainingArguments)}
    assert {item.name for item in fields(Sam2TrainingArguments)} & ours == {"resolved", "eval_only"}


# engine: its refused flags; every other engine takes them.
REFUSED = {
    "ddp": {},
    "zero2": {},
    "zero3": {"count_flops": "ZeRO-3", "compile_layers": "ZeRO-3", "contrastive_weight": "ZeRO-3"},
    "fsdp": {"count_flops": "FSDP", "optim": "FSDP"},
}
FLAGS = {"count_flops": True, "compile_layers": True, "bad_samples": "skip", "nonfinite_loss": "skip", "optim": "sgd"}
FLAGS |= {"contrastive_weight": 0.1}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("engine", REFUSED)
def test_a_flag_that_cannot_work_with_an_engine_is_refused_by_name(tmp_path, monkeypatch, engine, flag):
    training = Sa2VATrainingArguments(str(tmp_path), **{flag: FLAGS[flag]})
    if engine == "fsdp":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    elif engine != "ddp":
        training.deepspeed_plugin = SimpleNamespace(zero_stage=int(engine[-1]))
    if flag not in REFUSED[engine]:
        training._refuse_for_engine()
        return
    with pytest.raises(ValueError, match=f"^`{flag}.*`: not with {REFUSED[engine][flag]} "):
        training._refuse_for_engine()
