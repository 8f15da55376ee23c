"""Low-rank adapters: whatever stage trained them, every way to load them gives the same model, merged or not."""

import pytest
import torch
import yaml
from test_training import TRAINING, recipes  # noqa: F401 - a fixture

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.training.collators import EvoTokCollator
from evotok.training.emoji.dataset import EmojiTrainingSet
from evotok.training.emoji.world import EmojiWorld
from evotok.training.multimodal_stages import _load_checkpoint
from evotok.training.train import main


peft = pytest.importorskip("peft")

MIXTURES = {
    "pretrain": {"name": 1.0},
    "sft": {"name": 0.5, "count": 0.5},
    "gen": {"t2i": 1.0},
    "unified": {"name": 0.5, "t2i": 0.5},
    "dpo": {"name": 0.5, "count": 0.5},
}
IN_FULL = {
    "pretrain": {"semantic_projector"},
    "sft": {"semantic_projector"},
    "gen": {"pixel_projector", "depth_decoder"},
    "unified": {"semantic_projector", "pixel_projector", "depth_decoder"},
    "dpo": {"semantic_projector"},
}


@pytest.fixture(scope="module")
def first(recipes):  # noqa: F811
    """A model to put adapters on."""
    assert main([str(recipes / "gen.yaml"), f"training.output_dir={recipes / 'first'}", "training.max_steps=1"]) == 0
    return recipes / "first"


@pytest.fixture(scope="module")
def batch(first):
    """Images given and images written, with targets for both heads."""
    world = EmojiWorld()
    records = [EmojiTrainingSet(world, 2, {kind: 1.0})[index] for kind in ("name", "t2i") for index in range(2)]
    return EvoTokCollator(EvoTokProcessor.from_pretrained(first))(records)


def outputs(model, batch):
    with torch.no_grad():
        found = model.eval()(**batch)
    return torch.cat([found.logits.flatten(), found.image_loss[None]])


@pytest.mark.parametrize("stage", MIXTURES)
def test_adapters_of_every_stage_load_and_merge(first, batch, tmp_path, stage):
    adapters = str(tmp_path / "adapters")
    training = {"output_dir": adapters, "max_steps": 2, "save_strategy": "no", "learning_rate": 0.05}
    sections = {"model": {"checkpoint": str(first)}, "data": {"mixture": MIXTURES[stage]}, "lora": {"r": 4}}
    recipe = {"stage": stage, "training": TRAINING | training} | sections
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    assert set(peft.PeftConfig.from_pretrained(adapters).modules_to_save) == IN_FULL[stage]

    # PEFT imports the class of the model for itself: it must be told that it may.
    adapted = peft.AutoPeftModel.from_pretrained(adapters, import_allowlist=["evotok"])
    found = outputs(adapted, batch)
    plain = EvoTokForConditionalGeneration.from_pretrained(first)
    assert not torch.allclose(found, outputs(plain, batch), atol=1e-2), "nothing was learnt"
    plain.load_adapter(adapters)
    torch.testing.assert_close(outputs(plain, batch), found, atol=0, rtol=0)
    for merged in (adapted.merge_and_unload(), _load_checkpoint(adapters)):
        torch.testing.assert_close(outputs(merged, batch), found, atol=1e-4, rtol=1e-4)


def test_merged_adapters_are_a_checkpoint_like_any_other(first, batch, tmp_path):
    """Merged and saved, the folder opens without PEFT."""
    model = EvoTokForConditionalGeneration.from_pretrained(first)
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    found = outputs(adapted, batch)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    merged = EvoTokForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(outputs(merged, batch), found, atol=1e-4, rtol=1e-4)
