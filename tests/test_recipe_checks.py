"""Checks of a recipe: fields of `TrainingArguments` without effect, and names of modules for LoRA."""

import re
import time
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from evotok.training import recipe_checks
from evotok.training.recipe_checks import check_module_names
from evotok.training.recipes import read_recipe
from evotok.training.train import training_arguments


WORLD = {"name": "world"}
MIXTURE = {"name": "mixture", "sources": [{"source": "llava-next", "path": "a"}]}
LORA = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def recipe(tmp_path, *words, stage="sft", data=None):
    path = tmp_path / "r.yaml"
    path.write_text(f"stage: {stage}\ndata: {data or {'name': 'llava', 'path': 'a.json'}}\n")
    return read_recipe(path, list(words))


@pytest.mark.parametrize(
    ("stage", "data", "words", "reason"),
    [
        ("sft", None, "training.label_smoothing_factor=0.1", "plain cross-entropies"),
        ("gen", None, "training.fsdp=full_shard", "training.deepspeed"),
        ("sft", None, "training.eval_strategy=steps", "validates nothing"),
        ("sft", None, "training.save_strategy=best", "validates nothing"),
        ("tokenizer", WORLD, "training.bf16_full_eval=true", "of images, not of logits"),
        ("vision", WORLD, "training.neftune_noise_alpha=5.0", "embeddings of text"),
        ("tokenizer", WORLD, "training.lr_scheduler_type=reduce_lr_on_plateau", "no metric to follow"),
        ("gen", WORLD, "training.num_train_epochs=2", "set training.max_steps"),
        ("gen", WORLD, "training.max_steps=-1", "set training.max_steps"),
        ("gen", MIXTURE, "training.data_seed=3", "training.seed"),
        ("gen", MIXTURE, "training.train_sampling_strategy=group_by_length", "an order of its own"),
        ("sft", None, "training.optim=adafactor optimizer.name=muon", "optimizer.name muon selects the optimizer"),
    ],
)
def test_fields_without_effect_are_refused(tmp_path, stage, data, words, reason):
    with pytest.raises(ValueError, match=reason) as error:
        recipe(tmp_path, *words.split(), stage=stage, data=data)
    assert len(str(error.value).splitlines()) == 1 and words.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("stage", "data", "word"),
    [
        ("tokenizer", WORLD, "eval_strategy=steps"),
        ("vision", WORLD, "lr_scheduler_type=reduce_lr_on_plateau"),
        ("sft", None, "num_train_epochs=2"),
        ("sft", None, "train_sampling_strategy=sequential"),
        ("sft", None, "optim=adafactor"),
        ("sft", None, "label_smoothing_factor=0.0"),
        ("sft", None, "eval_strategy=no"),
        ("sft", None, "push_to_hub=false"),
    ],
)
def test_fields_with_an_effect_and_neutral_values_are_accepted(tmp_path, stage, data, word):
    assert recipe(tmp_path, f"training.{word}", stage=stage, data=data).training


def test_tables_name_fields_of_training_arguments():
    known = {f.name for f in fields(TrainingArguments)}
    names = ("_ANYWHERE", "_IMAGES", "_MULTIMODAL", "_ENDLESS", "_STREAM", "_MUON")
    for name in names:
        assert getattr(recipe_checks, name).keys() <= known, name


def test_strategies_accept_no(tmp_path):
    words = ["training.save_strategy=no", "training.logging_strategy=no", f"training.output_dir={tmp_path}"]
    arguments = training_arguments(recipe(tmp_path, *words))
    assert arguments.save_strategy == arguments.logging_strategy == "no"


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": LORA, "modules_to_save": ["semantic_projector"], "rank_pattern": None},
        {"target_modules": ["q_proj", "layers.0.mlp"], "exclude_modules": r".*\.k_proj", "layers_pattern": "layers"},
        {"target_modules": {"q_proj"}, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {}},
    ],
)
def test_check_module_names_accepts_plain_names(config):
    check_module_names(config, "lora")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", "(a+)+$"),
        ("target_modules", r"(.*)*x"),
        ("target_modules", ".*.*.*.*x"),
        ("target_modules", "a" * 501),
        ("target_modules", ["q_proj", "(a+)+$"]),
        ("target_modules", 3),
        ("modules_to_save", [".*"]),
        ("rank_pattern", {"(.+)+x": 4}),
    ],
)
def test_check_module_names_refuses_patterns(key, value):
    with pytest.raises(ValueError, match=f"lora: {key} should be plain names of modules, not .*: write them out"):
        check_module_names({key: value}, "lora")


def test_accepted_patterns_match_in_short_time():
    start = time.process_time()
    for pattern in (LORA, ".*a.*b.*c"):
        check_module_names({"target_modules": pattern}, "lora")
        assert not re.fullmatch(pattern, "language_model.abc." * 20)
    assert time.process_time() - start < 2
