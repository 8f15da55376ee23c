"""Everything that can break in a training does, here, with two real processes: kill -9 in the middle of a step and of
a checkpoint in every stage, other numbers of processes, batches of different kinds, half precision.

Every stage is killed under every engine, at the moments of `IN_CI`; at all of `MOMENTS` in what is marked slow, which
`make drills` runs.
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
from drills import FullDisk, Gone, Kill, Server, Spoil, find_starts, watched
from safetensors.torch import load_file
from test_manifest import spoil
from test_streaming import corpus, unified  # noqa: F401 - fixtures
from test_training import ROOT, losses, needs_deepspeed, recipes, zero3  # noqa: F401 - a fixture

from evotok import EvoTokVQModel
from evotok.training.arguments import read_recipe
from evotok.training.checkpoints import check_engine, last_complete_checkpoint, prepare_engine
from evotok.training.emoji.world import EmojiWorld
from evotok.training.last_good import MAX_BARREN
from evotok.training.manifest import MANIFEST, find_damage
from evotok.training.multimodal_stages import build_multimodal
from evotok.training.run_lock import locked


STEPS = ["training.max_steps=6", "training.save_steps=2", "training.per_device_train_batch_size=2"]
STEPS += ["training.weight_decay=1.0"]  # of some parameters, so that it matters which are in which group
NOISE = "data.code_noise=0.3"  # and with it goes dropout
STAGES = {
    # No teacher, so that no loss reaches the semantic decoder: ZeRO would let it decay all the same, torch does not.
    "tokenizer": ["tokenizer.yaml", *STEPS, "optimizer.name=trainer", "training.weight_decay=0"],
    "pretrain": ["sft.yaml", "stage=pretrain", *STEPS],
    "sft": ["sft.yaml", *STEPS, NOISE],
    # Without it: on another number of processes it would fall elsewhere.
    "gen": ["gen.yaml", *STEPS],
    # One sample a batch: text alone, an image given and an image written are never in one batch.
    "unified": [
        *("unified.yaml", *STEPS, NOISE),
        *("training.per_device_train_batch_size=1", "training.dataloader_num_workers=0"),
    ],
    "dpo": ["sft.yaml", "stage=dpo", *STEPS, "data.mixture={name: 0.5, yes_no: 0.5}"],
}
# Under ZeRO-3 the tokenizer's codebooks, which learn by themselves, would be sharded.
PAIRS = [(stage, engine) for stage in STAGES for engine in ("ddp", "zero2", "zero3")]
PAIRS.remove(("tokenizer", "zero3"))

WRITTEN = Kill(0, 4, "manifest.json")  # the moment from which on a checkpoint counts
OF_ALL = [Kill(1, 4), Kill(0, 3), Kill(0, 4, "model.safetensors"), Kill(1, 4, "rng_state_1")]
OF_ALL += [Kill(0, 4, "trainer_state.json"), Kill(0, 4, "trainer_state.json", share=1.0)]
OF_ENGINE = {
    "ddp": [Kill(0, 4, "scheduler.pt"), Kill(0, 4, "optimizer.pt")],
    "zero2": [Kill(0, 4, "model_states"), Kill(1, 4, "optim_states")],
    "zero3": [Kill(1, 4, "optim_states"), Kill(1, 4, "model_states")],
}
OF_STAGE = {
    "tokenizer": [Kill(0, 4, "discriminator.safetensors"), Kill(0, 4, "discriminator_optimizer.pt")],
    "unified": [Kill(1, 4, "data_state_1")],
}
MOMENTS = {pair: [*OF_ALL, *OF_STAGE.get(pair[0], []), *OF_ENGINE[pair[1]], WRITTEN] for pair in PAIRS}
# One in a step, one in what only this engine writes; for the stages that write more, one in that.
IN_CI = {pair: [OF_ALL[0], *OF_STAGE.get(pair[0], [])[-1:], OF_ENGINE[pair[1]][-1]] for pair in PAIRS}
IN_CI["tokenizer", "ddp"] += [WRITTEN]


def engines(*marks):
    """The three engines, of which those of DeepSpeed have more marks."""
    sharded = [pytest.param(engine, marks=[needs_deepspeed, *marks]) for engine in ("zero2", "zero3")]
    return ["ddp", *sharded]


ENGINES, SLOW_BUT_DDP = engines(), engines(pytest.mark.slow)


def cases(rows):
    needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs the extra `train`")
    marks = {"zero2": needs_deepspeed, "zero3": needs_deepspeed, "dpo": needs_trl}
    return [pytest.param(*row, marks=[marks[word] for word in row if word in marks]) for row in rows]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return Server(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def start(recipes):  # noqa: F811
    """A model to start from, by the dropout it has: else every process would train a text tokenizer first."""

    @functools.cache
    def build(dropout):
        recipe = read_recipe(recipes / "sft.yaml", [f"model.config.depth_decoder_config.hidden_dropout={dropout}"])
        torch.manual_seed(0)
        for part in build_multimodal(recipe, EmojiWorld()):
            part.save_pretrained(recipes / f"start-{dropout}")
        return recipes / f"start-{dropout}"

    return build


@pytest.fixture(scope="module")
def words(recipes, start, unified):  # noqa: F811
    """What `evotok train` is told: (stage, engine) -> words."""
    engines = {
        "ddp": [],
        "zero2": [f"training.deepspeed={ROOT / 'configs/deepspeed/zero2.json'}"],
        "zero3": [f"training.deepspeed={zero3(recipes)}"],
    }

    def words(stage, engine):
        recipe, *overrides = STAGES[stage]
        if stage != "tokenizer":
            overrides += [f"model.checkpoint={start(0.1 if NOISE in overrides else 0.0)}"]
        return [recipes / recipe, *overrides, *engines[engine]]

    return words


@pytest.fixture(scope="module")
def whole(server, words, tmp_path_factory):
    """The folder of a run that nothing happened to, (stage, engine) -> folder, each of them run once; in `watched` lies
    what its model was fed."""

    @functools.cache
    def run(stage, engine):
        folder = tmp_path_factory.mktemp("whole")
        ended = server.run(*words(stage, engine), f"training.output_dir={folder}", watch=folder / "watched")
        assert ended.codes == [0, 0], ended.said[-3000:]
        return folder

    return run


def same_weights(*folders):
    """Whether two trainings have ended with the same weights, to the last bit."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def drill(server, words, whole, folder, kills):
    """Kill a run again and again, see which checkpoint it would go on from, and at last let it end like the whole."""
    for kill in kills:
        ended = server.run(*words, f"training.output_dir={folder}", harm=kill)
        assert ended.codes[kill.rank] == -signal.SIGKILL, (kill, ended.said[-3000:])
        step = 4 if kill == WRITTEN else 2
        assert last_complete_checkpoint(folder) == str(folder / f"checkpoint-{step}"), kill
    ended = server.run(*words, f"training.output_dir={folder}")
    assert ended.codes == [0, 0], ended.said[-3000:]
    assert losses(folder) == losses(whole) and len(losses(whole)) == 6
    assert same_weights(folder, whole)


