"""Faults of trainings on two real processes: kill -9 in a step and in a checkpoint of every stage, damaged files, other
numbers of processes, batches of different kinds, half precision, NaN, full disks.

Every stage is killed under every backend at the moments of `IN_CI`; `make drills` runs all of `MOMENTS`, marked slow.
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from drills import FullDisk, Kill, NanLoss, Server, watched
from safetensors.torch import load_file
from test_manifest import spoil
from test_streaming import corpus, unified  # noqa: F401 - fixtures
from test_training import ROOT, losses, needs_deepspeed, recipes, zero3  # noqa: F401 - a fixture

from evotok import EvoTokVQModel
from evotok.training.deepspeed_setup import prepare_engine
from evotok.training.multimodal.stages import build_multimodal
from evotok.training.recipes import read_recipe
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.resuming.run_lock import lock_folder


STEPS = ["training.max_steps=6", "training.save_steps=2", "training.per_device_train_batch_size=2"]
STEPS += ["training.weight_decay=1.0"]  # differs between parameter groups
NOISE = "data.code_noise=0.3"  # used together with dropout
STAGES = {
    # Without a teacher the semantic decoder gets no gradient: weight decay would change it under ZeRO only.
    "tokenizer": ["tokenizer.yaml", *STEPS, "optimizer.name=trainer", "training.weight_decay=0"],
    "pretrain": ["sft.yaml", "stage=pretrain", *STEPS],
    "sft": ["sft.yaml", *STEPS, NOISE],
    # Without noise, which depends on the number of processes.
    "gen": ["gen.yaml", *STEPS],
    # One row a batch: text alone, input images and generated images are never in one batch.
    "unified": [
        *("unified.yaml", *STEPS, NOISE),
        *("training.per_device_train_batch_size=1", "training.dataloader_num_workers=0"),
    ],
    "dpo": ["sft.yaml", "stage=dpo", *STEPS, "data.mixture={name: 0.5, yes_no_name: 0.5}"],
}
# ZeRO-3 would shard the codebooks and their EMA, and is refused.
PAIRS = [(stage, backend) for stage in STAGES for backend in ("ddp", "zero2", "zero3")]
PAIRS.remove(("tokenizer", "zero3"))

WRITTEN = Kill(0, 4, "manifest.json")  # from this moment on a checkpoint is complete
OF_ALL = [Kill(1, 4), Kill(0, 3), Kill(0, 4, "model.safetensors"), Kill(1, 4, "rng_state_1")]
OF_ALL += [Kill(0, 4, "trainer_state.json"), Kill(0, 4, "trainer_state.json", share=1.0)]
OF_BACKEND = {
    "ddp": [Kill(0, 4, "scheduler.pt"), Kill(0, 4, "optimizer.pt")],
    "zero2": [Kill(0, 4, "model_states"), Kill(1, 4, "optim_states")],
    "zero3": [Kill(1, 4, "optim_states"), Kill(1, 4, "model_states")],
}
OF_STAGE = {
    "tokenizer": [Kill(0, 4, "discriminator.safetensors"), Kill(0, 4, "discriminator_optimizer.pt")],
    "unified": [Kill(1, 4, "data_state_1")],
}
MOMENTS = {pair: [*OF_ALL, *OF_STAGE.get(pair[0], []), *OF_BACKEND[pair[1]], WRITTEN] for pair in PAIRS}
# Every stage and every backend, in a step, in a file of the backend, and in a file of the stage.
IN_CI = {
    (stage, backend): [OF_ALL[0], *OF_STAGE.get(stage, [])[-1:], OF_BACKEND[backend][-1]]
    for stage, backend in (
        *(("tokenizer", "ddp"), ("tokenizer", "zero2"), ("pretrain", "ddp"), ("sft", "zero2")),
        *(("gen", "zero3"), ("unified", "ddp"), ("unified", "zero3"), ("dpo", "zero3")),
    )
}
IN_CI["tokenizer", "ddp"] += [WRITTEN]


def cases(rows):
    needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs the extra `train`")
    marks = {"zero2": needs_deepspeed, "zero3": needs_deepspeed, "dpo": needs_trl}
    return [pytest.param(*row, marks=[marks[word] for word in row if word in marks]) for row in rows]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return Server(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def start(recipes):  # noqa: F811
    """Returns a function that builds a model to start from, by its dropout."""

    @functools.cache
    def build(dropout):
        recipe = read_recipe(recipes / "sft.yaml", [f"model.config.depth_decoder_config.hidden_dropout={dropout}"])
        torch.manual_seed(0)
        for part in build_multimodal(recipe):
            part.save_pretrained(recipes / f"start-{dropout}")
        return recipes / f"start-{dropout}"

    return build


@pytest.fixture(scope="module")
def words(recipes, start, unified):  # noqa: F811
    """Returns a function (stage, backend) -> arguments of `evotok train`."""
    by_backend = {
        "ddp": [],
        "zero2": [f"training.deepspeed={ROOT / 'configs/deepspeed/zero2.json'}"],
        "zero3": [f"training.deepspeed={zero3(recipes)}"],
    }

    def words(stage, backend):
        recipe, *overrides = STAGES[stage]
        if stage != "tokenizer":
            overrides += [f"model.checkpoint={start(0.1 if NOISE in overrides else 0.0)}"]
        return [recipes / recipe, *overrides, *by_backend[backend]]

    return words


@pytest.fixture(scope="module")
def whole(server, words, tmp_path_factory):
    """Returns a function (stage, backend) -> folder of an undisturbed run, each run once; `watched` has its batches."""

    @functools.cache
    def run(stage, backend):
        folder = tmp_path_factory.mktemp("whole")
        ended = server.run(*words(stage, backend), f"training.output_dir={folder}", watch=folder / "watched")
        assert ended.codes == [0, 0], ended.output[-3000:]
        return folder

    return run


def same_weights(*folders):
    """Returns whether two trainings have bit-equal weights."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def drill(server, words, whole, folder, kills):
    """Kills a run at every moment, checks which checkpoint it resumes from, and that it ends like the whole run."""
    for kill in kills:
        ended = server.run(*words, f"training.output_dir={folder}", fault=kill)
        assert ended.codes[kill.rank] == -signal.SIGKILL, (kill, ended.output[-3000:])
        step = 4 if kill == WRITTEN else 2
        assert last_complete_checkpoint(folder) == str(folder / f"checkpoint-{step}"), kill
    ended = server.run(*words, f"training.output_dir={folder}")
    assert ended.codes == [0, 0], ended.output[-3000:]
    assert losses(folder) == losses(whole) and len(losses(whole)) == 6
    assert same_weights(folder, whole)


