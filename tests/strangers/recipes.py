"""Recipes: YAML that is none, keys and values that nobody knows, bombs, circles, and words that change them."""

import os

from strangers.case import Case, Group, Place, run_command


START = "stage: tokenizer\n"


def case(given: str, gets: str, content: bytes | str, *overrides: str) -> Case:
    return Case(given, gets, lambda place: [place.write("recipe.yaml", content), *overrides])


def train(_: Place, words: list[str]) -> str:
    return run_command(_, ["train", *words])


def bomb() -> str:
    """Nine aliases of nine aliases of ...: 9^9 items in a few hundred bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines) + "\n"


def circle(place: Place) -> list[str]:
    place.write("other.yaml", "base: recipe.yaml\n")
    return [place.write("recipe.yaml", "base: other.yaml\n")]


CASES = [
    Case(
        "no such file",
        "evotok train: missing.yaml: no such recipe. The shipped ones are in configs/.",
        lambda place: ["missing.yaml"],
    ),
    Case(
        "folder",
        "evotok train: recipe.yaml: no such recipe. The shipped ones are in configs/.",
        lambda place: (place.path / "recipe.yaml").mkdir() or ["recipe.yaml"],
    ),
    Case(
        "pipe that never ends",
        "evotok train: recipe.yaml: no such recipe. The shipped ones are in configs/.",
        lambda place: os.mkfifo(place.path / "recipe.yaml") or ["recipe.yaml"],
    ),
    Case(
        "link to itself",
        "evotok train: recipe.yaml: no such recipe. The shipped ones are in configs/.",
        lambda place: [place.link("recipe.yaml", "recipe.yaml")],
    ),
    Case(
        "base in a circle",
        "evotok train: recipe.yaml: is its own base, directly or through others: remove a `base`.",
        circle,
    ),
    case(
        "empty file",
        "evotok train: recipe.yaml: no recipe: give keys and values for `stage`, `model`, `data` and `training`.",
        "",
    ),
    case(
        "text",
        "evotok train: recipe.yaml: no recipe: give keys and values for `stage`, `model`, `data` and `training`.",
        "train the tokenizer",
    ),
    case(
        "list",
        "evotok train: recipe.yaml: no recipe: give keys and values for `stage`, `model`, `data` and `training`.",
        "- stage: gen\n",
    ),
    case(
        "number",
        "evotok train: recipe.yaml: no recipe: give keys and values for `stage`, `model`, `data` and `training`.",
        "3",
    ),
    case("not UTF-8", "evotok train: recipe.yaml: not UTF-8: save the recipe as UTF-8.", b"stage: \xff\xfe"),
    case("null bytes", "evotok train: recipe.yaml: not YAML: …: correct it.", b"\0" * 100),
    case(
        "a picture",
        "evotok train: recipe.yaml: not UTF-8: save the recipe as UTF-8.",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ),
    case("brackets that do not close", "evotok train: recipe.yaml: not YAML: …: correct it.", "stage: [gen"),
    case("tabs for indentation", "evotok train: recipe.yaml: not YAML: …: correct it.", "model:\n\tcheckpoint: a\n"),
    case(
        "tag that would call the system",
        "evotok train: recipe.yaml: not YAML: …: correct it.",
        "stage: !!python/object/apply:os.system [touch called]\n",
    ),
    case(
        "tag that would import",
        "evotok train: recipe.yaml: not YAML: …: correct it.",
        "stage: !!python/name:os.system\n",
    ),
    case("tag that no text goes with", "evotok train: recipe.yaml: not YAML: …: correct it.", "stage: !!bool x\n"),
    case("tag of a number without digits", "evotok train: recipe.yaml: not YAML: …: correct it.", "gpus: !!int ''\n"),
    case(
        "day that does not exist",
        "evotok train: recipe.yaml: stage '2001-99-99' is not one of ….",
        "stage: 2001-99-99\n",
    ),
    Case(
        "1,200 bases in a row",
        "evotok train: 21.yaml: the base of 21 recipes in a row, over the limit of 20: merge some.",
        lambda place: [place.write(f"{n}.yaml", f"base: {n + 1}.yaml\n") for n in reversed(range(1200))][-1:],
    ),
    case(
        "recipe of 2 MB",
        "evotok train: recipe.yaml: over the limit of 1 MB of a recipe: give a shorter one.",
        START + "#" * 2_000_000,
    ),
    case(
        "steps of no batch",
        "evotok train: recipe.yaml: training.gradient_accumulation_steps must be at least 1, not 0.",
        START,
        "training.gradient_accumulation_steps=0",
    ),
    case(
        "decay without end",
        "evotok train: recipe.yaml: training.weight_decay is inf: give a finite number.",
        START,
        "training.weight_decay=.inf",
    ),
    case(
        "learning rate that is no number",
        "evotok train: recipe.yaml: optimizer.matrix_learning_rate is nan: give a finite number.",
        START,
        "optimizer.matrix_learning_rate=.nan",
    ),
    case(
        "adapters whose names hang",
        "evotok train: recipe.yaml: lora: target_modules should be plain names of modules, not '(a+)+$': write them out.",
        "stage: sft\nlora: {target_modules: (a+)+$}\n",
    ),
    case(
        "nested very deeply",
        "evotok train: recipe.yaml: nested more than 50 deep: remove some brackets.",
        "[" * 100_000,
    ),
    case("two documents", "evotok train: recipe.yaml: not YAML: …: correct it.", "stage: gen\n---\nstage: sft\n"),
    case(
        "base that is missing",
        "evotok train: missing.yaml: no such recipe. The shipped ones are in configs/.",
        "base: missing.yaml\n",
    ),
    case(
        "base that is itself",
        "evotok train: recipe.yaml: is its own base, directly or through others: remove a `base`.",
        "base: recipe.yaml\n",
    ),
    case(
        "base that is a number",
        "evotok train: recipe.yaml: base 3 is no file name: give the path of one recipe.",
        "base: 3\n",
    ),
    case(
        "base that is a list",
        "evotok train: recipe.yaml: base ['a.yaml', 'b.yaml'] is no file name: give the path of one recipe.",
        "base: [a.yaml, b.yaml]\n",
    ),
    case(
        "no stage",
        "evotok train: recipe.yaml: stage None is not one of vision, language, tokenizer, pretrain, sft, gen, unified, dpo.",
        "model: {}\n",
    ),
    case(
        "stage that does not exist",
        "evotok train: recipe.yaml: stage 'tokeniser' is not one of vision, language, tokenizer, pretrain, sft, gen, unified, dpo.",
        "stage: tokeniser\n",
    ),
    case(
        "stage that is a list",
        "evotok train: recipe.yaml: stage ['gen'] is not one of vision, language, tokenizer, pretrain, sft, gen, unified, dpo.",
        "stage: [gen]\n",
    ),
    case(
        "section that does not exist",
        "evotok train: recipe.yaml: unknown key 'optimiser'. Did you mean 'optimizer'?",
        START + "optimiser: {}\n",
    ),
    case(
        "section that is a number",
        "evotok train: recipe.yaml: unknown key 3. Known keys: data, gpus, lora, loss, max_minutes, model, optimizer, preference, processor, stage, training.",
        START + "3: 4\n",
    ),
    case(
        "key of a section that does not exist",
        "evotok train: recipe.yaml: data: unknown key 'nmae'. Did you mean 'name'?",
        START + "data: {nmae: world}\n",
    ),
    case(
        "key of training that does not exist",
        "evotok train: recipe.yaml: training: unknown key 'learning_rte'. Did you mean 'learning_rate'?",
        START + "training: {learning_rte: 1}\n",
    ),
    case(
        "key that is a number",
        "evotok train: recipe.yaml: data: unknown key 3. Known keys: ….",
        START + "data: {3: world}\n",
    ),
    case(
        "key of the model's config that does not exist",
        "evotok train: recipe.yaml: model.config: unknown key 'codebok_size'. Did you mean 'codebook_size'?",
        START + "model: {config: {codebok_size: 64}}\n",
    ),
    case(
        "section that is null", "evotok train: recipe.yaml: model: give keys and values, not None.", START + "model:\n"
    ),
    case(
        "section that is text",
        "evotok train: recipe.yaml: data: give keys and values, not 'world'.",
        START + "data: world\n",
    ),
    case(
        "section that is a list",
        "evotok train: recipe.yaml: loss: give keys and values, not [1, 2].",
        START + "loss: [1, 2]\n",
    ),
    case(
        "training that is a list",
        "evotok train: recipe.yaml: training must be dict[str, Any], not [1].",
        START + "training: [1]\n",
    ),
    case(
        "training that is null",
        "evotok train: recipe.yaml: training must be dict[str, Any], not None.",
        START + "training:\n",
    ),
    case(
        "no GPU at all",
        "evotok train: recipe.yaml: gpus 0 is not at least 1: give the number that the batch is meant for.",
        START + "gpus: 0\n",
    ),
    case(
        "lora that is a number",
        "evotok train: recipe.yaml: lora must be dict[str, Any], not 3.",
        "stage: sft\nlora: 3\n",
    ),
    case(
        "processor that is a list",
        "evotok train: recipe.yaml: processor must be dict[str, Any], not ['a'].",
        "stage: sft\nprocessor: [a]\n",
    ),
    Case(
        "bomb of aliases for a section",
        "evotok train: recipe.yaml: aliases (*name) are not read: write the values out.",
        lambda place: [place.write("recipe.yaml", bomb().replace("a9: &a9", "model: &a9") + START)],
    ),
    Case(
        "bomb of aliases for a value",
        "evotok train: recipe.yaml: aliases (*name) are not read: write the values out.",
        lambda place: [place.write("recipe.yaml", bomb() + START + "data: {name: *a9}\n")],
    ),
    case(
        "length that is text",
        "evotok train: recipe.yaml: data: max_length must be int, not 'long'.",
        START + "data: {max_length: long}\n",
    ),
    case(
        "path that is a number",
        "evotok train: recipe.yaml: data: path must be str | None, not 3.",
        START + "data: {path: 3}\n",
    ),
    case(
        "weight that is text",
        "evotok train: recipe.yaml: loss: commitment must be float, not 'heavy'.",
        START + "loss: {commitment: heavy}\n",
    ),
    case(
        "mixture that is a list",
        "evotok train: recipe.yaml: data: mixture must be dict[str, float | int], not ['t2i'].",
        START + "data: {mixture: [t2i]}\n",
    ),
    case(
        "mixture of words",
        "evotok train: recipe.yaml: data: mixture must be dict[str, float | int], not {'plain': 'much'}.",
        START + "data: {mixture: {plain: much}}\n",
    ),
    case(
        "prompts that are one text",
        "evotok train: recipe.yaml: data: sample_prompts must be list[str], not 'a frog'.",
        START + "data: {sample_prompts: a frog}\n",
    ),
    case(
        "steps that are text",
        "evotok train: recipe.yaml: training: max_steps must be int, not 'many'.",
        START + "training: {output_dir: out, max_steps: many}\n",
    ),
    case(
        "batch size that is null",
        "evotok train: recipe.yaml: training: per_device_train_batch_size must be int, not None.",
        START + "training: {output_dir: out, per_device_train_batch_size: }\n",
    ),
    case(
        "schedule that does not exist",
        "evotok train: training: zigzag is not a valid SchedulerType, please select one of …: correct the recipe.",
        START + "training: {output_dir: out, lr_scheduler_type: zigzag}\n",
    ),
    case(
        "size of the model that is text",
        "evotok train: model.config: …",
        START + "model: {config: {codebook_size: many}}\ntraining: {output_dir: out, max_steps: 1}\n",
    ),
    case(
        "more levels for pixels than there are",
        "evotok train: model.config: …",
        START + "model: {config: {num_pixel_codebooks: 99}}\ntraining: {output_dir: out, max_steps: 1}\n",
    ),
    case(
        "encoder that does not exist",
        "evotok train: Unrecognized model type for subconfig: nothing. Should contain one of …",
        START + "model: {config: {encoder_config: {model_type: nothing}}}\ntraining: {output_dir: out, max_steps: 1}\n",
    ),
    case(
        "checkpoint that is missing",
        "evotok train: model.checkpoint: missing: no such folder: train the stage before, or give another checkpoint.",
        "stage: sft\nmodel: {checkpoint: missing}\ntraining: {output_dir: out}\n",
    ),
    case(
        "tokenizer checkpoint that is missing",
        "evotok train: model.vq_checkpoint: missing: no such folder: train the stage before, or give another checkpoint.",
        "stage: pretrain\nmodel: {vq_checkpoint: missing}\ntraining: {output_dir: out}\n",
    ),
    case(
        "neither checkpoint nor tokenizer",
        "evotok train: give the recipe model.checkpoint (the stage before) or model.vq_checkpoint (a tokenizer).",
        "stage: pretrain\ntraining: {output_dir: out, max_steps: 1}\n",
    ),
    case(
        "data that do not exist",
        "evotok train: data.name 'nothing' is not one of world, folder, mixture, which the stage tokenizer reads: give one of them.",
        "stage: tokenizer\ndata: {name: nothing}\ntraining: {output_dir: out}\n",
    ),
    case(
        "data of another stage",
        "evotok train: data.name 'folder' is not one of world, llava, mixture, which the stage sft reads: give one of them.",
        "stage: sft\ndata: {name: folder, path: a}\ntraining: {output_dir: out}\n",
    ),
    case(
        "override without value",
        "evotok train: override 'training.max_steps' is not of the form section.key=value: write it so.",
        START,
        "training.max_steps",
    ),
    case(
        "override without key",
        "evotok train: override '=3' is not of the form section.key=value: write it so.",
        START,
        "=3",
    ),
    case(
        "override of a key with a hole",
        "evotok train: override 'training..max_steps=3' is not of the form section.key=value: write it so.",
        START,
        "training..max_steps=3",
    ),
    case(
        "override of a section that does not exist",
        "evotok train: recipe.yaml: unknown key 'trainin'. Did you mean 'training'?",
        START,
        "trainin.max_steps=3",
    ),
    case(
        "override that goes into a value",
        "evotok train: override 'stage.max_steps=3': 'stage' is a value, not a section: correct the keys.",
        START,
        "stage.max_steps=3",
    ),
    case(
        "override that is no YAML",
        "evotok train: override 'training.max_steps=[3': not YAML: …: correct it.",
        START,
        "training.max_steps=[3",
    ),
    case(
        "override with a tag",
        "evotok train: override 'training.max...touch called]': not YAML: …: correct it.",
        START,
        "training.max_steps=!!python/object/apply:os.system [touch called]",
    ),
    case(
        "override with a stage that does not exist",
        "evotok train: recipe.yaml: stage 'paint' is not one of vision, language, tokenizer, pretrain, sft, gen, unified, dpo.",
        START,
        "stage=paint",
    ),
]

GROUPS = [Group("Recipes", "`evotok train`", train, CASES, refusal="exit 2")]
