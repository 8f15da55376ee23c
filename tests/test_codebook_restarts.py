"""Batches that are too small for a codebook are told of, and the paper's and the mini recipe's are not."""

from pathlib import Path

import pytest
import torch
from test_training import recipes  # noqa: F401 - a fixture

from evotok import EvoTokVQConfig
from evotok.cli import main
from evotok.modeling_evotok.quantization_evotok import EvoTokCodebook
from evotok.training.planning.plan import tokenizer_fields
from evotok.training.recipes import read_recipe
from evotok.training.tokenizer.codebook_restarts import restart_warning
from evotok.training.train import train


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_the_shipped_recipes_settle_and_batches_of_one_do_not(name):
    path = Path("configs", name, "tokenizer.yaml")
    recipe = read_recipe(path)
    config = EvoTokVQConfig(**tokenizer_fields(recipe, path))
    assert restart_warning(config, recipe.training["per_device_train_batch_size"] * recipe.gpus) is None
    config.codebook_restart_threshold = 2.0
    warning = restart_warning(config, 1)
    assert "most are replaced at every step" in warning and len(warning.splitlines()) == 1


def test_most_entries_are_replaced_where_the_warning_says_so():
    config = EvoTokVQConfig(codebook_size=256, codebook_dim=4, codebook_restart_threshold=0.5)
    images = 64 / config.num_positions  # 64 vectors for 256 entries
    assert restart_warning(config, images) and restart_warning(config, 2 * images) is None
    torch.manual_seed(0)
    codebook = EvoTokCodebook(config)
    codebook.weight.data.normal_()
    for _ in range(300):
        vectors = torch.randn(64, 4)
        before = codebook.weight.clone()
        codebook.update(vectors, codebook(vectors))
    assert (codebook.cluster_size == 0.5).float().mean() > 0.5 and (codebook.weight != before).any(
        1
    ).float().mean() > 0.5


def test_no_restarts_need_no_batch():
    assert restart_warning(EvoTokVQConfig(codebook_restart_threshold=0), 1) is None


def test_a_plan_and_a_training_say_so(recipes, tmp_path, monkeypatch, caplog, capsys):  # noqa: F811
    """With two uses a step of every code, where three are due."""
    words = ["training.per_device_train_batch_size=1", "model.config.codebook_restart_threshold=3.0"]
    assert main(["plan", str(recipes / "tokenizer.yaml"), *words, "--gpus", "1"]) == 0
    assert "most are replaced at every step" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("evotok.training.tokenizer.stage.build_images", _stop)
    with pytest.raises(KeyError, match="as far as the data"):
        train(read_recipe(recipes / "tokenizer.yaml", [*words, f"training.output_dir={tmp_path}"]))
    assert "most are replaced at every step" in caplog.text


def _stop(*args):
    raise KeyError("as far as the data")