def assert_close(one, other, *names):
    """Checks that two checkpoints have the same names, dtypes and, up to rounding, values.

    The gradient of a key's bias is zero but for rounding, which Adam scales up to steps of the learning rate.
    """
    for name in names:
        expected, found = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            atol = 1e-3 if key.endswith("k_proj.bias") else 1e-4
            torch.testing.assert_close(found[key], tensor, atol=atol, rtol=1e-3, msg=f"{name}: {key}")


@pytest.mark.parametrize("stage, backend", cases(IN_CI))
def test_killed_training_ends_bit_equal(server, words, whole, tmp_path, stage, backend):
    drill(server, words(stage, backend), whole(stage, backend), tmp_path / "run", IN_CI[stage, backend])


@pytest.mark.slow
@pytest.mark.parametrize("stage, backend", cases(PAIRS))
def test_training_killed_at_every_moment_ends_bit_equal(server, words, whole, tmp_path, stage, backend):
    drill(server, words(stage, backend), whole(stage, backend), tmp_path / "run", MOMENTS[stage, backend])


@pytest.mark.parametrize(
    "stage, backend, name, damage",
    [
        ("unified", "ddp", "data_state_1.pt", "emptied"),
        pytest.param("unified", "zero2", "global_step4/*_rank_1_*optim_states.pt", "removed", marks=needs_deepspeed),
        pytest.param("gen", "zero3", "global_step4/zero_pp_rank_1_*model_states.pt", "flipped", marks=needs_deepspeed),
    ],
)
def test_group_resumes_from_the_checkpoint_before_a_damaged_one(
    server, words, whole, tmp_path, stage, backend, name, damage
):
    """Only one process finds the damage, and the dates are an hour ahead; the run equals an undisturbed one."""
    for step in (2, 4):
        shutil.copytree(whole(stage, backend) / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + 3600,) * 2)
    [path] = (tmp_path / "checkpoint-4").glob(name)
    spoil(path, damage)
    ended = server.run(*words(stage, backend), "training.save_total_limit=1", f"training.output_dir={tmp_path}")
    assert ended.codes == [0, 0], ended.output[-3000:]
    assert ended.output.count(": skipped; the previous checkpoint is tried.") == 1 and path.name in ended.output
    assert losses(tmp_path) == losses(whole(stage, backend)) and same_weights(tmp_path, whole(stage, backend))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_group_stops_at_the_lock_of_another_run(server, words, tmp_path):
    """All processes report it, although only one acquires the lock, and none writes."""
    with lock_folder(tmp_path):
        ended = server.run(*words("gen", "ddp"), f"training.output_dir={tmp_path}")
    assert ended.codes == [2, 2] and ended.output.count("another run is training into this folder") == 2
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def rates(folder):
    """Returns the learning rate of every step."""
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]