def assert_close(one, other, *names):
    """Two checkpoints hold the same names, dtypes and, but for rounding, numbers."""
    for name in names:
        expected, found = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-3, msg=f"{name}: {key}")


@pytest.mark.parametrize("stage, engine", cases(IN_CI))
def test_killed_again_and_again_it_ends_the_same(server, words, whole, tmp_path, stage, engine):
    drill(server, words(stage, engine), whole(stage, engine), tmp_path / "run", IN_CI[stage, engine])


@pytest.mark.slow
@pytest.mark.parametrize("stage, engine", cases(PAIRS))
def test_killed_at_every_moment_it_ends_the_same(server, words, whole, tmp_path, stage, engine):
    drill(server, words(stage, engine), whole(stage, engine), tmp_path / "run", MOMENTS[stage, engine])


@pytest.mark.parametrize("stage, engine", cases(IN_CI))
def test_no_part_of_a_checkpoint_is_taken_for_one(whole, tmp_path, stage, engine):
    """As many files as were there at any moment of its writing, and half of the next."""
    written = whole(stage, engine) / "checkpoint-4"
    files = sorted((path for path in written.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    assert files[-1].name == MANIFEST and len(files) > 8
    for path in files:
        place = tmp_path / "checkpoint-4" / path.relative_to(written)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert last_complete_checkpoint(tmp_path) is None, path
        shutil.copy(path, place)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def looked_through(folder):
    """What two processes find wrong with a checkpoint, each in its share."""
    return next(filter(None, (find_damage(folder, rank, 2) for rank in (0, 1))), None)


@pytest.mark.parametrize("stage, engine", cases(IN_CI))
def test_no_torn_checkpoint_is_taken_for_a_whole_one(whole, tmp_path, stage, engine):
    """Each file of it cut, emptied, flipped or removed."""
    written = whole(stage, engine) / "checkpoint-4"
    torn = tmp_path / "checkpoint-4"
    shutil.copytree(written, torn)
    assert looked_through(torn) is None
    for path in (path for path in written.rglob("*") if path.is_file()):
        for how in ("cut", "emptied", "flipped", "removed"):
            spoil(torn / path.relative_to(written), how)
            assert looked_through(torn), (path, how)
            shutil.copy(path, torn / path.relative_to(written))
    assert looked_through(torn) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_all_processes_agree_whatever_is_torn(server, whole, tmp_path, engine):
    """Each file of the newest checkpoint cut, emptied, flipped or removed, which one of them alone looks through."""
    for step in (2, 4):
        shutil.copytree(whole("unified", engine) / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    ended = server.call(find_starts, tmp_path / "run", tmp_path)
    assert ended.codes == [0, 0], ended.said[-3000:]
    first, second = (json.loads((tmp_path / f"starts-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and set(first.values()) == {"checkpoint-2"}
    assert {name.split(":")[0] for name in first} >= {"data_state_1.pt", "rng_state_1.pth", "trainer_state.json"}


@pytest.mark.parametrize(
    "stage, engine, name, how",
    [
        ("unified", "ddp", "data_state_1.pt", "emptied"),
        pytest.param("unified", "zero2", "global_step4/*_rank_1_*optim_states.pt", "removed", marks=needs_deepspeed),
        pytest.param("gen", "zero3", "global_step4/zero_pp_rank_1_*model_states.pt", "flipped", marks=needs_deepspeed),
    ],
)
def test_from_a_torn_checkpoint_all_processes_go_on_from_the_one_before(
    server, words, whole, tmp_path, stage, engine, name, how
):
    """Though one of them alone has seen what is wrong, and the clock is an hour behind what was saved; they end like
    the whole, and the newest checkpoint alone is kept."""
    for step in (2, 4):
        shutil.copytree(whole(stage, engine) / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + 3600,) * 2)
    [path] = (tmp_path / "checkpoint-4").glob(name)
    spoil(path, how)
    ended = server.run(*words(stage, engine), "training.save_total_limit=1", f"training.output_dir={tmp_path}")
    assert ended.codes == [0, 0], ended.said[-3000:]
    assert ended.said.count(": passed over, for the checkpoint before it.") == 1 and path.name in ended.said
    assert losses(tmp_path) == losses(whole(stage, engine)) and same_weights(tmp_path, whole(stage, engine))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize("engine", SLOW_BUT_DDP)
def test_a_group_is_kept_out_of_the_folder_of_another_run(server, words, tmp_path, engine):
    """All of its processes say so, though one alone asks for the lock, and none of them writes."""
    with locked(tmp_path):
        ended = server.run(*words("gen", engine), f"training.output_dir={tmp_path}")
    assert ended.codes == [2, 2] and ended.said.count("another run is training into this folder") == 2
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_whose_pictures_are_gone_does_not_go_on_with_the_last_ones(server, words, corpus, tmp_path, engine):  # noqa: F811
    """In the middle of a step; none of its processes ends as if it had trained to the end."""
    shutil.copytree(corpus / "pictures", tmp_path / "pictures")
    sources = f"data.sources=[{{source: image-folder, path: {tmp_path / 'pictures'}}}]"
    told = [*words("unified", engine), sources, "training.max_steps=200", "training.save_steps=10"]
    ended = server.run(*told, f"training.output_dir={tmp_path / 'run'}", harm=Gone(1, 3, tmp_path / "pictures"))
    assert 0 not in ended.codes and 2 in ended.codes, ended.said[-3000:]
    assert f"evotok train: Nothing in the last {MAX_BARREN} batches can be used" in ended.said
    assert len(losses(tmp_path / "run")) < 60


def rates(folder):
    """Learning rate of every step."""
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("engine", ENGINES)
def test_another_learning_rate_counts_under_every_engine(server, words, whole, tmp_path, engine):
    """From the very next step on."""
    told = [*words("gen", engine), "training.learning_rate=1e-5", "training.weight_decay=0.25"]
    shutil.copytree(whole("gen", engine) / "checkpoint-4", tmp_path / "checkpoint-4")
    ended = server.run(*told, f"training.output_dir={tmp_path}")
    assert ended.codes == [0, 0], ended.said[-3000:]
    assert ended.said.count("has changed since: training.learning_rate: 0.001 -> 1e-05; ") == 1
    now, then = rates(tmp_path), rates(whole("gen", engine))
    assert now == pytest.approx([*then[:4], *(0.01 * rate for rate in then[4:])])
    assert losses(tmp_path)[:5] == losses(whole("gen", engine))[:5] and losses(tmp_path) != losses(whole("gen", engine))


@needs_deepspeed
@pytest.mark.parametrize("before, now", [("ddp", "zero2"), ("zero2", "ddp"), ("zero2", "zero3"), ("zero3", "zero2")])
def test_a_checkpoint_of_another_engine_is_refused(whole, words, tmp_path, before, now):
    """Its optimizer's state would be left out, without a word."""
    arguments = SimpleNamespace(
        fsdp=None,
        deepspeed=now != "ddp",
        hf_deepspeed_config=SimpleNamespace(is_zero3=lambda: now == "zero3"),
    )
    checkpoint = str(whole("gen", before) / "checkpoint-4")
    with pytest.raises(ValueError, match="give the training.deepspeed of before"):
        check_engine(arguments, checkpoint)
    arguments.deepspeed, arguments.hf_deepspeed_config.is_zero3 = before != "ddp", lambda: before == "zero3"
    check_engine(arguments, checkpoint)


@needs_deepspeed
def test_batches_of_different_kinds_meet_under_zero3(whole):
    """Text alone on one rank, an image given or written on the other; and the losses are those of whole weights."""
    folder = whole("unified", "zero3")
    given, written = frozenset({"image_codes"}), frozenset({"generation_codes"})
    kinds = [[frozenset(batch) & (given | written) for batch in step] for step in watched(folder / "watched")]
    assert {kind for step in kinds for kind in step} == {frozenset(), given, written}
    assert sum(first != second for first, second in kinds) >= 3
    assert losses(folder) == pytest.approx(losses(whole("unified", "ddp")), rel=1e-4)


@needs_deepspeed
@pytest.mark.parametrize("engine", ["zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_codes_stay_those_of_fp32_in_a_bf16_run(server, words, recipes, tmp_path, engine):  # noqa: F811
    run, seen = tmp_path / "run", tmp_path / "seen"
    overrides = ["training.bf16=true", "training.max_steps=4", f"training.output_dir={run}"]
    ended = server.run(*words("unified", engine), *overrides, watch=seen)
    assert ended.codes == [0, 0], ended.said[-3000:]
    tokenizer = EvoTokVQModel.from_pretrained(recipes / "vq", dtype=torch.float32)
    pairs = {"pixel_values": "image_codes", "generation_pixel_values": "generation_codes"}
    compared = 0
    for batch in (batch for step in watched(seen) for batch in step):
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
@pytest.mark.parametrize("stage, engine", [("gen", "zero2"), ("gen", "zero3"), ("tokenizer", "zero2")])
def test_two_processes_become_one_through_a_universal_checkpoint(server, words, whole, tmp_path, stage, engine):
    """The tokenizer's codebooks as well, which are in no optimizer."""
    told, two = words(stage, engine), tmp_path / "two"
    if stage == "tokenizer":  # a restart draws random vectors of the batch, on two processes other ones
        told.append("model.config.codebook_restart_threshold=0.0")
        ended = server.run(*told, f"training.output_dir={two}")
        assert ended.codes == [0, 0], ended.said[-3000:]
    else:
        two = whole(stage, engine)
    shutil.copytree(two / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="written by 2 processes, this run has 1") as refused:
        prepare_engine(SimpleNamespace(world_size=1), str(tmp_path / "checkpoint-2"))
    _, *command = re.search("(python -m .+), then", str(refused.value))[1].split()
    converted = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert converted.returncode == 0, converted.stderr[-3000:]
    overrides = ["training.per_device_train_batch_size=4", f"training.output_dir={tmp_path}"]
    ended = server.run(*told, *overrides, ranks=1)
    assert ended.codes == [0], ended.said[-3000:]
    assert losses(tmp_path) == pytest.approx(losses(two), rel=1e-5)


def test_without_an_engine_one_process_goes_on_where_two_have_ended(server, words, whole, tmp_path):
    """Nothing is converted, and the losses are those that two would have had."""
    two = whole("gen", "ddp")
    shutil.copytree(two / "checkpoint-2", tmp_path / "checkpoint-2")
    overrides = ["training.per_device_train_batch_size=4", f"training.output_dir={tmp_path}"]
    ended = server.run(*words("gen", "ddp"), *overrides, ranks=1)
    assert ended.codes == [0], ended.said[-3000:]
    assert len(losses(two)) == 6 and losses(tmp_path) == pytest.approx(losses(two), rel=1e-5)


@needs_deepspeed
def test_the_tokenizer_learns_under_zero2_what_it_does_without(whole):
    """Weights, codebooks with their counts, and the discriminator, which no engine sees."""
    plain, sharded = whole("tokenizer", "ddp"), whole("tokenizer", "zero2")
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-4)
    assert_close(plain / "checkpoint-6", sharded / "checkpoint-6", "model", "discriminator")


@needs_deepspeed
def test_its_codebooks_learn_in_fp32_in_a_bf16_run_too(server, words, tmp_path):
    """Autocast is the same with an engine as without, and so is an average."""
    overrides = ["training.bf16=true", "training.max_steps=4", "training.save_steps=4", "optimizer.average_decay=0.9"]
    for engine in ("ddp", "zero2"):
        ended = server.run(*words("tokenizer", engine), *overrides, f"training.output_dir={tmp_path / engine}")
        assert ended.codes == [0, 0], ended.said[-3000:]
    plain, sharded = tmp_path / "ddp", tmp_path / "zero2"
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-3)
    assert_close(plain / "checkpoint-4", sharded / "checkpoint-4", "model", "average", "discriminator")
    kinds = {tensor.dtype for tensor in load_file(sharded / "checkpoint-4" / "model.safetensors").values()}
    assert kinds == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        pytest.param("zero3", marks=needs_deepspeed),
        pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
    ],
)
def test_what_is_not_finite_on_one_process_ends_all(server, words, whole, tmp_path, engine):
    """They stop together, with the same message, when the next checkpoint is due; what is kept is gone on from."""
    words = [*words("unified", engine), f"training.output_dir={tmp_path}"]
    ended = server.run(*words, "training.logging_steps=100", harm=Spoil(1, 3))
    assert ended.codes == [2, 2], ended.said[-3000:]
    assert ended.said.count("evotok train: step 3: loss: not finite") == 2
    assert ended.said.count(f"kept: {tmp_path / 'checkpoint-2'}.") == 2
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "model.safetensors").exists()
    ended = server.run(*words)
    assert ended.codes == [0, 0], ended.said[-3000:]
    assert same_weights(tmp_path, whole("unified", engine))


@needs_deepspeed
@pytest.mark.parametrize("stage, engine, rank", [("gen", "zero2", 1), ("unified", "zero3", 0)])
def test_a_full_disk_ends_all_processes_and_leaves_the_last_checkpoint(
    server, words, whole, tmp_path, stage, engine, rank
):
    """It is full for one of them, in the middle of a file, and that one says so: the other has lost it."""
    words = [*words(stage, engine), f"training.output_dir={tmp_path}"]
    ended = server.run(*words, harm=FullDisk(rank, 4, room=30_000))
    assert ended.codes[rank] == 2 and ended.codes[1 - rank] in (1, 2), ended.said[-3000:]
    [said] = [line for line in ended.said.splitlines() if "the disk is full" in line]
    assert said.startswith(f"evotok train: {tmp_path / 'checkpoint-4'}: ")
    assert f"kept: {tmp_path / 'checkpoint-2'}." in said
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    ended = server.run(*words)
    assert ended.codes == [0, 0], ended.said[-3000:]
    assert same_weights(tmp_path, whole(stage, engine))
