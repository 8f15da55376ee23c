"""The chain of stages: the recipes for a GPU, here on a CPU with a few steps of tiny models."""

from pathlib import Path

import pytest
import yaml
from conftest import TINY_DEPTH, TINY_TEXT, TINY_VQ
from test_backbones_vision import TOWER

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.data.world.conversations import corpus
from evotok.training.backbones import language as language_stage
from evotok.training.backbones import vision as vision_stage
from evotok.training.chain import ORDER, main, read_chain
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.tokenizer import stage as tokenizer_stage


CONFIGS = Path(__file__).resolve().parents[1] / "configs/mini"
SHORT = ["training.max_steps=2", "training.save_steps=2", "training.per_device_train_batch_size=4"]
SHORT += ["training.dataloader_num_workers=0", "training.dataloader_prefetch_factor=null", "training.warmup_steps=1"]
SHORT += ["training.eval_strategy='no'", "training.report_to=none", "training.logging_steps=1"]
SHORT += ["data.sample_prompts=[]"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Returns a folder with recipes that differ from those for a GPU in sizes and folders."""
    monkeypatch.setattr(vision_stage, "EVALUATION_SCENES", 4)
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    monkeypatch.setattr(language_stage, "corpus", lambda world: corpus(world, 200))
    text = {k: v for k, v in TINY_TEXT.items() if k not in ("model_type", "vocab_size") and not k.endswith("token_id")}
    vq = {name: value for name, value in TINY_VQ.items() if name not in ("encoder_config", "semantic_feature_dim")}
    models = {
        "vision-shapes": {"config": TOWER},
        "vision": {"checkpoint": "vision-shapes", "config": TOWER},
        "language": {"text_tokenizer_size": 400, "config": text},
        "tokenizer": {"encoder_checkpoint": "vision", "config": vq},
        "pretrain": {"vq_checkpoint": "tokenizer", "language_model_checkpoint": "language"},
        "sft-keywords": {"checkpoint": "pretrain"},
        "sft": {"checkpoint": "sft-keywords"},
        "sft-places": {"checkpoint": "sft"},
        "gen-single": {"checkpoint": "sft-places"},
        "gen": {"checkpoint": "gen-single"},
        "gen-counts": {"checkpoint": "gen"},
    }
    models["pretrain"]["config"] = {"depth_decoder_config": TINY_DEPTH | {"hidden_dropout": 0.0}}
    (tmp_path / "recipes").mkdir()
    for name, model in models.items():
        model = {k: str(tmp_path / "runs" / v) if k.endswith("checkpoint") else v for k, v in model.items()}
        recipe = {"base": str(CONFIGS / "cuda" / f"{name}.yaml"), "model": model}
        recipe["training"] = {"output_dir": str(tmp_path / "runs" / name)}
        (tmp_path / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_chain_trains_every_stage_and_resumes(tiny):
    results = tiny / "results"
    assert main([str(tiny / "recipes"), *SHORT, "--results", str(results)]) == 0
    assert {path.name for path in results.iterdir()} == set(ORDER)
    for folder in results.iterdir():
        assert (folder / "config.json").is_file() and not list(folder.glob("checkpoint-*"))
    last = results / ORDER[-1]
    assert isinstance(EvoTokForConditionalGeneration.from_pretrained(last), EvoTokForConditionalGeneration)
    assert EvoTokProcessor.from_pretrained(last).image_processor.size["height"] == 64
    for name in ORDER[:-1]:
        (tiny / "recipes" / f"{name}.yaml").unlink()
    run = tiny / "runs" / ORDER[-1]
    ended = Path(last_complete_checkpoint(run)).stat().st_mtime_ns
    assert main([str(tiny / "recipes"), *SHORT]) == 0
    assert Path(last_complete_checkpoint(run)).stat().st_mtime_ns == ended, "a finished stage is kept"


def test_recipes_for_gpu_and_cpu_differ_in_speed_only():
    cpu, cuda = read_chain(CONFIGS), read_chain(CONFIGS / "cuda")
    stages = ["vision", "vision", "language", "tokenizer", "pretrain", "sft", "sft", "sft", "gen", "gen", "gen"]
    assert [recipe.stage for recipe in cuda] == stages
    for recipe, other in zip(cuda, cpu, strict=True):
        assert recipe.model.config == other.model.config and recipe.optimizer == other.optimizer
        assert recipe.data.mixture == other.data.mixture and recipe.loss == other.loss
        assert recipe.training["output_dir"].startswith("runs/mini-cuda/") and recipe.training["bf16"]
        assert recipe.training["dataloader_num_workers"] > 1
        batches = [r.training["per_device_train_batch_size"] for r in (recipe, other)]
        assert batches[0] > batches[1] and recipe.data.block in (1, batches[0])
        sources = [value for key, value in vars(recipe.model).items() if key.endswith("checkpoint") and value]
        assert set(sources) <= {earlier.training["output_dir"] for earlier in cuda}, "the chain itself writes them"
    assert 10 < sum(recipe.max_minutes for recipe in cuda) < 12


def test_chain_refuses_folders_without_recipes(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no recipe of a stage (vision-shapes.yaml" in capsys.readouterr().err
    (tmp_path / "gen.yaml").write_text("stage: gen\ntraining: {output_dir: out}\nmodel: {checkpoint: nowhere}\n")
    assert main([str(tmp_path)]) == 2
    assert "model.checkpoint: nowhere: no such folder" in capsys.readouterr().err