@needs_deepspeed
@pytest.mark.parametrize("backend", ["zero2", "zero3"])
def test_changed_learning_rate_applies_under_deepspeed(server, words, whole, tmp_path, backend):
    arguments = [*words("gen", backend), "training.learning_rate=1e-5", "training.weight_decay=0.25"]
    shutil.copytree(whole("gen", backend) / "checkpoint-4", tmp_path / "checkpoint-4")
    ended = server.run(*arguments, f"training.output_dir={tmp_path}")
    assert ended.codes == [0, 0], ended.output[-3000:]
    assert ended.output.count("has changed since: training.learning_rate: 0.001 -> 1e-05; ") == 1
    now, then = rates(tmp_path), rates(whole("gen", backend))
    assert now == pytest.approx([*then[:4], *(0.01 * rate for rate in then[4:])])
    assert losses(tmp_path)[:5] == losses(whole("gen", backend))[:5] and losses(tmp_path) != losses(
        whole("gen", backend)
    )


@needs_deepspeed
def test_zero3_trains_batches_of_different_kinds(whole):
    """One rank has text alone, the other an input or a generated image; the losses equal those without sharding."""
    folder = whole("unified", "zero3")
    inputs, generated = frozenset({"image_codes"}), frozenset({"generation_codes"})
    kinds = [[frozenset(batch) & (inputs | generated) for batch in step] for step in watched(folder / "watched")]
    assert {kind for step in kinds for kind in step} == {frozenset(), inputs, generated}
    assert sum(first != second for first, second in kinds) >= 3
    assert losses(folder) == pytest.approx(losses(whole("unified", "ddp")), rel=1e-4)


@needs_deepspeed
def test_codes_of_a_bf16_run_are_those_of_fp32(server, words, recipes, tmp_path):  # noqa: F811
    run, batches = tmp_path / "run", tmp_path / "batches"
    overrides = ["training.bf16=true", "training.max_steps=4", f"training.output_dir={run}"]
    ended = server.run(*words("unified", "zero3"), *overrides, watch=batches)
    assert ended.codes == [0, 0], ended.output[-3000:]
    tokenizer = EvoTokVQModel.from_pretrained(recipes / "vq", dtype=torch.float32)
    pairs = {"pixel_values": "image_codes", "generation_pixel_values": "generation_codes"}
    compared = 0
    for batch in (batch for step in watched(batches) for batch in step):
        for name in pairs.keys() & batch.keys():
            codes = batch[pairs[name]]
            assert torch.equal(tokenizer.encode(batch[name])[..., : codes.shape[-1]], codes)
            compared += 1
    assert compared >= 4
    saved, before = load_file(run / "model.safetensors"), tokenizer.state_dict()
    assert {saved[name].dtype for name in saved if "language_model" in name} == {torch.bfloat16}
    for name, tensor in before.items():
        assert torch.equal(saved[f"model.vq_model.{name}"], tensor), name


