"""Fields of `TrainingArguments`: every one works, or is refused in one line where it would be without effect."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from evotok.training import trainer_options
from evotok.training.arguments import read_recipe
from evotok.training.multimodal_stages import build_data
from evotok.training.train import training_arguments
from evotok.training.yaml_reading import _parse


MIXTURE = {"name": "mixture", "sources": [{"source": "llava-next", "path": "a"}]}


def recipe(tmp_path, *words, stage="sft", data=None):
    path = tmp_path / "r.yaml"
    path.write_text(f"stage: {stage}\ndata: {data or {'name': 'llava', 'path': 'a.json'}}\n")
    return read_recipe(path, list(words))


REFUSED = [
    ("sft", None, "label_smoothing_factor=0.1", "plain cross-entropies"),
    ("tokenizer", {"name": "emoji"}, "label_smoothing_factor=0.1", "plain cross-entropies"),
    ("dpo", {"name": "emoji"}, "label_smoothing_factor=0.1", "plain cross-entropies"),
    ("sft", None, "use_liger_kernel=true", "no kernels"),
    ("gen", None, "torch_compile=true", "change their shape"),
    ("gen", None, "tf32=true", "all bits of float32"),
    ("gen", None, "fsdp=full_shard", "training.deepspeed"),
    ("gen", None, "auto_find_batch_size=true", "evotok plan"),
    ("gen", None, "save_only_model=true", "could not go on"),
    ("gen", None, "resume_from_checkpoint=a", "by itself"),
    ("gen", None, "push_to_hub=true", "hf upload"),
    ("gen", None, "remove_unused_columns=true", "columns that no model knows"),
    ("sft", None, "eval_strategy=steps", "validates nothing"),
    ("sft", None, "load_best_model_at_end=true", "validates nothing"),
    ("sft", None, "save_strategy=best", "validates nothing"),
    ("tokenizer", {"name": "emoji"}, "bf16_full_eval=true", "of images, not of logits"),
    ("tokenizer", {"name": "emoji"}, "neftune_noise_alpha=5.0", "embeddings of text"),
    ("tokenizer", {"name": "emoji"}, "lr_scheduler_type=reduce_lr_on_plateau", "no metric to follow"),
    ("gen", {"name": "emoji"}, "num_train_epochs=2", "set training.max_steps"),
    ("gen", {"name": "emoji"}, "max_steps=-1", "set training.max_steps"),
    ("gen", MIXTURE, "data_seed=3", "training.seed"),
    ("gen", MIXTURE, "train_sampling_strategy=group_by_length", "an order of its own"),
]


@pytest.mark.parametrize(("stage", "data", "word", "reason"), REFUSED, ids=[f"{r[0]} {r[2]}" for r in REFUSED])
def test_what_would_have_no_effect_is_refused(tmp_path, stage, data, word, reason):
    with pytest.raises(ValueError, match=reason) as error:
        recipe(tmp_path, f"training.{word}", stage=stage, data=data)
    assert len(str(error.value).splitlines()) == 1 and word.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("stage", "data", "word"),
    [
        ("tokenizer", {"name": "emoji"}, "eval_strategy=steps"),
        ("tokenizer", {"name": "emoji"}, "load_best_model_at_end=true"),
        ("sft", None, "num_train_epochs=2"),
        ("sft", None, "data_seed=3"),
        ("sft", None, "train_sampling_strategy=sequential"),
        ("sft", None, "neftune_noise_alpha=5.0"),
        ("sft", None, "label_smoothing_factor=0.0"),
        ("sft", None, "eval_strategy=no"),
        ("sft", None, "push_to_hub=false"),
        ("tokenizer", {"name": "emoji", "distinct": 8}, "num_train_epochs=2"),
    ],
)
def test_what_has_an_effect_or_asks_for_nothing_is_taken(tmp_path, stage, data, word):
    assert recipe(tmp_path, f"training.{word}", stage=stage, data=data).training


def test_muon_is_an_optimizer_of_its_own(tmp_path):
    assert recipe(tmp_path, "training.optim=adafactor")
    with pytest.raises(ValueError, match="optimizer.name muon is another one"):
        recipe(tmp_path, "training.optim=adafactor", "optimizer.name=muon")


def test_the_tables_name_fields_that_exist():
    known = {f.name for f in fields(TrainingArguments)}
    tables = [value for name, value in vars(trainer_options).items() if name.isupper() and isinstance(value, dict)]
    assert len(tables) >= 6
    for table in tables:
        assert table.keys() <= known


def test_a_training_without_end_says_how_long_it_is(tmp_path):
    endless = recipe(tmp_path, data={"name": "emoji"})  # says nothing, which is -1
    with pytest.raises(ValueError, match="samples of emoji never end: set training.max_steps"):
        build_data(endless, training_arguments(endless), None)


# --- words of YAML 1.1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["no", "No", "off", "on", "yes", "y", "n"])
def test_words_of_yaml_1_1_are_words(word):
    assert _parse(f"a: {word}", "x") == {"a": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.0e-05", 1e-5), ("-3", -3), ("010", 10), ("0x1F", 31), ("0o17", 15), (".5", 0.5),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'no'", "no"), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), (".inf", float("inf")), ("nan", "nan"),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(text, value):
    read = _parse(f"a: {text}", "x")["a"]
    assert read == value and type(read) is type(value)


def test_a_strategy_may_be_no(tmp_path):
    for word in ("training.save_strategy=no", "training.logging_strategy=no"):
        read = recipe(tmp_path, word, "training.max_steps=1", f"training.output_dir={tmp_path}")
        name = word.partition("=")[0].removeprefix("training.")
        assert getattr(training_arguments(read), name) == "no"


def test_truth_values_may_be_words(tmp_path):
    words = ["training.gradient_checkpointing=no", "training.bf16=no", "loss.adversarial_adaptive=on"]
    read = recipe(tmp_path, *words)
    assert read.training == {"gradient_checkpointing": False, "bf16": False} and read.loss.adversarial_adaptive is True
    with pytest.raises(ValueError, match="bf16 must be bool, not 'maybe'"):
        recipe(tmp_path, "training.bf16=maybe")
