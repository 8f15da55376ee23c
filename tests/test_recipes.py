"""Recipes: strict keys, overrides, bases, values out of range."""

import pytest

from evotok.training.recipes import read_recipe


def write(path, text):
    path.write_text(text)
    return path


def test_read_recipe_applies_overrides_with_their_types(tmp_path):
    recipe = write(tmp_path / "r.yaml", "stage: sft\ntraining: {learning_rate: 1.0e-3}\n")
    words = [
        "training.learning_rate=2e-5",
        "data.max_length=77",
        "model.config.text_config.hidden_size=8",
        "training.bf16=on",
        "training.gradient_checkpointing=no",
    ]
    read = read_recipe(recipe, words)
    assert read.training == {"learning_rate": 2e-5, "bf16": True, "gradient_checkpointing": False}
    assert read.data.max_length == 77 and read.model.config["text_config"]["hidden_size"] == 8


def test_read_recipe_merges_over_its_base(tmp_path):
    write(tmp_path / "base.yaml", "stage: gen\ndata: {max_length: 5, name: llava}\ntraining: {max_steps: 1}\n")
    recipe = write(tmp_path / "r.yaml", "base: base.yaml\ndata: {max_length: 6}\n")
    read = read_recipe(recipe)
    assert (read.stage, read.data.max_length, read.data.name, read.training) == ("gen", 6, "llava", {"max_steps": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {max_lenght: 5}", "unknown key 'max_lenght'. Did you mean 'max_length'"),
        ("training: {learning_rat: 5}", "unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        ("training: {bf16: maybe}", "bf16 must be bool, not 'maybe'"),
        ("los: {}", "unknown key 'los'"),
        ("data: 3", "give keys and values, not 3"),
        ("data: {name: mixture}", "data.name mixture and data.sources go together"),
        ("optimizer: {average_decay: 1.0}", "average_decay 1.0 is not in [0, 1)"),
        (
            "optimizer: {average_decay: 0.9}",
            "optimizer.average_decay is for the stage tokenizer, this is sft: remove it",
        ),
        ("data: {validation_path: images}", "data.validation_path is for the stage tokenizer, this is sft: remove it"),
        ("gpus: 0", "gpus 0 is not at least 1"),
        ("max_minutes: 0", "max_minutes 0 is not above 0"),
        ("training: {weight_decay: .inf}", "training.weight_decay is inf: give a finite number"),
        ("data: {caption_dropout: 2}", "data.caption_dropout must be from 0 to 1, not 2"),
    ],
)
def test_read_recipe_refuses_mistakes_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        read_recipe(write(tmp_path / "r.yaml", f"stage: sft\n{text}\n"))
    assert message in str(error.value) and "r.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["finetune", "[sft]", ""])
def test_read_recipe_refuses_unknown_stages(tmp_path, stage):
    with pytest.raises(ValueError, match=r"stage .* is not one of vision, language, tokenizer"):
        read_recipe(write(tmp_path / "r.yaml", f"stage: {stage}\n"))