@needs_deepspeed
@pytest.mark.parametrize("stage, backend", [("gen", "zero3"), ("tokenizer", "zero2")])
def test_universal_checkpoint_resumes_on_one_process(server, words, whole, tmp_path, stage, backend):
    """It includes the codebooks of the tokenizer, which are in no optimizer."""
    arguments, two = words(stage, backend), tmp_path / "two"
    if stage == "tokenizer":  # a restart samples vectors of the batch, different ones on two processes
        arguments.append("model.config.codebook_restart_threshold=0.0")
        ended = server.run(*arguments, f"training.output_dir={two}")
        assert ended.codes == [0, 0], ended.output[-3000:]
    else:
        two = whole(stage, backend)
    shutil.copytree(two / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="written by 2 processes, this run has 1") as refused:
        prepare_engine(SimpleNamespace(world_size=1), str(tmp_path / "checkpoint-2"))
    _, *command = re.search("(python -m .+), then", str(refused.value))[1].split()
    converted = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert converted.returncode == 0, converted.stderr[-3000:]
    overrides = ["training.per_device_train_batch_size=4", f"training.output_dir={tmp_path}"]
    ended = server.run(*arguments, *overrides, ranks=1)
    assert ended.codes == [0], ended.output[-3000:]
    assert losses(tmp_path) == pytest.approx(losses(two), rel=1e-5)


def test_checkpoint_without_deepspeed_resumes_on_one_process(server, words, whole, tmp_path):
    two = whole("gen", "ddp")
    shutil.copytree(two / "checkpoint-2", tmp_path / "checkpoint-2")
    overrides = ["training.per_device_train_batch_size=4", f"training.output_dir={tmp_path}"]
    ended = server.run(*words("gen", "ddp"), *overrides, ranks=1)
    assert ended.codes == [0], ended.output[-3000:]
    assert len(losses(two)) == 6 and losses(tmp_path) == pytest.approx(losses(two), rel=1e-5)


@needs_deepspeed
def test_tokenizer_under_zero2_equals_ddp(whole):
    """Compared are the weights, the codebooks with their counts, and the discriminator outside of DeepSpeed."""
    plain, sharded = whole("tokenizer", "ddp"), whole("tokenizer", "zero2")
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-4)
    assert_close(plain / "checkpoint-6", sharded / "checkpoint-6", "model", "discriminator")


@needs_deepspeed
def test_tokenizer_keeps_fp32_in_a_bf16_run(server, words, tmp_path):
    """Autocast and EMA are equal with DeepSpeed and without."""
    overrides = ["training.bf16=true", "training.max_steps=4", "training.save_steps=4", "optimizer.average_decay=0.9"]
    for backend in ("ddp", "zero2"):
        ended = server.run(*words("tokenizer", backend), *overrides, f"training.output_dir={tmp_path / backend}")
        assert ended.codes == [0, 0], ended.output[-3000:]
    plain, sharded = tmp_path / "ddp", tmp_path / "zero2"
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-3)
    assert_close(plain / "checkpoint-4", sharded / "checkpoint-4", "model", "average", "discriminator")
    kinds = {tensor.dtype for tensor in load_file(sharded / "checkpoint-4" / "model.safetensors").values()}
    assert kinds == {torch.float32, torch.int64}


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero3", marks=needs_deepspeed)])
def test_group_stops_at_a_non_finite_loss_of_one_process(server, words, whole, tmp_path, backend):
    """All processes stop with the same message when the next checkpoint is due; the run resumes from the kept one."""
    words = [*words("unified", backend), f"training.output_dir={tmp_path}"]
    ended = server.run(*words, "training.logging_steps=100", fault=NanLoss(1, 3))
    assert ended.codes == [2, 2], ended.output[-3000:]
    assert ended.output.count("evotok train: step 3: loss: not finite") == 2
    assert ended.output.count(f"kept: {tmp_path / 'checkpoint-2'}.") == 2
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "model.safetensors").exists()
    ended = server.run(*words)
    assert ended.codes == [0, 0], ended.output[-3000:]
    assert same_weights(tmp_path, whole("unified", backend))


@needs_deepspeed
def test_group_stops_at_a_full_disk_and_keeps_the_last_checkpoint(server, words, whole, tmp_path):
    """The disk is full for one process, in the middle of a file; that process reports it."""
    words = [*words("unified", "zero3"), f"training.output_dir={tmp_path}"]
    ended = server.run(*words, fault=FullDisk(0, 4, room=30_000))
    assert ended.codes[0] == 2 and ended.codes[1] in (1, 2), ended.output[-3000:]
    [line] = [line for line in ended.output.splitlines() if "the disk is full" in line]
    assert line.startswith(f"evotok train: {tmp_path / 'checkpoint-4'}: ")
    assert f"kept: {tmp_path / 'checkpoint-2'}." in line
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    ended = server.run(*words)
    assert ended.codes == [0, 0], ended.output[-3000:]
    assert same_weights(tmp_path, whole("unified", "zero3"))
