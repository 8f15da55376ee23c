"""LoRA adapters: trained by any stage, every way to load them gives the same model, merged or not."""

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
from evotok.training.multimodal.stages import load_checkpoint
from evotok.training.train import main
from evotok.training.trainer import EvoTokTrainer


peft = pytest.importorskip("peft")

MIXTURES = {"pretrain": {"caption": 1.0}, "sft": {"scene": 1.0}, "gen": {"t2i": 1.0}, "dpo": {"name": 1.0}}
MIXTURES["unified"] = {"scene": 0.5, "t2i": 0.5}


@pytest.fixture(scope="module")
def base(recipes):  # noqa: F811
    """Returns a model to add adapters to."""
    assert main([str(recipes / "gen.yaml"), f"training.output_dir={recipes / 'base'}", "training.max_steps=1"]) == 0
    return recipes / "base"


@pytest.fixture(scope="module")
def batch(base):
    """Returns the input images and generated images, with targets for both heads."""
    world = load_world()
    rows = [WorldConversations(world, 2, {kind: 1.0})[index] for kind in ("emoji", "t2i") for index in range(2)]
    return EvoTokCollator(EvoTokProcessor.from_pretrained(base))(rows)


def outputs(model, batch):
    with torch.no_grad():
        found = model.eval()(**batch)
    return torch.cat([found.logits.flatten(), found.image_loss[None]])


def train_adapters(stage, checkpoint, folder, **training):
    """Trains two steps of a stage from a checkpoint, or resumes in the folder."""
    training = TRAINING | {"max_steps": 2, "save_strategy": "no", "learning_rate": 0.05} | training
    sections = {"model": {"checkpoint": str(checkpoint)}, "data": {"mixture": MIXTURES[stage]}, "lora": {"r": 4}}
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump({"stage": stage, "training": training | {"output_dir": str(folder)}} | sections))
    assert main([str(recipe)]) == 0
    return str(folder)


@pytest.mark.parametrize(
    ("stage", "in_full"),
    [
        ("pretrain", {"semantic_projector"}),
        ("unified", {"semantic_projector", "pixel_projector", "depth_decoder"}),
        ("dpo", {"semantic_projector"}),
    ],
)
def test_trained_adapters_load_and_merge_to_the_same_model(base, batch, tmp_path, stage, in_full):
    adapters = train_adapters(stage, base, tmp_path / "adapters")
    assert set(peft.PeftConfig.from_pretrained(adapters).modules_to_save) == in_full
    # PEFT imports the class of the model itself, for which the package must be allowed.
    adapted = peft.AutoPeftModel.from_pretrained(adapters, import_allowlist=["evotok"])
    found = outputs(adapted, batch)
    plain = EvoTokForConditionalGeneration.from_pretrained(base)
    assert not torch.allclose(found, outputs(plain, batch), atol=1e-2), "nothing was learned"
    plain.load_adapter(adapters)
    torch.testing.assert_close(outputs(plain, batch), found, atol=0, rtol=0)
    for merged in (adapted.merge_and_unload(), load_checkpoint(adapters)):
        torch.testing.assert_close(outputs(merged, batch), found, atol=1e-4, rtol=1e-4)


