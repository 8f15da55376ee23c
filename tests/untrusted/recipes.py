"""Recipes and trainings: YAML that is none, unknown keys, wrong values, bombs, damaged checkpoints to resume from."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.materials import DEEP, Change, remove, write


START = "stage: tokenizer\n"
SFT = "stage: sft\n"
OUT = "training={output_dir: out, max_steps: 1}"


def train(_: Workspace, words: list[str]) -> str:
    return run_command(_, ["train", *words])


def recipe(content: bytes | str, *overrides: str):
    return lambda workspace: [workspace.write("recipe.yaml", content), *overrides]


def alias_bomb() -> str:
    """Returns nine aliases of nine aliases of ...: 9^9 items in a few hundred bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines) + "\n"


def bases(workspace: Workspace) -> list[str]:
    return [workspace.write(f"{n}.yaml", f"base: {n + 1}.yaml\n") for n in reversed(range(1200))][-1:]


def cycle(workspace: Workspace) -> list[str]:
    workspace.write("other.yaml", "base: recipe.yaml\n")
    return [workspace.write("recipe.yaml", "base: other.yaml\n")]


RECIPES = [
    kind("file of something else", "recipe.yaml: {}.")(
        case("pipe", lambda workspace: os.mkfifo(workspace.path / "recipe.yaml") or ["recipe.yaml"], "no such recipe. The shipped ones are in configs/"),
        case("bytes", recipe(b"stage: \xff\xfe"), "not UTF-8: save the recipe as UTF-8"),
    ),
    kind("YAML tag", "{}: not YAML: …: correct it.")(
        case("call", recipe("stage: !!python/object/apply:os.system [touch called]\n"), "recipe.yaml"),
        case("value that does not fit", recipe("stage: !!bool x\n"), "recipe.yaml"),
        case("override", recipe(START, "training.max_steps=!!python/name:os.a"), "override 'training.max...hon/name:os.a'"),
    ),
    kind("size of a recipe", "recipe.yaml: {}.", limit="1 MB, 50 deep, no aliases")(
        case("2 MB", recipe(START + "#" * 2_000_000), "over the limit of 1 MB of a recipe: give a shorter one"),
        case("100,000 brackets", recipe("[" * 100_000), "nested more than 50 deep: remove some brackets"),
        case("bomb of aliases", recipe(alias_bomb() + START), "aliases (*name) are not read: write the values out"),
    ),
    kind("bases", "{}.", limit="20 in a row")(
        case("1,200 in a row", bases, "21.yaml: the base of 21 recipes in a row, over the limit of 20: merge some"),
        case("cycle", cycle, "recipe.yaml: is its own base, directly or through others: remove a `base`"),
        case("number", recipe("base: 3\n"), "recipe.yaml: base 3 is no file name: give the path of one recipe"),
    ),
    kind("keys and values", "recipe.yaml: {}.")(
        case("number as a key", recipe(START + "data: {3: a}\n"), "data: unknown key 3. Known keys: …"),
        case("type", recipe(START + "data: {max_length: long}\n"), "data: max_length must be int, not 'long'"),
        case("no accumulation", recipe(START, "training.gradient_accumulation_steps=0"), "training.gradient_accumulation_steps must be at least 1, not 0"),
        case("no GPU", recipe(START + "gpus: 0\n"), "gpus 0 is not at least 1: give the number that the batch is meant for"),
        case("infinite", recipe(START, "training.weight_decay=.inf"), "training.weight_decay is inf: give a finite number"),
        case(
            "regular expression that hangs",
            recipe(SFT + "lora: {target_modules: (a+)+$}\n"),
            "lora: target_modules should be plain names of modules, not '(a+)+$': write them out",
        ),
    ),
    kind("model, data or schedule of a stage", "{}")(
        case("checkpoint", recipe(SFT, "model.checkpoint=missing", OUT), "model.checkpoint: missing: no such folder: train the stage before, …."),
        case("no checkpoint", recipe("stage: pretrain\n", OUT), "give the recipe model.checkpoint (the stage before) or model.vq_checkpoint (a tokenizer)."),
        case("size", recipe(START, "model.config.codebook_size=many", OUT), "model.config: …'codebook_size' expected int, got str (value: 'many')"),
        case("schedule", recipe(START, OUT, "training.lr_scheduler_type=zigzag"), "training: zigzag is not a valid SchedulerType, …: correct the recipe."),
        case("encoder", recipe(START, "model.config.encoder_config={model_type: nothing}", OUT), "Unrecognized model type for subconfig: nothing. Should …"),
        case(
            "data",
            recipe(SFT, "data.name=folder", "data.path=a", OUT),
            "data.name 'folder' is not one of world, llava, mixture, which the stage sft reads: give one of them.",
        ),
        case("no file", recipe(SFT, "data.name=llava", OUT), "data.name llava: reads a file, and data.path names none: set it to a JSON or JSONL file."),
    ),
]


