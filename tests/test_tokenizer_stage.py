"""The tokenizer stage as a whole: resuming, two processes, the average of the weights, validation, teacher, LPIPS."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY_VQ
from safetensors.torch import load_file
from test_training import TRAINING, VQ, losses, run
from torch import nn
from transformers import AutoModel, SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.data.world.icons import load_world
from evotok.data.world.images import held_out_scenes, scene_pixels
from evotok.eval.reconstruction import evaluate_reconstruction
from evotok.eval.teachers import SiglipTeacher, build_lpips
from evotok.training.recipes import Recipe, read_recipe
from evotok.training.tokenizer import trainer as tokenizer_trainer
from evotok.training.tokenizer.ema import AveragedTokenizer
from evotok.training.tokenizer.losses import adaptive_weight
from evotok.training.tokenizer.stage import (
    HELD_OUT_SCENES,
    build_images,
    build_perceptual,
    build_teacher,
    build_tokenizer,
    build_validation,
)
from evotok.training.tokenizer.trainer import TokenizerTrainer
from evotok.training.train import main


RECIPE = {
    "stage": "tokenizer",
    "model": {"config": VQ},
    "loss": {
        "perceptual": 0.0,
        "semantic": 0.0,
        "adversarial": 0.1,
        "adversarial_adaptive": True,
        "adversarial_start_step": 2,
        "discriminator_channels": 8,
        "discriminator_learning_rate": 1e-3,
    },
    "optimizer": {"average_decay": 0.9},
    "training": TRAINING
    | {"lr_scheduler_type": "cosine", "warmup_steps": 1, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 6},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe with all that the stage can do but for teachers."""
    path = tmp_path_factory.mktemp("recipe") / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The folder of a run from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([str(recipe), f"training.output_dir={folder}"]) == 0
    return folder


