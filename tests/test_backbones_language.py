"""The language stage: its model and tokenizer, from which the multimodal stages start."""

import shutil

import pytest
import torch
import yaml
from conftest import TINY_DEPTH, TINY_TEXT, TINY_VQ
from safetensors.torch import load_file
from test_training import TRAINING, losses
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.data.world.conversations import corpus
from evotok.training.backbones import language as language_stage
from evotok.training.backbones.language import padded_rows
from evotok.training.multimodal.stages import build_multimodal
from evotok.training.recipes import Recipe
from evotok.training.train import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a recipe and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("language")
    sizes = {k: v for k, v in TINY_TEXT.items() if k not in ("model_type", "vocab_size") and not k.endswith("token_id")}
    training = TRAINING | {"max_steps": 4, "save_steps": 2, "output_dir": str(folder / "whole")}
    recipe = {
        "stage": "language",
        "model": {"text_tokenizer_size": 400, "config": sizes},
        "data": {"mixture": {"text": 0.5, "text_t2i": 0.5}},
        "training": training,
    }
    (folder / "language.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_stage, "corpus", lambda world: corpus(world, 200))
        assert main([str(folder / "language.yaml")]) == 0
    return folder


def test_language_stage_saves_a_transformers_checkpoint(whole):
    model = AutoModelForCausalLM.from_pretrained(whole / "whole")
    tokenizer = AutoTokenizer.from_pretrained(whole / "whole")
    assert type(model) is Qwen2ForCausalLM and model.config.vocab_size == padded_rows(len(tokenizer)) == 448
    assert len(tokenizer) == 400 and tokenizer.eos_token == "<|im_end|>"
    text = "a red heart left of a blue star on a yellow background"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) < 30
    assert model(torch.tensor([ids])).logits.shape[-1] == 448
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_language_stage_resumes_bit_equal(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(language_stage, "corpus", lambda world: corpus(world, 200))
    shutil.copytree(whole / "whole/checkpoint-2", tmp_path / "checkpoint-2")
    assert main([str(whole / "language.yaml"), f"training.output_dir={tmp_path}"]) == 0
    assert losses(tmp_path) == losses(whole / "whole")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole / "whole", tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = load_file(whole / "whole/checkpoint-2/model.safetensors")
    assert not torch.equal(start["model.norm.weight"], one["model.norm.weight"])


def test_multimodal_model_is_built_on_the_language_model(whole, tmp_path):
    EvoTokVQModel(EvoTokVQConfig(**TINY_VQ)).save_pretrained(tmp_path)
    recipe = Recipe("pretrain")
    recipe.model.vq_checkpoint = str(tmp_path)
    with pytest.raises(ValueError, match="give model.language_model_checkpoint, a causal language model"):
        build_multimodal(recipe)
    recipe.model.language_model_checkpoint = str(whole / "whole")
    recipe.model.config = {"depth_decoder_config": TINY_DEPTH}
    model, processor = build_multimodal(recipe)
    given = AutoModelForCausalLM.from_pretrained(whole / "whole").state_dict()
    for name, tensor in model.model.language_model.state_dict().items():
        assert torch.equal(tensor, given[f"model.{name}"]), name
    tokenizer = processor.tokenizer
    assert len(tokenizer) == 400 and model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id