def test_rounded_frozen_matrices_train_the_same_adapters_and_generate_samples(base, tmp_path, monkeypatch):
    from evotok.training.multimodal import lora

    found = {}
    for name in ("plain", "rounded"):
        if name == "plain":
            monkeypatch.setattr(lora, "round_frozen_matrices", lambda model: None)
        recipe = tmp_path / f"{name}.yaml"
        sections = {"model": {"checkpoint": str(base)}, "lora": {"r": 4}}
        sections["data"] = {"mixture": MIXTURES["gen"], "sample_prompts": ["a red heart"]}
        training = TRAINING | {"max_steps": 2, "save_steps": 2, "learning_rate": 0.05, "bf16": True}
        training["output_dir"] = str(tmp_path / name)
        recipe.write_text(yaml.safe_dump({"stage": "gen", "training": training} | sections))
        assert main([str(recipe)]) == 0
        monkeypatch.undo()
        assert (tmp_path / name / "samples" / "step-0000002.png").is_file()
        found[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert found["plain"].keys() == found["rounded"].keys()
    assert all(torch.equal(tensor, found["rounded"][name]) for name, tensor in found["plain"].items())


def test_frozen_matrices_are_those_of_the_language_model_below_the_adapters(base):
    from evotok.training.multimodal.lora import add_adapters, round_frozen_matrices

    model = EvoTokForConditionalGeneration.from_pretrained(base)
    adapted = add_adapters(model.requires_grad_(False), {"r": 4}, ["pixel_projector", "language_model"])
    round_frozen_matrices(adapted)
    half = {name for name, p in adapted.named_parameters() if p.dtype == torch.bfloat16}
    assert half and all("language_model" in name and "base_layer" in name for name in half)
    # 7 matrices in each of 2 layers, and the biases of q, k and v.
    assert sum(name.endswith("weight") for name in half) == 14 and len(half) == 20


@pytest.fixture(scope="module")
def sft(base, tmp_path_factory):
    """Returns adapters that a second stage starts from."""
    return train_adapters("sft", base, tmp_path_factory.mktemp("stages") / "sft")


def test_second_stage_keeps_the_adapters_of_the_first(base, sft, batch, tmp_path, monkeypatch):
    """The next stage, the commands and an export load the model that was in memory at its end."""
    ended, save = [], EvoTokTrainer.save_model

    def record(self, *args, **kwargs):
        ended.append(self.model)
        save(self, *args, **kwargs)

    monkeypatch.setattr(EvoTokTrainer, "save_model", record)
    second = train_adapters("gen", sft, tmp_path / "second")
    found = outputs(ended[-1], batch)
    assert peft.PeftConfig.from_pretrained(second).base_model_name_or_path == sft
    for loaded in (load_checkpoint(second), load_multimodal(second)[0]):
        torch.testing.assert_close(outputs(loaded, batch), found, atol=1e-4, rtol=1e-4)
    assert cli(["export", second, "--out", str(tmp_path / "export"), "--dtype", "float32"]) == 0
    exported = EvoTokForConditionalGeneration.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(outputs(exported, batch), found, atol=1e-4, rtol=1e-4)
    card = (tmp_path / "export/README.md").read_text()
    assert "base_model:" not in card and "PEFT" not in card, "the card is of the adapters"
    tokenizer, _ = load_tokenizer(second)
    expected = EvoTokForConditionalGeneration.from_pretrained(base).model.vq_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tokenizer.state_dict().items())
    assert len(find_checkpoint(second).weights) == 3


def test_adapters_of_another_model_are_refused(sft, tmp_path):
    """One lacks a tensor, one has a tensor without a module."""
    shutil.copytree(sft, tmp_path / "other")
    path = tmp_path / "other/adapter_model.safetensors"
    tensors = load_file(path)
    lost = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"adapters of another model, {re.escape(lost)} does not fit"):
        load_checkpoint(str(tmp_path / "other"))
    save_file(tensors | {f"{lost}.more": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="adapters of another model, .*more does not fit"):
        load_multimodal(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("base_name", "message"),
    [
        (None, "adapters without the name of their checkpoint"),
        ("runs/nowhere/sft", "which need the checkpoint that they were trained on: 'runs/nowhere/sft': no such folder"),
        ("other", "adapters that were trained on themselves"),
    ],
)
def test_export_refuses_adapters_without_their_base(sft, tmp_path, monkeypatch, capsys, base_name, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sft, "other")
    path = tmp_path / "other/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base_name}))
    assert cli(["export", "other", "--out", "export"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_convert_refuses_adapters(sft, tmp_path, capsys):
    assert cli(["convert", "--to-reference", sft, "--out", str(tmp_path / "out")]) == 2
    assert "adapters. `evotok export` them first" in capsys.readouterr().err


def test_load_tokenizer_refuses_adapters_on_it(base, tmp_path):
    model = EvoTokForConditionalGeneration.from_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules=r".*vq_model.*\.linear_1", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="adapters on the image tokenizer. `evotok export` it first"):
        load_tokenizer(str(tmp_path / "adapters"))


def test_training_of_adapters_resumes_bit_equal(base, tmp_path):
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = Path(train_adapters("gen", base, tmp_path / "whole", **training))
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
    resumed = Path(train_adapters("gen", base, tmp_path / "resumed", **training))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 4
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@needs_deepspeed
def test_training_with_offload_equals_training_without_it(base, tmp_path):
    """The DeepSpeed file is that for 24 GB, but with torch's AdamW: DeepSpeed's for CPUs must be compiled."""
    whole = Path(train_adapters("gen", base, tmp_path / "whole", save_strategy="steps", save_steps=1))
    settings = json.loads((ROOT / "configs/deepspeed/zero2-offload.json").read_text())
    (tmp_path / "offload.json").write_text(json.dumps(settings | {"zero_force_ds_cpu_optimizer": False}))
    words = [f"training.deepspeed={tmp_path / 'offload.json'}", f"training.output_dir={tmp_path / 'offload'}"]
    ended = Server(tmp_path).run(tmp_path / "whole.yaml", *words, ranks=1)
    assert ended.codes == [0], ended.output[-3000:]
    assert losses(tmp_path / "offload") == pytest.approx(losses(whole), rel=1e-4)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, tmp_path / "offload"))
    assert one.keys() == other.keys()
    for name in (name for name in one if "k_proj.bias" not in name):  # no loss depends on it: its gradient is rounding
        torch.testing.assert_close(other[name], one[name], atol=1e-4, rtol=1e-3, msg=name)
