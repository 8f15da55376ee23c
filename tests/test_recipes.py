"""Recipes: strict keys, overrides, bases; every shipped one parses."""

import pytest

from evotok.training.recipes import read_recipe


def write(path, text):
    path.write_text(text)
    return path


def test_overrides_reach_nested_keys_with_their_types(tmp_path):
    recipe = write(tmp_path / "r.yaml", "stage: sft\ntraining: {learning_rate: 1.0e-3}\n")
    words = [
        "training.learning_rate=2e-5",
        "data.max_length=77",
        "model.config.text_config.hidden_size=8",
        "training.bf16=true",
    ]
    read = read_recipe(recipe, words)
    assert read.training == {"learning_rate": 2e-5, "bf16": True}
    assert read.data.max_length == 77 and read.model.config["text_config"]["hidden_size"] == 8


def test_a_base_is_laid_under(tmp_path):
    write(tmp_path / "base.yaml", "stage: gen\ndata: {max_length: 5, name: llava}\ntraining: {max_steps: 1}\n")
    recipe = write(tmp_path / "r.yaml", "base: base.yaml\ndata: {max_length: 6}\n")
    read = read_recipe(recipe)
    assert (read.stage, read.data.max_length, read.data.name, read.training) == ("gen", 6, "llava", {"max_steps": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: sft\ndata: {max_lenght: 5}\n", "unknown key 'max_lenght'. Did you mean 'max_length'"),
        ("stage: sft\ntraining: {learning_rat: 5}\n", "unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        ("stage: sft\nlos: {}\n", "unknown key 'los'"),
        ("stage: finetune\n", "stage 'finetune' is not one of"),
        ("stage: [\n", "not YAML"),
        ("- 1\n", "no recipe: give keys"),
        ("stage: sft\ndata: 3\n", "give keys and values, not 3"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        read_recipe(write(tmp_path / "r.yaml", text))
    assert message in str(error.value) and "r.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["data.max_length", "=5", "stage.x=1"])
def test_overrides_of_the_wrong_form_are_refused(tmp_path, word):
    with pytest.raises(ValueError, match="override"):
        read_recipe(write(tmp_path / "r.yaml", "stage: sft\n"), [word])


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
