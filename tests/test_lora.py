"""Low-rank adapters: whatever stage trained them, every way to load them gives the same model, merged or not."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from drills import Server
from safetensors.torch import load_file, save_file
from test_training import ROOT, TRAINING, losses, needs_deepspeed, recipes  # noqa: F401 - a fixture

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.cli import main as cli
from evotok.commands.checkpoints import find_checkpoint, load_multimodal, load_tokenizer
from evotok.data.collators import EvoTokCollator
from evotok.data.world.conversations import WorldConversations
from evotok.data.world.icons import load_world
from evotok.training.multimodal.stages import _load_checkpoint
from evotok.training.train import main
from evotok.training.trainer import EvoTokTrainer


peft = pytest.importorskip("peft")

MIXTURES = {
    "pretrain": {"caption": 1.0},
    "sft": {"scene": 0.5, "emoji": 0.5},
    "gen": {"t2i": 1.0},
    "unified": {"scene": 0.5, "t2i": 0.5},
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
    world = load_world()
    records = [WorldConversations(world, 2, {kind: 1.0})[index] for kind in ("emoji", "t2i") for index in range(2)]
    return EvoTokCollator(EvoTokProcessor.from_pretrained(first))(records)


def outputs(model, batch):
    with torch.no_grad():
        found = model.eval()(**batch)
    return torch.cat([found.logits.flatten(), found.image_loss[None]])


def train_adapters(stage, checkpoint, folder, **training):
    """Two steps of a stage, from a checkpoint, or on from what lies in the folder."""
    training = TRAINING | {"max_steps": 2, "save_strategy": "no", "learning_rate": 0.05} | training
    sections = {"model": {"checkpoint": str(checkpoint)}, "data": {"mixture": MIXTURES[stage]}, "lora": {"r": 4}}
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump({"stage": stage, "training": training | {"output_dir": str(folder)}} | sections))
    assert main([str(recipe)]) == 0
    return str(folder)


@pytest.mark.parametrize("stage", MIXTURES)
def test_adapters_of_every_stage_load_and_merge(first, batch, tmp_path, stage):
    adapters = train_adapters(stage, first, tmp_path / "adapters")
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


@pytest.fixture(scope="module")
def sft(first, tmp_path_factory):
    """Adapters, to go on from."""
    return train_adapters("sft", first, tmp_path_factory.mktemp("stages") / "sft")


@pytest.mark.parametrize("stage", ["gen", "dpo"])
def test_the_second_stage_keeps_what_the_first_has_learnt(first, sft, batch, tmp_path, monkeypatch, stage):
    """What lay in memory at its end is what its folder gives, to the next stage, to the commands and as an export."""
    ended, save = [], EvoTokTrainer.save_model

    def noting(self, *args, **kwargs):
        ended.append(self.model)
        save(self, *args, **kwargs)

    monkeypatch.setattr(EvoTokTrainer, "save_model", noting)
    second = train_adapters(stage, sft, tmp_path / "second")
    found = outputs(ended[-1], batch)
    assert peft.PeftConfig.from_pretrained(second).base_model_name_or_path == sft
    for loaded in (_load_checkpoint(second), load_multimodal(second)[0]):
        torch.testing.assert_close(outputs(loaded, batch), found, atol=1e-4, rtol=1e-4)
    assert cli(["export", second, "--out", str(tmp_path / "export"), "--dtype", "float32"]) == 0
    exported = EvoTokForConditionalGeneration.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(outputs(exported, batch), found, atol=1e-4, rtol=1e-4)
    card = (tmp_path / "export/README.md").read_text()
    assert "base_model:" not in card and "PEFT" not in card, "the card is of the adapters"
    tokenizer, _ = load_tokenizer(second)
    expected = EvoTokForConditionalGeneration.from_pretrained(first).model.vq_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tokenizer.state_dict().items())
    assert len(find_checkpoint(second).weights) == 3


def test_adapters_of_another_model_are_refused(sft, tmp_path):
    """Tensors that have no place in the model, or places that have no tensor."""
    shutil.copytree(sft, tmp_path / "strange")
    path = tmp_path / "strange/adapter_model.safetensors"
    tensors = load_file(path)
    lost = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"adapters of another model, {re.escape(lost)} does not fit"):
        _load_checkpoint(str(tmp_path / "strange"))
    save_file(tensors | {f"{lost}.more": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="adapters of another model, .*more does not fit"):
        load_multimodal(str(tmp_path / "strange"))


@pytest.mark.parametrize(
    "base, said",
    [
        (None, "adapters without the name of their checkpoint"),
        ("runs/nowhere/sft", "what they were trained on is needed too: 'runs/nowhere/sft': no such folder"),
        ("", "adapters without the name"),
        ("strange", "adapters that were trained on themselves"),
    ],
)
def test_adapters_without_what_they_were_trained_on_are_one_line(sft, tmp_path, monkeypatch, capsys, base, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sft, "strange")
    path = tmp_path / "strange/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    assert cli(["export", "strange", "--out", "export"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    path.with_name("adapter_model.safetensors").unlink()
    assert cli(["export", "strange", "--out", "export"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_format_of_the_release_takes_no_adapters(sft, tmp_path, capsys):
    assert cli(["convert", "--to-reference", sft, "--out", str(tmp_path / "out")]) == 2
    assert "adapters. `evotok export` them first" in capsys.readouterr().err


def test_adapters_on_the_tokenizer_are_not_passed_over(first, tmp_path):
    model = EvoTokForConditionalGeneration.from_pretrained(first)
    config = peft.LoraConfig(r=4, target_modules=r".*vq_model.*\.linear_1", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="adapters on the image tokenizer. `evotok export` it first"):
        load_tokenizer(str(tmp_path / "adapters"))


def test_resumed_it_ends_like_a_run_that_was_not_broken(first, tmp_path):
    """To the last bit: adapters and what learns in full, from a checkpoint in the middle."""
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = Path(train_adapters("gen", first, tmp_path / "whole", **training))
    shutil.copytree(whole / "checkpoint-2", tmp_path / "broken/checkpoint-2")
    broken = Path(train_adapters("gen", first, tmp_path / "broken", **training))
    assert losses(broken) == losses(whole) and len(losses(whole)) == 4
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@needs_deepspeed
def test_with_the_optimizer_in_the_machines_memory_it_learns_the_same(first, tmp_path):
    """The engine of the recipes for 24 GB, but with torch's AdamW: DeepSpeed's own for CPUs would be compiled first."""
    whole = Path(train_adapters("gen", first, tmp_path / "whole", save_strategy="steps", save_steps=1))
    settings = json.loads((ROOT / "configs/deepspeed/zero2-offload.json").read_text())
    (tmp_path / "offload.json").write_text(json.dumps(settings | {"zero_force_ds_cpu_optimizer": False}))
    words = [f"training.deepspeed={tmp_path / 'offload.json'}", f"training.output_dir={tmp_path / 'offload'}"]
    ended = Server(tmp_path).run(tmp_path / "whole.yaml", *words, ranks=1)
    assert ended.codes == [0], ended.said[-3000:]
    assert losses(tmp_path / "offload") == pytest.approx(losses(whole), rel=1e-4)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, tmp_path / "offload"))
    assert one.keys() == other.keys()
    for name in (name for name in one if "k_proj.bias" not in name):  # no loss depends on it: its gradient is rounding
        torch.testing.assert_close(other[name], one[name], atol=1e-4, rtol=1e-3, msg=name)