def same(one, other):
    """Whether two states hold the same numbers, to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def history(folder):
    return json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]


# --- resuming ------------------------------------------------------------------------------------------------------


def test_everything_resumes_to_the_bit(recipe, whole, tmp_path):
    """Weights, their average, codebooks, discriminator, both optimizers and both schedules."""
    shutil.copytree(whole / "checkpoint-3", tmp_path / "checkpoint-3")
    assert main([str(recipe), f"training.output_dir={tmp_path}"]) == 0
    assert losses(tmp_path) == losses(whole)
    first, second = whole / "checkpoint-6", tmp_path / "checkpoint-6"
    for name in ("model", "average", "discriminator"):
        assert same(load_file(first / f"{name}.safetensors"), load_file(second / f"{name}.safetensors")), name
    for name in ("optimizer", "scheduler", "discriminator_optimizer"):
        states = [torch.load(folder / f"{name}.pt", weights_only=True) for folder in (first, second)]
        assert same(*states), name
    moved = load_file(whole / "checkpoint-3" / "discriminator.safetensors")
    assert not same(moved, load_file(first / "discriminator.safetensors"))


def test_the_discriminator_has_schedule_and_warmup_of_its_own_steps(whole):
    """It begins with step 3 of 6: one step of warm-up, then a cosine down to nothing, as the weights do in theirs."""
    rates = {}
    for step in (3, 6):
        folder = whole / f"checkpoint-{step}"
        theirs = torch.load(folder / "discriminator_optimizer.pt", weights_only=True)["scheduler"]
        ours = torch.load(folder / "scheduler.pt", weights_only=True)
        assert (theirs["last_epoch"], ours["last_epoch"]) == (step - 2, step)
        rates[step] = theirs["_last_lr"][0], ours["_last_lr"][0]
    assert rates[3] == pytest.approx((1e-3, 1e-3 * (1 + math.cos(math.pi * 2 / 5)) / 2))
    assert rates[6] == pytest.approx((0.0, 0.0))


def test_a_run_without_an_average_or_a_discriminator_goes_on_with_both(recipe, tmp_path, caplog):
    words = [str(recipe), f"training.output_dir={tmp_path}"]
    assert main([*words, "training.max_steps=3", "optimizer.average_decay=0", "loss.adversarial=0"]) == 0
    assert not list((tmp_path / "checkpoint-3").glob("*average*")) and "passed over" not in caplog.text
    assert main(words) == 0
    assert "no average of the weights in it" in caplog.text and "no discriminator in it" in caplog.text
    assert (tmp_path / "checkpoint-6" / "discriminator.safetensors").is_file()
    assert load_file(tmp_path / "checkpoint-6" / "average.safetensors")["n_averaged"] == 3


# --- two processes -------------------------------------------------------------------------------------------------


def test_two_processes_learn_what_one_does(recipe, tmp_path):
    """Of the same global batch: losses, the codebooks' statistics, discriminator, average and validation."""
    # A restart draws random vectors of the batch, on two processes other ones.
    steps = ["training.max_steps=4", "training.save_steps=4", "model.config.codebook_restart_threshold=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([str(recipe), f"training.output_dir={one}", *steps]) == 0
    run([recipe, f"training.output_dir={two}", *steps, "training.per_device_train_batch_size=2"], nproc=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name in ("model", "average", "discriminator"):
        expected, found = (load_file(folder / "checkpoint-4" / f"{name}.safetensors") for folder in (one, two))
        for key in (key for key in expected if "k_proj.bias" not in key):  # no loss depends on it: rounding moves it
            torch.testing.assert_close(found[key], expected[key], atol=1e-4, rtol=1e-3, msg=f"{name}: {key}")
    counted = load_file(two / "checkpoint-4" / "model.safetensors")["quantizer.codebooks.0.cluster_size"]
    assert counted.sum().item() == pytest.approx(4 * 64 * (1 - 0.99**4), rel=1e-4)  # of the global batch, not a share
    evaluated = [entry for entry in history(one / "checkpoint-4") if "eval_usage_min" in entry][-1]
    shared = [entry for entry in history(two / "checkpoint-4") if "eval_usage_min" in entry][-1]
    names = [name for name in evaluated if name.startswith("eval_")]
    assert [shared[name] for name in names] == pytest.approx([evaluated[name] for name in names], rel=1e-3)


# --- the average ---------------------------------------------------------------------------------------------------


def tiny(**fields):
    torch.manual_seed(0)
    return EvoTokVQModel(EvoTokVQConfig(**TINY_VQ | fields))


def test_the_average_moves_by_its_share_and_less_of_it_stays_at_first():
    model = tiny(codebook_keeps_sums=True)
    average = AveragedTokenizer(model, decay=0.5)
    weight, before = model.pixel_decoder.conv_out.weight, model.pixel_decoder.conv_out.weight.detach().clone()
    expected = before
    for step, decay in enumerate((0.0, 2 / 11, 3 / 12, 4 / 13)):
        weight.data += 1
        model.quantizer.codebooks[0].cluster_size += 1
        average.update_parameters(model)
        expected = decay * expected + (1 - decay) * (before + step + 1)
        torch.testing.assert_close(average.module.pixel_decoder.conv_out.weight, expected)
    for _ in range(20):
        average.update_parameters(model)
    expected = weight.detach().clone()
    weight.data += 1
    average.update_parameters(model)
    torch.testing.assert_close(average.module.pixel_decoder.conv_out.weight, expected + 0.5)
    codebook = average.module.quantizer.codebooks[0]
    assert torch.equal(codebook.cluster_size, model.quantizer.codebooks[0].cluster_size)
    assert torch.equal(codebook.vector_sum, codebook.weight * codebook.cluster_size[:, None])


def test_the_average_of_an_entry_begins_anew_where_it_is_restarted():
    model = tiny(codebook_restart_threshold=0.5, codebook_warmup_steps=0)
    average = AveragedTokenizer(model, decay=0.9)
    for codebook in model.quantizer.codebooks:
        codebook.cluster_size.fill_(3.0)
    average.update_parameters(model)
    codebook, averaged = model.quantizer.codebooks[1], average.module.quantizer.codebooks[1]
    before = averaged.weight.clone()
    vectors = torch.full((8, codebook.weight.shape[1]), 5.0)
    codebook.cluster_size[7] = 0.1  # not chosen by any vector below
    codebook.update(vectors, torch.zeros(8, dtype=torch.long))
    average.follow_restarts(model)
    assert torch.equal(averaged.weight[7], vectors[0])
    assert torch.equal(averaged.weight[:7], before[:7])
    average.update_parameters(model)
    assert torch.equal(averaged.weight[7], vectors[0])
    assert not torch.equal(averaged.weight[0], before[0])


def test_the_finished_model_is_the_average_and_validation_is_of_it(whole):
    finished = EvoTokVQModel.from_pretrained(whole)
    average = load_file(whole / "checkpoint-6" / "average.safetensors")
    weights = load_file(whole / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(average[f"module.{name}"], tensor) for name, tensor in finished.state_dict().items())
    assert not torch.equal(weights["pixel_decoder.conv_out.weight"], finished.pixel_decoder.conv_out.weight)
    logged = [entry for entry in history(whole / "checkpoint-6") if "eval_usage_min" in entry]
    assert [entry["step"] for entry in logged] == [3, 6]
    assert (whole / "samples" / "step-0000006.png").is_file()
    images = scene_pixels(load_world(), held_out_scenes(load_world(), "val", HELD_OUT_SCENES))
    expected = evaluate_reconstruction(finished, images.split(64), with_ssim=True)
    usage, perplexity = expected.pop("usage"), expected.pop("perplexity")
    assert set(expected) == {"psnr_depth1", "psnr_depth2", "ssim_depth1", "ssim_depth2"}
    for name, value in expected.items():
        assert logged[-1][f"eval_{name}"] == pytest.approx(value, rel=1e-5), name
    assert [logged[-1][f"eval_usage_level{level}"] for level in (1, 2, 3, 4)] == usage
    assert [logged[-1][f"eval_perplexity_level{level}"] for level in (1, 2, 3, 4)] == pytest.approx(perplexity)
    assert logged[-1]["eval_usage_min"] == min(usage)


@pytest.mark.parametrize("word", ["optimizer.average_decay=1.0", "optimizer.average_decay=-0.1"])
def test_a_share_beyond_its_limits_is_refused(recipe, word):
    with pytest.raises(ValueError, match=r"average_decay .* is not in \[0, 1\)"):
        read_recipe(recipe, [word])


@pytest.mark.parametrize("word", ["optimizer.average_decay=0.9", "data.validation_path=images"])
def test_other_stages_refuse_what_is_the_tokenizers(word):
    path = Path(__file__).resolve().parents[1] / "configs/mini/gen.yaml"
    with pytest.raises(ValueError, match="is for the tokenizer stage, this is gen: remove it"):
        read_recipe(path, [word])


# --- the adversarial weight ----------------------------------------------------------------------------------------


def test_the_adaptive_weight_makes_both_gradients_equally_long():
    layer = torch.randn(3, 4, requires_grad=True)
    pixel, adversarial = (3 * layer).square().sum(), (layer * torch.arange(4.0)).sum()
    factor = adaptive_weight(pixel, adversarial, layer)
    assert not factor.requires_grad
    (wanted,) = torch.autograd.grad(pixel, layer, retain_graph=True)
    (found,) = torch.autograd.grad(factor * adversarial, layer)
    assert found.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-3)
    assert adaptive_weight(pixel, 0 * layer.sum(), layer, limit=50.0).item() == 50


def test_the_factor_is_logged_only_where_it_is_adaptive(recipe, whole, tmp_path):
    logged = [entry for entry in history(whole / "checkpoint-6") if "adversarial" in entry]
    assert logged and all(entry["adversarial_factor"] > 0 for entry in logged)
    assert main([str(recipe), f"training.output_dir={tmp_path}", "loss.adversarial_adaptive=false"]) == 0
    fixed = history(tmp_path / "checkpoint-6")
    assert not any("adversarial_factor" in entry for entry in fixed)
    first = [[e["loss"] for e in log if "loss" in e] for log in (fixed, history(whole / "checkpoint-6"))]
    assert first[0][:2] == first[1][:2] and first[0][2] != first[1][2]


def test_batches_that_are_accumulated_count_as_one(recipe, tmp_path):
    """The discriminator too takes one step for all of them."""
    steps = ["training.max_steps=3", "training.save_steps=3", "training.gradient_accumulation_steps=2"]
    assert main([str(recipe), f"training.output_dir={tmp_path}", *steps]) == 0
    state = torch.load(tmp_path / "checkpoint-3" / "discriminator_optimizer.pt", weights_only=True)
    assert state["scheduler"]["last_epoch"] == 1 and state["optimizer"]["state"][0]["step"] == 1


# --- validation ----------------------------------------------------------------------------------------------------


def test_validation_takes_no_more_images_at_once_than_the_recipe_says(recipe, tmp_path, monkeypatch):
    """In fp32, and within the memory that training was planned for."""
    sizes = []

    def noting(model, batches, *args, **kwargs):
        sizes.append([len(batch) for batch in batches])
        return evaluate_reconstruction(model, batches, *args, **kwargs)

    monkeypatch.setattr(tokenizer_trainer, "evaluate_reconstruction", noting)
    words = ["training.per_device_eval_batch_size=5", "training.eval_steps=1", "training.max_steps=1"]
    assert main([str(recipe), f"training.output_dir={tmp_path}", *words]) == 0
    assert max(sizes[0]) == 5 and sum(sizes[0]) > 64


def test_evaluation_needs_images(tmp_path):
    arguments = TrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=1, use_cpu=True, report_to="none")
    recipe = Recipe("tokenizer")
    recipe.data.name = "folder"
    with pytest.raises(ValueError, match=r"give data\.validation_path"):
        build_validation(recipe, 32, arguments)


