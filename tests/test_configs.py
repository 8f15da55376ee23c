"""Every shipped recipe is read, its model is built on the meta device, its training arguments are accepted."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    TrainingArguments,
)

from evotok import EvoTokForConditionalGeneration, EvoTokVQConfig, EvoTokVQModel
from evotok.data.sources import SOURCES
from evotok.data.world.scenes import CANVAS, PATCH
from evotok.training.chain import ORDER
from evotok.training.multimodal.stages import freeze_all_but, trainable_parts
from evotok.training.planning.configs import find_config, tokenizer_fields
from evotok.training.recipes import read_recipe
from evotok.training.stages import STAGES
from evotok.training.tokenizer.trainer import TERMS


ROOT = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path for scale in ("mini", "paper") for path in (ROOT / scale).rglob("*.yaml"))


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def test_shipped_recipes_cover_all_stages():
    mini = {path.stem for path in RECIPES if path.parent.name == "mini"}
    assert mini >= {*ORDER, "dpo"}
    assert {path.stem for path in RECIPES if path.parent.name == "cuda"} == set(ORDER)
    paper = {path.stem for path in RECIPES if path.parent.name == "paper"}
    assert paper == {"tokenizer", "pretrain", "sft", "gen-pretrain", "gen", "unified", "dpo"}
    assert {path.stem for path in RECIPES if path.parent.name == "low-memory"} == {"pretrain", "sft", "gen", "dpo"}


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_recipe_is_read_and_its_model_built(path, tmp_path):
    recipe = read_recipe(path)
    fields = {key: value for key, value in recipe.training.items() if key not in ("deepspeed", "bf16")}
    TrainingArguments(**fields | {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True})
    scale = path.relative_to(ROOT).parts[0]
    with torch.device("meta"):
        if recipe.stage == "vision":
            tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **recipe.model.config))
            assert tower.config.image_size == CANVAS and tower.config.patch_size == PATCH
            return
        if recipe.stage == "language":
            assert Qwen2ForCausalLM(Qwen2Config(vocab_size=1024, **recipe.model.config)).num_parameters() < 10e6
            return
        if recipe.stage == "tokenizer":
            model = EvoTokVQModel(EvoTokVQConfig(**tokenizer_fields(recipe, path)))
            assert set(TERMS) <= set(vars(recipe.loss))
            assert scale != "paper" or sum(p.numel() for p in model.parameters()) == 391_216_267
            assert scale != "mini" or (model.config.image_size, model.config.num_positions) == (64, 64)
            return
        model = EvoTokForConditionalGeneration(find_config(recipe, path))
    parts = trainable_parts(recipe)
    freeze_all_but(model, parts)
    assert not any(p.requires_grad for p in model.model.vq_model.parameters())
    assert any(p.requires_grad for p in model.parameters())
    assert (model.config.text_config.vocab_size == 1024) == (scale == "mini")


@pytest.mark.parametrize("path", [p for p in RECIPES if p.relative_to(ROOT).parts[0] == "paper"], ids=lambda p: p.stem)
def test_paper_recipes_name_sources_of_their_stage(path):
    recipe = read_recipe(path)
    tasks = {source.source: SOURCES[source.source].task for source in recipe.data.sources}
    expected = set(STAGES[recipe.stage].tasks) or {"images"}
    assert set(tasks.values()) == expected and recipe.training["max_steps"] > 0
    assert all(SOURCES[source.source].preferences == (recipe.stage == "dpo") for source in recipe.data.sources)
    # JSON sources are not streamed from the Hub: the recipe needs their path.
    assert all(source.path for source in recipe.data.sources if SOURCES[source.source].kind == "json")
    millions = sum(source.weight or 0 for source in recipe.data.sources)
    assert millions == pytest.approx({"sft": 13, "gen": 22, "unified": 35}.get(recipe.stage, millions), abs=0.1)


@pytest.mark.parametrize("path", sorted((ROOT / "deepspeed").glob("*.json")), ids=lambda path: path.name)
def test_deepspeed_files_leave_sizes_to_the_recipe(path):
    settings = json.loads(path.read_text())
    assert settings["train_micro_batch_size_per_gpu"] == settings["train_batch_size"] == "auto"
    assert settings["gradient_clipping"] == "auto" and "optimizer" not in settings
    assert settings["zero_optimization"]["stage"] in (2, 3)


def test_freeze_all_but_refuses_unknown_parts(fresh_model):
    with pytest.raises(ValueError, match="'projector' is no part of the model"):
        freeze_all_but(fresh_model, ["projector"])
