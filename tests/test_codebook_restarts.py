"""Batches that are too small for a codebook are told of, and the paper's and the mini recipe's are not."""

import pytest
import torch

from evotok import EvoTokVQConfig
from evotok.modeling_evotok.quantization_evotok import EvoTokCodebook
from evotok.training.arguments import read_recipe
from evotok.training.codebook_restarts import restart_warning


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_the_shipped_recipes_settle_and_batches_of_one_do_not(name):
    recipe = read_recipe(f"configs/{name}/tokenizer.yaml")
    config = EvoTokVQConfig(**recipe.model.config)
    assert restart_warning(config, recipe.training["per_device_train_batch_size"] * recipe.gpus) is None
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
