"""`evotok plan --serve`: bytes and speeds computed by hand."""

import json
from pathlib import Path

import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration
from evotok.cli import main
from evotok.training.planning.gpus import GPUS
from evotok.training.planning.serving import plan_serving


CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(scope="module")
def paper():
    return plan_serving(CONFIGS / "paper/gen.yaml", [])


def test_plan_of_the_paper_equals_hand_computed_values(paper):
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(EvoTokConfig())
    tokenizer = sum(p.numel() for p in model.model.vq_model.parameters())
    assert paper.weights == pytest.approx(2 * (8_853_349_003 - tokenizer) + 4 * tokenizer, rel=1e-6)
    assert paper.cache_token == 2 * 2 * 28 * 4 * 128, "keys and values, bf16, of 28 layers, 4 heads of 128"
    assert paper.cache_image == 2 * (60 + 256) * paper.cache_token
    assert paper.cache_chat == (160 + 256) * paper.cache_token
    # Qwen2.5-7B without its embeddings, and four times the depth decoder, but its classifiers once.
    depth_layers, heads = 6 * 12 * 2560**2, 4 * 2560 * 32768
    assert paper.position_bytes == pytest.approx(2 * (6.53e9 + 4 * depth_layers + heads), rel=0.01)
    assert paper.token_bytes == pytest.approx(2 * 7.07e9, rel=0.01)


def test_speeds_are_limited_by_bandwidth_and_then_by_operations(paper):
    gpu = GPUS["h100"]
    alone = paper.images_a_second(1, gpu.memory_bandwidth, gpu.flops)
    cache = sum(2 * (60 + position) * paper.cache_token for position in range(256)) / 256
    assert alone == pytest.approx(3.35e12 / (256 * (paper.position_bytes + cache)), rel=1e-5)
    assert 1.9 < paper.images_a_second(2, gpu.memory_bandwidth, gpu.flops) / alone < 2, "weights are read once for both"
    many = paper.images_a_second(4096, 1e30, gpu.flops)
    assert many == pytest.approx(gpu.flops / (256 * 2 * paper.position_flops)), "a larger batch is no faster"
    assert paper.tokens_a_second(1, gpu.memory_bandwidth, gpu.flops) > 200
    assert paper.images_that_fit(paper.weights + 2.5 * paper.cache_image) == 2 and paper.images_that_fit(0) == 0


def test_plan_command_prints_both_tables_or_json(capsys):
    words = ["plan", str(CONFIGS / "paper/gen.yaml"), "--serve", "--gpu", "rtx4090", "--bandwidth", "500"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bandwidth"] == 500e9 and facts["images_that_fit"] > 10
    assert facts["batches"][0]["at_once"] == 1 and facts["batches"][0]["fits"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "images/s" in out and "cache of a chat about an image" in out and "At 500 GB/s" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/paper/tokenizer.yaml", "--serve"], "the stage tokenizer trains one part of the model"),
        (["configs/mini/gen.yaml", "--bandwidth", "10"], "--bandwidth requires --serve"),
    ],
)
def test_parts_of_the_model_are_not_served(words, message, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