def test_images_of_the_world_have_one_size(tmp_path):
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none")
    assert len(build_images(Recipe("tokenizer"), arguments, 64)) == 16
    with pytest.raises(ValueError, match="image_size 32, but images of the embedded world have 64"):
        build_images(Recipe("tokenizer"), arguments, 32)
    arguments.max_steps = -1
    with pytest.raises(ValueError, match="training.max_steps -1: set it"):
        build_images(Recipe("tokenizer"), arguments, 64)


# --- teacher and perceptual networks -------------------------------------------------------------------------------


def test_siglip_is_read_once_and_its_first_weights_are_the_teachers(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    source = SiglipVisionModel(config).eval()
    source.save_pretrained(tmp_path)
    read, load = [], AutoModel.from_pretrained.__func__
    monkeypatch.setattr(
        AutoModel, "from_pretrained", classmethod(lambda cls, *a, **k: read.append(a) or load(cls, *a, **k))
    )
    recipe = Recipe("tokenizer")
    recipe.model.encoder_checkpoint = str(tmp_path)
    fields = {name: value for name, value in TINY_VQ.items() if name not in ("encoder_config", "semantic_feature_dim")}
    recipe.model.config = fields
    model = build_tokenizer(recipe)
    teacher = build_teacher(recipe, model)
    assert len(read) == 1
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = source(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(teacher(pixels), expected)
    for parameter in model.vision_tower.parameters():
        parameter.data += 1
    assert torch.equal(teacher.train()(pixels), expected)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.tower.training
    # A tokenizer that has been trained is no teacher any more.
    recipe.model.checkpoint = "trained"
    assert torch.equal(build_teacher(recipe, model)(pixels), expected) and len(read) == 2
    assert not any("head" in name for name, _ in SiglipTeacher.from_pretrained(str(tmp_path)).named_parameters())


@pytest.mark.parametrize("field", ["teacher", "perceptual_network"])
def test_networks_that_are_not_known_are_refused(field):
    recipe = Recipe("tokenizer")
    setattr(recipe.loss, field, "nothing")
    with pytest.raises(ValueError, match=rf"loss\.{field} 'nothing' is not one of"):
        build_teacher(recipe, tiny()) if field == "teacher" else build_perceptual(recipe, None, torch.device("cpu"))


def vgg16(weights=None):
    """The layers of VGG16 with random weights, as torchvision builds them."""
    layers, width = [], 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    return SimpleNamespace(features=nn.Sequential(*layers))


def test_lpips_looks_through_the_weights_that_are_there(tmp_path, monkeypatch):
    """torchvision is played by one module, that knows VGG16; LPIPS's own weights come with torchmetrics."""
    pytest.importorskip("torchmetrics")
    import torchmetrics.functional.image.lpips as functional
    import torchmetrics.image.lpip as modular

    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(vgg16=vgg16, VGG16_Weights=SimpleNamespace(DEFAULT="IMAGENET1K_V1"))
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    for module in (functional, modular):
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af.pth: python -c .* fetches them, or set loss") as missing:
        build_lpips()
    assert str(tmp_path) in str(missing.value) and "\n" not in str(missing.value)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").touch()
    lpips = build_perceptual(Recipe("tokenizer"), None, torch.device("cpu"))
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    fake = (real + 0.5).requires_grad_()  # beyond 1, as reconstructions may be
    distance = lpips(fake, real)
    assert len(distance) == 2 and (distance > 0).all() and lpips(real, real).abs().max() < 1e-6
    distance.mean().backward()
    assert fake.grad.abs().max() > 0 and not any(p.requires_grad for p in lpips.parameters())


def test_lpips_without_its_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"LPIPS .*pip install 'evotok\[eval\]' torchvision") as missing:
        build_lpips()
    assert "\n" not in str(missing.value)


def test_the_best_model_is_the_best_average(tmp_path, monkeypatch):
    """Validation is of the average, and so is what is saved at the end."""
    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: None)
    loaded = []
    trainer = TokenizerTrainer.__new__(TokenizerTrainer)
    trainer.state, trainer.average = SimpleNamespace(best_model_checkpoint=str(tmp_path)), None
    trainer._load_best_model()
    trainer.average = SimpleNamespace(load=loaded.append)
    trainer._load_best_model()
    assert loaded == [tmp_path]
