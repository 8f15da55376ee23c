"""Compiled blocks: the same losses and checkpoints, no graph of the frozen image tokenizer."""

import pytest
import torch
from conftest import build_tiny_model
from test_training import losses, recipes  # noqa: F401 - a fixture
from torch._dynamo.utils import counters

from evotok import EvoTokForConditionalGeneration, EvoTokVQModel
from evotok.training.compilation import compile_blocks
from evotok.training.recipes import read_recipe
from evotok.training.train import main


EAGER = "training.torch_compile_backend=eager"  # graphs without a compiler of C++


@pytest.mark.parametrize(("stage", "checkpointing"), [("tokenizer", "false"), ("gen", "true")])
def test_compiled_blocks_train_as_plain_ones(recipes, tmp_path, stage, checkpointing):  # noqa: F811
    words = [f"training.gradient_checkpointing={checkpointing}", "training.max_steps=3"]
    plain, compiled = str(tmp_path / "plain"), str(tmp_path / "compiled")
    assert main([str(recipes / f"{stage}.yaml"), *words, f"training.output_dir={plain}"]) == 0
    torch.compiler.reset()
    counters.clear()
    assert main([str(recipes / f"{stage}.yaml"), *words, EAGER, f"training.output_dir={compiled}"]) == 0
    assert 0 < counters["stats"]["unique_graphs"] <= 12 and not counters["graph_break"]
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    cls = EvoTokVQModel if stage == "tokenizer" else EvoTokForConditionalGeneration
    weights, expected = (cls.from_pretrained(folder).state_dict() for folder in (compiled, plain))
    assert weights.keys() == expected.keys()


def test_lengths_of_rows_share_graphs_and_the_image_tokenizer_is_left_out():
    model = build_tiny_model().train()
    assert compile_blocks(model, {}) == 0
    # 2 layers of the language model, 2 of the depth decoder; the tokenizer's are not among them.
    assert compile_blocks(model, {"torch_compile": True, "torch_compile_backend": "eager"}) == 4
    assert all(module._compiled_call_impl is None for module in model.model.vq_model.modules())
    torch.compiler.reset()
    counters.clear()
    graphs = []
    for length in (20, 27, 23, 31):
        ids = torch.randint(3, 100, (2, length))
        model(input_ids=ids, labels=ids).loss.backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] < graphs[1] == graphs[2] == graphs[3] and not counters["graph_break"]


def test_compiling_under_deepspeed_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stage: sft\ndata: {name: llava, path: a.json}\n")
    words = ["training.deepspeed=configs/deepspeed/zero2.json", "training.torch_compile=true"]
    with pytest.raises(ValueError, match="torch_compile: not under DeepSpeed.*leave one of them out"):
        read_recipe(path, words)
    assert read_recipe(path, words[1:]).training == {"torch_compile": True}
