"""The vision stage: losses, evaluation, and its tower, from which the tokenizer stage starts."""

import shutil

import pytest
import torch
import yaml
from conftest import TINY_VQ
from safetensors.torch import load_file
from test_training import TRAINING, history, losses
from transformers import AutoModel, SiglipVisionConfig, SiglipVisionModel, TrainingArguments

from evotok import EvoTokVQModel
from evotok.data.world.images import IGNORE, LabelledScenes, held_out_scenes
from evotok.training.backbones import vision as vision_stage
from evotok.training.backbones.vision import PatchClassifier, VisionTrainer, labelled_batch, patch_losses
from evotok.training.tokenizer import stage as tokenizer_stage
from evotok.training.train import main


TOWER = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.fixture
def classifier(world):
    torch.manual_seed(0)
    return PatchClassifier(SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False)), len(world.things))


def batch(world, count):
    rows = [LabelledScenes(world, 100, seed=1)[50 + index] for index in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_patch_classifier_has_heads_on_two_layers(classifier, world):
    last, before = classifier(batch(world, 2)["pixel_values"])
    sizes = {"things": 49, "colors": 10, "background": 9, "centers": 1}
    for logits in (last, before):
        assert {name: tensor.shape for name, tensor in logits.items()} == {
            name: (2, 64, size) for name, size in sizes.items()
        }
    labels = batch(world, 2)
    sum(patch_losses(before, labels).values()).backward()
    layers = classifier.vision_model.encoder.layers
    assert layers[1].mlp.fc1.weight.grad is not None and layers[2].mlp.fc1.weight.grad is None


def test_patch_losses_are_cross_entropies_of_known_labels():
    labels = {
        "things": torch.tensor([[0, 2, IGNORE, 2]]),
        "colors": torch.tensor([[0, 1, 1, IGNORE]]),
        "background": torch.tensor([3]),
        "centers": torch.tensor([[0, 1, 0, 0]]),
    }
    right = {
        "things": 20.0 * torch.nn.functional.one_hot(torch.tensor([[0, 2, 1, 2]]), 3),
        "colors": 20.0 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 0]]), 2),
        "background": 20.0 * torch.nn.functional.one_hot(torch.full((1, 4), 3), 5),
        "centers": torch.tensor([[-20.0, 20.0, -20.0, -20.0]])[..., None],
    }
    assert all(loss.item() < 1e-3 for loss in patch_losses(right, labels).values())
    for name in right:
        wrong = patch_losses(right | {name: -right[name]}, labels)
        assert wrong[name].item() > 5 and all(loss.item() < 1e-3 for other, loss in wrong.items() if other != name)
    flat = patch_losses({name: torch.zeros_like(tensor) for name, tensor in right.items()}, labels)
    # A patch without a thing weighs a fifth; that of the scene is one of five.
    assert flat["things"].item() == pytest.approx(torch.tensor(3.0).log().item())
    assert flat["background"].item() == pytest.approx(torch.tensor(5.0).log().item())
    mistaken = right["things"].clone()
    mistaken[0, 0] = 20.0 * torch.tensor([0, 1, 0])
    assert patch_losses(right | {"things": mistaken}, labels)["things"].item() == pytest.approx(
        20 * 0.2 / 2.2, rel=1e-3
    )


def test_evaluation_counts_patches_with_a_thing_only(classifier, world, tmp_path, monkeypatch):
    labels = labelled_batch(world, held_out_scenes(world, "val", 5))
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=2, remove_unused_columns=False
    )
    trainer = VisionTrainer(model=classifier, args=arguments, eval_dataset={"scene": labels})
    sizes = []

    def perfect(pixels):
        start = sum(sizes)
        sizes.append(len(pixels))
        part = {name: tensor[start : start + len(pixels)] for name, tensor in labels.items()}
        right = {"things": torch.nn.functional.one_hot(part["things"], 49).float()}
        right["colors"] = torch.nn.functional.one_hot(1 + part["colors"] % 9, 10).float()  # another one
        return [None, right]

    monkeypatch.setattr(classifier, "forward", perfect)
    found = trainer.evaluate()
    assert (found["eval_scene_things"], found["eval_scene_colors"]) == (1.0, 0.0) and sizes == [2, 2, 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a recipe and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("vision")
    training = TRAINING | {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    training |= {"train_sampling_strategy": "sequential", "output_dir": str(folder / "whole")}
    recipe = {"stage": "vision", "model": {"config": TOWER}, "optimizer": {"name": "muon"}, "training": training}
    (folder / "vision.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_stage, "EVALUATION_SCENES", 8)
        assert main([str(folder / "vision.yaml")]) == 0
    return folder


def test_vision_stage_saves_a_transformers_checkpoint(whole):
    tower = AutoModel.from_pretrained(whole / "whole")
    assert type(tower) is SiglipVisionModel
    assert tower(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape == (1, 64, 24)
    trained = load_file(whole / "whole/checkpoint-4/model.safetensors")
    assert all(torch.equal(trained[f"vision_model.{name}"], tensor) for name, tensor in tower.state_dict().items())
    log = history(whole / "whole")
    assert {"things", "colors", "background", "centers", "loss"} <= set(log[0])
    assert {"eval_single_things", "eval_single_colors", "eval_scene_things", "eval_scene_colors"} <= set(log[2])


def test_vision_stage_resumes_bit_equal(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(vision_stage, "EVALUATION_SCENES", 8)
    shutil.copytree(whole / "whole/checkpoint-2", tmp_path / "checkpoint-2")
    assert main([str(whole / "vision.yaml"), f"training.output_dir={tmp_path}"]) == 0
    assert losses(tmp_path) == losses(whole / "whole")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole / "whole", tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tokenizer_stage_starts_from_the_tower(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    fields = {name: value for name, value in TINY_VQ.items() if name not in ("encoder_config", "semantic_feature_dim")}
    recipe = {
        "stage": "tokenizer",
        "model": {"encoder_checkpoint": str(whole / "whole"), "config": fields | {"codebook_warmup_steps": 0}},
        "loss": {"perceptual": 0.0, "adversarial": 0.0, "teacher": "siglip"},
        "optimizer": {"name": "muon", "encoder_scale": 0.25},
        "training": TRAINING | {"max_steps": 2, "save_strategy": "no", "output_dir": str(tmp_path / "run")},
    }
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(recipe))
    assert (
        main([str(tmp_path / "tokenizer.yaml"), "training.learning_rate=1e-6", "optimizer.matrix_learning_rate=1e-6"])
        == 0
    )
    model, tower = EvoTokVQModel.from_pretrained(tmp_path / "run"), AutoModel.from_pretrained(whole / "whole")
    assert model.config.encoder_config.num_hidden_layers == 2 and model.config.semantic_feature_dim == 24
    for name, tensor in model.vision_tower.state_dict().items():
        torch.testing.assert_close(tensor, tower.state_dict()[name], atol=1e-4, rtol=0, msg=name)
