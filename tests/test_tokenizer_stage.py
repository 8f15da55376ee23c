"""The tokenizer stage: resuming, two processes, EMA, adversarial weight, validation, teacher, codebook restarts."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY_VQ
from safetensors.torch import load_file
from test_training import ROOT, TRAINING, VQ, history, losses, recipes, run  # noqa: F401 - a fixture
from transformers import AutoModel, SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.data.world.icons import load_world
from evotok.data.world.images import held_out_scenes, scene_pixels
from evotok.eval.reconstruction import evaluate_reconstruction
from evotok.modeling_evotok.codebook_update_evotok import update_codebooks
from evotok.modeling_evotok.quantization_evotok import EvoTokCodebook
from evotok.training.planning.configs import tokenizer_fields
from evotok.training.recipes import Recipe, read_recipe
from evotok.training.tokenizer import stage as tokenizer_stage
from evotok.training.tokenizer.ema import TokenizerEMA
from evotok.training.tokenizer.stage import (
    HELD_OUT_SCENES,
    build_images,
    build_perceptual,
    build_teacher,
    build_tokenizer,
    build_validation,
    restart_warning,
)
from evotok.training.tokenizer.trainer import TokenizerTrainer
from evotok.training.train import main, train


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
    """Writes a recipe with every option of the stage but teachers."""
    path = tmp_path_factory.mktemp("recipe") / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Returns the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([str(recipe), f"training.output_dir={folder}"]) == 0
    return folder


def equal(one, other):
    """Returns whether two states are bit-equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def tiny(**fields):
    torch.manual_seed(0)
    return EvoTokVQModel(EvoTokVQConfig(**TINY_VQ | fields))


def arguments(folder, **fields):
    return TrainingArguments(str(folder), use_cpu=True, report_to="none", **fields)


# --- resuming and processes --------------------------------------------------------------------------------------


def test_tokenizer_training_resumes_bit_equal(recipe, whole, tmp_path):
    """Compared are weights, EMA, codebooks, discriminator, both optimizers and both schedules."""
    shutil.copytree(whole / "checkpoint-3", tmp_path / "checkpoint-3")
    assert main([str(recipe), f"training.output_dir={tmp_path}"]) == 0
    assert losses(tmp_path) == losses(whole)
    first, second = whole / "checkpoint-6", tmp_path / "checkpoint-6"
    for name in ("model", "average", "discriminator"):
        assert equal(load_file(first / f"{name}.safetensors"), load_file(second / f"{name}.safetensors")), name
    for name in ("optimizer", "scheduler", "discriminator_optimizer"):
        assert equal(*(torch.load(folder / f"{name}.pt", weights_only=True) for folder in (first, second))), name
    before = load_file(whole / "checkpoint-3" / "discriminator.safetensors")
    assert not equal(before, load_file(first / "discriminator.safetensors"))


def test_discriminator_schedule_counts_from_its_start_step(whole):
    """It starts at step 3 of 6: one step of warm-up, then a cosine to zero, as the weights over all steps."""
    rates = {}
    for step in (3, 6):
        folder = whole / f"checkpoint-{step}"
        discriminator = torch.load(folder / "discriminator_optimizer.pt", weights_only=True)["scheduler"]
        weights = torch.load(folder / "scheduler.pt", weights_only=True)
        assert (discriminator["last_epoch"], weights["last_epoch"]) == (step - 2, step)
        rates[step] = discriminator["_last_lr"][0], weights["_last_lr"][0]
    assert rates[3] == pytest.approx((1e-3, 1e-3 * (1 + math.cos(math.pi * 2 / 5)) / 2))
    assert rates[6] == pytest.approx((0.0, 0.0))


def test_ema_and_discriminator_start_in_a_resumed_run_without_them(recipe, tmp_path, caplog):
    words = [str(recipe), f"training.output_dir={tmp_path}"]
    assert main([*words, "training.max_steps=3", "optimizer.average_decay=0", "loss.adversarial=0"]) == 0
    assert not list((tmp_path / "checkpoint-3").glob("*average*")) and "skipped" not in caplog.text
    assert main(words) == 0
    assert "has no EMA of the weights" in caplog.text and "has no discriminator" in caplog.text
    assert (tmp_path / "checkpoint-6" / "discriminator.safetensors").is_file()
    assert load_file(tmp_path / "checkpoint-6" / "average.safetensors")["n_averaged"] == 3