def resumed(change: Change | None, *words: str):
    """Resumes the training of the materials, whose checkpoint is changed, by a recipe with other values."""

    def make(workspace: Workspace) -> list[str]:
        shutil.copytree(workspace.materials.trained, workspace.path, dirs_exist_ok=True)
        if change is not None:
            change(workspace.path / "run" / "checkpoint-2")
        return ["recipe.yaml", *words]

    return make


def goes_on(change: Change | None, *words: str):
    """Resumes for a third step."""
    return resumed(change, "training.max_steps=3", "training.save_steps=1", *words)


def reached_step_3(printed: str) -> None:
    assert "run: step 3, mean loss" in printed
    state = json.loads(Path("run/checkpoint-3/trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


def edited(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def billionth(content: bytes) -> bytes:
    return content.replace(b'"global_step": 2', b'"global_step": 1000000000')


def zeroed_tensors(folder: Path) -> None:
    weights = {name: torch.zeros_like(w) for name, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def newer(folder: Path) -> None:
    """Dates a checkpoint an hour ahead, as after a clock that was set back."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (path.stat().st_mtime + 3600,) * 2)


def locked(workspace: Workspace) -> list[str]:
    """Holds the lock of another training, as long as the workspace exists."""
    words = resumed(None)(workspace)
    workspace.lock = (workspace.path / "run" / ".lock").open("w")
    fcntl.flock(workspace.lock, fcntl.LOCK_EX)
    return words


OUTSIDE = {"format": 1, "step": 2, "finished": True, "files": {"../../../outside/canary.png": [1, "a"]}}
DAMAGED = "run: all checkpoints to resume from are damaged (checkpoint-2: {}): put the files back, or start again with --restart, which moves them aside."
OTHER_RECIPE = "as trained by another recipe (model.config.codebook_size: 32 -> 64), which does not match this one: restore the former value"
OTHER_ENGINE = "ritten under DeepSpeed without ZeRO-3, but this run is under no engine: restore the former training.deepspeed"
RESUMED = [
    kind("damaged checkpoint, and no older one", DAMAGED, limit="sizes and hashes of the manifest")(
        case("missing file", resumed(remove("optimizer.pt")), "optimizer.pt is missing"),
        case("file of zeros", resumed(edited("optimizer.pt", lambda c: bytes(len(c)))), "optimizer.pt is damaged"),
        case("one flipped bit", resumed(edited("model.safetensors", flipped)), "model.safetensors is damaged"),
        case("tensors of zeros", resumed(zeroed_tensors), "model.safetensors …"),
        case("step of a billion", resumed(edited("trainer_state.json", billionth)), "trainer_state.json has …"),
        case("list for the state of the data", resumed(lambda folder: torch.save([1], folder / "data_state_0.pt")), "data_state_0.pt has …"),
        case("manifest nested deeply", resumed(write("manifest.json", DEEP)), "manifest.json is damaged"),
        case("files outside", resumed(write("manifest.json", json.dumps(OUTSIDE))), "manifest.json is damaged"),
    ),
    kind("checkpoint of another recipe or engine", "run/checkpoint-2: w{}, or give another training.output_dir, or --restart.")(
        case("codebooks", resumed(None, "model.config.codebook_size=64"), OTHER_RECIPE), case("engine", resumed(write("latest", "global_step2")), OTHER_ENGINE)
    ),
    kind("folder of another training", "run: another run is training into this folder: wait until it ends, or give another training.output_dir.")(locked),
    kind("another learning rate and weight decay", "used from the checkpoint on, and named")(
        goes_on(None, "training.learning_rate=0.5", "training.weight_decay=0.25"), check=reached_step_3, may_change="run/"
    ),
    kind("checkpoint with a date after all later ones", "the last step is kept, not the last date")(
        goes_on(newer, "training.save_total_limit=1"), check=reached_step_3, may_change="run/"
    ),
]

GROUPS = [Group("Recipes and trainings", "`evotok train`", train, RECIPES), Group("Recipes and trainings", "`evotok train`, resumed", train, RESUMED)]
