"""`evotok train` and `training/train.py`: small trainings of the stages, with their files, logs and errors."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_DEPTH, TINY_VQ, save_language_model
from ports import free_port

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor, EvoTokVQConfig, EvoTokVQModel
from evotok.cli import main as cli
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.stages import STAGES
from evotok.training.train import main


ROOT = Path(__file__).resolve().parents[1]
VQ = TINY_VQ | {"encoder_config": TINY_VQ["encoder_config"] | {"image_size": 64}, "codebook_warmup_steps": 0}
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 3,
    "seed": 0,
    "report_to": "none",
    "disable_tqdm": True,
}

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")


def run(arguments, nproc):
    """Runs `evotok.training.train` under torchrun."""
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", f"--master-port={port}"]
    command += ["-m", "evotok.training.train", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_PORT": str(port)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def history(folder):
    """Returns the log of the newest checkpoint of an output folder."""
    state = Path(last_complete_checkpoint(folder)) / "trainer_state.json"
    return json.loads(state.read_text())["log_history"]


def losses(folder):
    """Returns the loss of every step."""
    return [entry["loss"] for entry in history(folder) if "loss" in entry]


def zero3(folder):
    """Writes a ZeRO-3 configuration that shards small parameters, too."""
    config = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = Path(folder) / "zero3.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Writes tiny recipes of three stages, with a random tokenizer and a random language model to start from."""
    folder = tmp_path_factory.mktemp("recipes")
    torch.manual_seed(0)
    tokenizer = EvoTokVQModel(EvoTokVQConfig(**VQ))
    for codebook in tokenizer.quantizer.codebooks:
        codebook.weight.data.normal_()
    tokenizer.save_pretrained(folder / "vq")
    save_language_model(folder / "language")
    parts = {"vq_checkpoint": str(folder / "vq"), "language_model_checkpoint": str(folder / "language")}
    config = {"depth_decoder_config": TINY_DEPTH | {"hidden_dropout": 0.0}}
    loss = {"perceptual": 0.0, "semantic": 0.0, "adversarial": 0.1, "adversarial_start_step": 2}
    stages = {
        "tokenizer": {
            "model": {"config": VQ},
            "loss": loss | {"discriminator_channels": 8},
            "optimizer": {"name": "muon"},
        },
        "gen": {
            "model": parts | {"config": config},
            "data": {"mixture": {"t2i": 1.0}, "caption_dropout": 0.1},
        },
        "sft": {
            "model": parts | {"config": config},
            "data": {"mixture": {"scene": 0.5, "caption": 0.3, "t2i": 0.2}},
        },
    }
    for stage, sections in stages.items():
        recipe = {"stage": stage, "training": TRAINING | {"output_dir": str(folder / stage)}} | sections
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_multimodal_stage_saves_model_processor_and_loss_terms(recipes, tmp_path):
    assert main([str(recipes / "gen.yaml"), f"training.output_dir={tmp_path}"]) == 0
    model = EvoTokForConditionalGeneration.from_pretrained(tmp_path)
    assert isinstance(EvoTokProcessor.from_pretrained(tmp_path), EvoTokProcessor)
    before = EvoTokVQModel.from_pretrained(recipes / "vq").state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.vq_model.state_dict().items())
    assert {"text_loss", "image_loss", "image_loss_level1", "image_loss_level2"} <= set(history(tmp_path)[0])


def test_train_command_reports_results_as_json_and_finished_runs(recipes, tmp_path, capsys):
    output = f"training.output_dir={tmp_path / 'run'}"
    assert cli(["train", str(recipes / "tokenizer.yaml"), output, "training.max_steps=2", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)  # nothing else is on stdout
    assert "'loss'" in printed.err and "it/s" not in printed.err and "s/it" not in printed.err, "no progress bars"
    assert (facts["stage"], facts["folder"], facts["step"]) == ("tokenizer", str(tmp_path / "run"), 2)
    assert facts["train_loss"] > 0 and facts["eval_psnr_depth2"] > 0 and not facts["already_finished"]
    assert cli(["train", str(recipes / "tokenizer.yaml"), output, "training.max_steps=2"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"already finished at step 2. Next: evotok eval reconstruction {tmp_path / 'run'}" in line
    assert "mean loss" not in line


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("sft", "data.max_lenght=3", "Did you mean 'max_length'?"),
        ("sft", "data.name=folder", "'folder' is not one of world, llava, mixture, which the stage sft reads"),
        ("sft", "training.max_steps=-1", "rows of world never end: set training.max_steps"),
    ],
)
def test_train_refuses_mistakes_in_one_line_with_exit_code_2(recipes, capsys, stage, words, message):
    assert main([str(recipes / f"{stage}.yaml"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_registry_references_can_be_loaded(stage):
    if stage.compares_answers:
        pytest.importorskip("trl", reason="needs the extra `train`")
    for name in ("build", "config", "arguments", *(["plan"] if stage.plan else [])):
        assert callable(stage.load(name)), name
    assert set(stage.data) <= {"world", "folder", "llava", "mixture"} and "{folder}" in stage.next_step