def test_two_processes_equal_one_on_the_same_global_batch(recipe, tmp_path):
    """Compared are losses, statistics of the codebooks, discriminator, EMA and validation."""
    # A restart samples vectors of the batch, different ones on two processes.
    steps = ["training.max_steps=4", "training.save_steps=4", "model.config.codebook_restart_threshold=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([str(recipe), f"training.output_dir={one}", *steps]) == 0
    run([recipe, f"training.output_dir={two}", *steps, "training.per_device_train_batch_size=2"], nproc=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name in ("model", "average", "discriminator"):
        expected, found = (load_file(folder / "checkpoint-4" / f"{name}.safetensors") for folder in (one, two))
        for key in (key for key in expected if "k_proj.bias" not in key):  # its gradient is rounding: no loss needs it
            torch.testing.assert_close(found[key], expected[key], atol=1e-4, rtol=1e-3, msg=f"{name}: {key}")
    counted = load_file(two / "checkpoint-4" / "model.safetensors")["quantizer.codebooks.0.cluster_size"]
    assert counted.sum().item() == pytest.approx(4 * 64 * (1 - 0.99**4), rel=1e-4)  # of the global batch, not a share
    expected, found = ([log for log in history(folder) if "eval_usage_min" in log][-1] for folder in (one, two))
    names = [name for name in expected if name.startswith("eval_")]
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-3)


# --- EMA -----------------------------------------------------------------------------------------------------------


def test_ema_decay_grows_to_its_share():
    model = tiny(codebook_keeps_sums=True)
    ema = TokenizerEMA(model, decay=0.5)
    weight, before = model.pixel_decoder.conv_out.weight, model.pixel_decoder.conv_out.weight.detach().clone()
    expected = before
    for step, decay in enumerate((0.0, 2 / 11, 3 / 12, 4 / 13)):
        weight.data += 1
        model.quantizer.codebooks[0].cluster_size += 1
        ema.update_parameters(model)
        expected = decay * expected + (1 - decay) * (before + step + 1)
        torch.testing.assert_close(ema.module.pixel_decoder.conv_out.weight, expected)
    for _ in range(20):
        ema.update_parameters(model)
    expected = weight.detach().clone()
    weight.data += 1
    ema.update_parameters(model)
    torch.testing.assert_close(ema.module.pixel_decoder.conv_out.weight, expected + 0.5)
    codebook = ema.module.quantizer.codebooks[0]
    assert torch.equal(codebook.cluster_size, model.quantizer.codebooks[0].cluster_size)
    assert torch.equal(codebook.vector_sum, codebook.weight * codebook.cluster_size[:, None])


def test_ema_of_a_restarted_entry_starts_at_its_new_vector():
    model = tiny(codebook_restart_threshold=0.5, codebook_warmup_steps=0)
    ema = TokenizerEMA(model, decay=0.9)
    for codebook in model.quantizer.codebooks:
        codebook.cluster_size.fill_(3.0)
    ema.update_parameters(model)
    codebook, averaged = model.quantizer.codebooks[1], ema.module.quantizer.codebooks[1]
    before = averaged.weight.clone()
    vectors = torch.full((8, codebook.weight.shape[1]), 5.0)
    codebook.cluster_size[7] = 0.1  # not chosen by any vector below
    update_codebooks([codebook], vectors[None], torch.zeros(1, 8, dtype=torch.long))
    ema.copy_restarts(model)
    assert torch.equal(averaged.weight[7], vectors[0])
    assert torch.equal(averaged.weight[:7], before[:7])
    ema.update_parameters(model)
    assert torch.equal(averaged.weight[7], vectors[0])
    assert not torch.equal(averaged.weight[0], before[0])


def test_finished_model_and_validation_are_those_of_the_ema(whole):
    finished = EvoTokVQModel.from_pretrained(whole)
    average = load_file(whole / "checkpoint-6" / "average.safetensors")
    weights = load_file(whole / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(average[f"module.{name}"], tensor) for name, tensor in finished.state_dict().items())
    assert not torch.equal(weights["pixel_decoder.conv_out.weight"], finished.pixel_decoder.conv_out.weight)
    assert all(entry["adversarial_factor"] > 0 for entry in history(whole) if "adversarial" in entry)
    logged = [entry for entry in history(whole) if "eval_usage_min" in entry]
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


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (["eval_steps=1"], [1, 2]),
        (["eval_strategy=no"], [2]),
        (["eval_steps=1", "load_best_model_at_end=true", "metric_for_best_model=psnr_depth2"], [1, 2, 2]),
    ],
)
def test_last_step_is_evaluated_once(recipe, tmp_path, monkeypatch, changes, steps):
    """The metrics are those of the model that is saved, which is another one where the best one is loaded."""
    found, evaluate = [], TokenizerTrainer.evaluate

    def record(trainer, *args, **kwargs):
        metrics = evaluate(trainer, *args, **kwargs)
        found.append((trainer.state.global_step, metrics))
        return metrics

    monkeypatch.setattr(TokenizerTrainer, "evaluate", record)
    changes = [f"output_dir={tmp_path}", "max_steps=2", "save_steps=1", *changes]
    results = train(read_recipe(recipe, [f"training.{change}" for change in changes]))
    assert [step for step, _ in found] == steps
    assert found[-1][1].items() <= results.items() and results["eval_psnr_depth2"] > 0


def test_load_best_model_loads_the_best_ema(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: None)
    loaded = []
    trainer = TokenizerTrainer.__new__(TokenizerTrainer)
    trainer.state, trainer.ema = SimpleNamespace(best_model_checkpoint=str(tmp_path)), None
    trainer._load_best_model()
    trainer.ema = SimpleNamespace(load=loaded.append)
    trainer._load_best_model()
    assert loaded == [tmp_path]


