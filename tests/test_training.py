"""The stages as real processes: they resume bit for bit after kill -9, and ZeRO-2 on two processes equals one."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_DEPTH, TINY_TEXT, TINY_VQ
from ports import free_port

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor, EvoTokVQConfig, EvoTokVQModel
from evotok.cli import main as cli
from evotok.training.checkpoints import last_complete_checkpoint
from evotok.training.manifest import begin_manifest, finish_manifest, hash_share
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

# The stage as a process that is killed in the middle of its fifth step.
KILLED = """
import os, signal, sys
from transformers import Trainer
from evotok.training.train import main
step, seen = Trainer.training_step, []
def dying(self, *args, **kwargs):
    seen.append(1)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
Trainer.training_step = dying
main(sys.argv[1:])
"""


def run(arguments, nproc=None, code=None, check=True):
    command = [sys.executable]
    if nproc:
        port = free_port()
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={nproc}", f"--master-port={port}"]
    command += ["-c", code] if code else ["-m", "evotok.training.train"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_PORT": str(port if nproc else 0)}
    if not nproc:
        env.pop("MASTER_PORT")
    command += map(str, arguments)
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def losses(folder):
    """Loss of every step of the newest checkpoint's history."""
    state = json.loads((Path(last_complete_checkpoint(folder)) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def zero3(folder):
    """A file that configures ZeRO-3; parameters as small as these would otherwise stay whole on every rank."""
    config = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = Path(folder) / "zero3.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Tiny recipes of the stages and a random tokenizer for them to start from."""
    folder = tmp_path_factory.mktemp("recipes")
    torch.manual_seed(0)
    tokenizer = EvoTokVQModel(EvoTokVQConfig(**VQ))
    for codebook in tokenizer.quantizer.codebooks:
        codebook.weight.data.normal_()
    tokenizer.save_pretrained(folder / "vq")
    text = {k: v for k, v in TINY_TEXT.items() if not k.endswith("token_id") and k != "vocab_size"}
    config = {"text_config": text, "depth_decoder_config": TINY_DEPTH | {"hidden_dropout": 0.0}}
    loss = {"perceptual": 0.0, "semantic": 0.0, "adversarial": 0.1, "adversarial_start_step": 2}
    stages = {
        "tokenizer": {
            "model": {"config": VQ},
            "loss": loss | {"discriminator_channels": 8},
            "optimizer": {"name": "muon"},
        },
        "gen": {
            "model": {"vq_checkpoint": str(folder / "vq"), "text_tokenizer_size": 400, "config": config},
            "data": {"mixture": {"t2i": 1.0}, "caption_dropout": 0.1},
        },
        "sft": {
            "model": {"vq_checkpoint": str(folder / "vq"), "text_tokenizer_size": 400, "config": config},
            "data": {"mixture": {"name": 0.5, "count": 0.3, "t2i_scene": 0.2}},
        },
    }
    for stage, sections in stages.items():
        recipe = {"stage": stage, "training": TRAINING | {"output_dir": str(folder / stage)}} | sections
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_the_stages_train_save_and_log_their_terms(recipes, tmp_path):
    for stage in ("tokenizer", "sft", "gen"):
        assert main([str(recipes / f"{stage}.yaml"), f"training.output_dir={tmp_path / stage}"]) == 0
    model = EvoTokForConditionalGeneration.from_pretrained(tmp_path / "gen")
    assert isinstance(EvoTokProcessor.from_pretrained(tmp_path / "gen"), EvoTokProcessor)
    before = EvoTokVQModel.from_pretrained(recipes / "vq").state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.vq_model.state_dict().items())
    state = json.loads((Path(last_complete_checkpoint(tmp_path / "gen")) / "trainer_state.json").read_text())
    assert {"text_loss", "image_loss", "image_loss_level1", "image_loss_level2"} <= set(state["log_history"][0])
    state = json.loads((Path(last_complete_checkpoint(tmp_path / "tokenizer")) / "trainer_state.json").read_text())
    assert {"reconstruction", "commitment"} <= set(state["log_history"][0])
    assert {"adversarial", "discriminator"} <= set(state["log_history"][-2])


def test_the_command_says_what_came_of_it_to_programs(recipes, tmp_path, capsys):
    run = f"training.output_dir={tmp_path / 'run'}"
    assert cli(["train", str(recipes / "tokenizer.yaml"), run, "training.max_steps=2", "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)  # nothing else is there: what Trainer prints goes to stderr
    assert "'loss'" in said.err and "it/s" not in said.err and "s/it" not in said.err, "no bars where nobody looks on"
    assert (facts["stage"], facts["folder"], facts["step"]) == ("tokenizer", str(tmp_path / "run"), 2)
    assert facts["train_loss"] > 0 and facts["eval_psnr_depth2"] > 0 and not facts["already_finished"]
    assert cli(["train", str(recipes / "tokenizer.yaml"), run, "training.max_steps=2"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"already finished at step 2. Next: evotok eval reconstruction {tmp_path / 'run'}" in line
    assert "mean loss" not in line


@pytest.mark.parametrize("stage", ["tokenizer", "sft"])
def test_killed_and_resumed_gives_the_same_losses(recipes, tmp_path, stage):
    recipe = recipes / f"{stage}.yaml"
    run([recipe, f"training.output_dir={tmp_path / 'whole'}"])
    killed = run([recipe, f"training.output_dir={tmp_path / 'killed'}"], code=KILLED, check=False)
    assert killed.returncode == -9
    assert Path(last_complete_checkpoint(tmp_path / "killed")).name == "checkpoint-3"
    run([recipe, f"training.output_dir={tmp_path / 'killed'}"])
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step in (5, 10, 15):
        begin_manifest(tmp_path / f"checkpoint-{step}")
    for name in ("trainer_state.json", "rng_state.pth"):
        for step in (5, 10):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    finish_manifest(tmp_path / "checkpoint-5", hash_share(tmp_path / "checkpoint-5"))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


@needs_deepspeed
def test_two_processes_with_zero2_equal_one(recipes, tmp_path):
    recipe, zero2 = recipes / "gen.yaml", ROOT / "configs/deepspeed/zero2.json"
    steps = ["training.max_steps=3", "training.max_grad_norm=1.0", "training.optim=adamw_torch"]
    run([recipe, f"training.output_dir={tmp_path / 'one'}", *steps])
    two = ["training.per_device_train_batch_size=2", f"training.deepspeed={zero2}"]
    run([recipe, f"training.output_dir={tmp_path / 'two'}", *steps, *two], nproc=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, both = (EvoTokForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(both.state_dict()[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_a_mistake_in_a_recipe_is_one_line_and_exit_code_2(recipes, capsys):
    assert main([str(recipes / "sft.yaml"), "data.max_lenght=3"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'max_length'?" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words, said",
    [
        ("training.deepspeed=configs/deepspeed/zero3.json", "ZeRO-3, which shards weights, .*zero2.json, or leave it"),
        ("training.deepspeed=configs/deepspeed/zero2.json training.fp16=true", "training.fp16: .* give bf16"),
        (
            "training.deepspeed=configs/deepspeed/zero2.json loss.adversarial_adaptive=true",
            "loss.adversarial_adaptive: not under DeepSpeed",
        ),
        ("training.deepspeed=nowhere.json", "nowhere.json: no DeepSpeed configuration"),
    ],
)
def test_the_tokenizer_stage_refuses_what_would_harm_its_codebooks(recipes, capsys, words, said):
    assert main([str(recipes / "tokenizer.yaml"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1