def test_discriminator_takes_one_step_for_accumulated_batches(recipe, tmp_path):
    steps = ["training.max_steps=3", "training.save_steps=3", "training.gradient_accumulation_steps=2"]
    assert main([str(recipe), f"training.output_dir={tmp_path}", *steps]) == 0
    state = torch.load(tmp_path / "checkpoint-3" / "discriminator_optimizer.pt", weights_only=True)
    assert state["scheduler"]["last_epoch"] == 1 and state["optimizer"]["state"][0]["step"] == 1


# --- data ----------------------------------------------------------------------------------------------------------


def test_build_validation_requires_images(tmp_path):
    recipe = Recipe("tokenizer")
    recipe.data.name = "mixture"
    with pytest.raises(ValueError, match=r"give data\.validation_path"):
        build_validation(recipe, 32, arguments(tmp_path, eval_strategy="steps", eval_steps=1))


def test_build_images_refuses_another_size_of_the_world(tmp_path):
    given = arguments(tmp_path, max_steps=2)
    assert len(build_images(Recipe("tokenizer"), given, 64)) == 16
    with pytest.raises(ValueError, match="image_size 32, but images of the embedded world have 64"):
        build_images(Recipe("tokenizer"), given, 32)


# --- teacher -------------------------------------------------------------------------------------------------------


def test_build_teacher_copies_the_untrained_encoder(tmp_path, monkeypatch):
    """The checkpoint is loaded once; a trained tokenizer is not copied."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    source = SiglipVisionModel(config).eval()
    source.save_pretrained(tmp_path)
    calls, load = [], AutoModel.from_pretrained.__func__
    monkeypatch.setattr(
        AutoModel, "from_pretrained", classmethod(lambda cls, *a, **k: calls.append(a) or load(cls, *a, **k))
    )
    recipe = Recipe("tokenizer")
    recipe.model.encoder_checkpoint = str(tmp_path)
    recipe.model.config = {k: v for k, v in TINY_VQ.items() if k not in ("encoder_config", "semantic_feature_dim")}
    model = build_tokenizer(recipe)
    teacher = build_teacher(recipe, model)
    assert len(calls) == 1
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = source(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(teacher(pixels), expected)
    for parameter in model.vision_tower.parameters():
        parameter.data += 1
    assert torch.equal(teacher.train()(pixels), expected)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.tower.training
    recipe.model.checkpoint = "trained"
    assert torch.equal(build_teacher(recipe, model)(pixels), expected) and len(calls) == 2


def test_unknown_networks_are_refused():
    recipe = Recipe("tokenizer")
    recipe.loss.teacher = recipe.loss.perceptual_network = "nothing"
    with pytest.raises(ValueError, match=r"loss\.teacher 'nothing' is not one of"):
        build_teacher(recipe, tiny())
    with pytest.raises(ValueError, match=r"loss\.perceptual_network 'nothing' is not one of"):
        build_perceptual(recipe, None, torch.device("cpu"))


# --- codebook restarts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_restart_warning_is_absent_for_shipped_recipes(name):
    path = ROOT / "configs" / name / "tokenizer.yaml"
    recipe = read_recipe(path)
    config = EvoTokVQConfig(**tokenizer_fields(recipe, path))
    assert restart_warning(config, recipe.training["per_device_train_batch_size"] * recipe.gpus) is None
    config.codebook_restart_threshold = 0
    assert restart_warning(config, 1) is None


def test_restart_warning_matches_the_restarts_of_a_codebook():
    config = EvoTokVQConfig(codebook_size=256, codebook_dim=4, codebook_restart_threshold=0.5)
    images = 64 / config.num_positions  # 64 vectors for 256 entries
    warning = restart_warning(config, images)
    assert "most are replaced at every step" in warning and len(warning.splitlines()) == 1
    assert restart_warning(config, 2 * images) is None
    torch.manual_seed(0)
    codebook = EvoTokCodebook(config)
    codebook.weight.data.normal_()
    for _ in range(300):
        vectors = torch.randn(64, 4)
        before = codebook.weight.clone()
        update_codebooks([codebook], vectors[None], codebook(vectors)[None])
    assert (codebook.cluster_size == 0.5).float().mean() > 0.5
    assert (codebook.weight != before).any(1).float().mean() > 0.5


def test_training_logs_the_restart_warning(recipes, tmp_path, monkeypatch, caplog):  # noqa: F811
    def stop(*args):
        raise ValueError("stopped before the data")

    monkeypatch.setattr(tokenizer_stage, "build_images", stop)
    words = ["training.per_device_train_batch_size=1", "model.config.codebook_restart_threshold=3.0"]
    assert main([str(recipes / "tokenizer.yaml"), *words, f"training.output_dir={tmp_path}"]) == 2
    assert "most are replaced at every step" in caplog.text
