"""Evaluations: benchmarks that are not whole, images that cannot be read, folders with the results of something else."""

import json

from strangers.case import Case, Group, Place, run_command
from strangers.images import noise, saved
from strangers.materials import checkpoint


FINISHED = {"suite": "reconstruction", "checkpoint_sha256": "ab" * 32, "figures": {}, "finished": True}


def prepare(place: Place) -> None:
    """A model, a tokenizer, a folder of three images, and one with one more, cut short."""
    checkpoint("model")(place)
    checkpoint("tokenizer")(place)
    for index in range(3):
        for folder in ("images", "spoilt"):
            place.write(f"{folder}/{index}.png", saved(noise(), "PNG"))
    place.write("spoilt/cut.png", saved(noise(), "PNG")[:200])


def case(line: str, gets: str, given: str = "", **files: str) -> Case:
    """A command line, and files of JSON: their names without the suffix, __ for a slash."""

    def make(place: Place) -> list[str]:
        prepare(place)
        for name, content in files.items():
            place.write(f"{name.replace('__', '/')}.json", content)
        return ["eval", *line.split()]

    return Case(f"`evotok eval {line}`{given and f', {given}'}", f"evotok eval: {gets}", make)


PROMPTS = json.dumps({f"{number:05d}": {"prompt": "a cat"} for number in range(1, 100)})

CASES = [
    case("", "Missing argument 'SUITE'. Choose from: ablations, … (see evotok eval --help)"),
    case("fid model", "Invalid value for 'SUITE': 'fid' is not one of 'ablations', … (see evotok eval --help)"),
    case(
        "reconstrution model",
        "Invalid value for 'SUITE': 'reconstrution'. Did you mean 'reconstruction'? (see evotok eval --help)",
    ),
    case("reconstruction", "0 checkpoints: give one to measure, such as `evotok eval reconstruction mini`."),
    case(
        "reconstruction model tokenizer",
        "2 checkpoints: give one to measure, such as `evotok eval reconstruction mini`.",
    ),
    case(
        "reconstruction missing",
        "'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
    case("reconstruction model dephts=[1]", "reconstruction: unknown key 'dephts'. Did you mean 'depths'?"),
    case("reconstruction model batch_size=many", "reconstruction: batch_size must be int, not 'many'."),
    case(
        "reconstruction model --config missing.yaml", "missing.yaml: no such recipe. The shipped ones are in configs/."
    ),
    case(
        "reconstruction model data=images count=50000",
        "images: 3 images, not 50,000: some are missing, or not of it: give the whole set, or correct count=.",
    ),
    case(
        "reconstruction model data=images inception_weights=missing.pth",
        "inception_weights=missing.pth: no such file: give weights-inception-2015-12-05-6726825d.pth of …",
    ),
    case(
        "trajectory tokenizer data=spoilt clusters=2",
        "spoilt: 1 of 4 images cannot be read, the first is spoilt/cut.png: 'spoilt/cut.png': cannot be read (…): save the image again.",
    ),
    case("trajectory tokenizer data=images", "images: fewer images than clusters=8: give more, or fewer clusters."),
    case("geneval model", "prompts: none given: give GenEval's file: prompts=evaluation_metadata.jsonl."),
    case(
        "geneval model prompts=missing.jsonl", "missing.jsonl: no such file: give GenEval's evaluation_metadata.jsonl."
    ),
    case(
        "genai-bench model prompts=few.json skills=few.json",
        "few.json: 99 prompts, GenAI-Bench has 527 or 1600: copy the file again.",
        "with 99 prompts",
        few=PROMPTS,
    ),
    case(
        "genai-bench model prompts=cut.json skills=cut.json",
        "cut.json: damaged: copy GenAI-Bench's genai_image.json again.",
        "cut in the middle",
        cut=PROMPTS[:99],
    ),
    case("ablations model", "ablations: takes no checkpoint."),
    case("ablations recipes=images", "images/entangled.yaml: no such recipe. The shipped ones are in configs/."),
    case(
        "ablations encoder=missing",
        "encoder=missing: no vision tower there: give the folder of one, such as assets/vision-mini.",
    ),
    case("compare images", "images: no results.json: give a folder that `evotok eval` wrote."),
    case(
        "reconstruction model data=images --out images",
        "images: has files, but no results.json: give a new folder with --out.",
    ),
    case(
        "reconstruction model data=images --out out",
        "out: has results of another checkpoint (abab…...): give a new folder with --out, or measure anew with --restart.",
        "with results of another checkpoint in `out`",
        out__results=json.dumps(FINISHED),
    ),
    case(
        "trajectory model data=images teacher=org/tower clusters=2 --out out",
        "out: has results of another suite (reconstruction): give a new --out.",
        "with results of another suite in `out`",
        out__results=json.dumps(FINISHED),
    ),
    case(
        "reconstruction model data=images --out out --restart",
        "out/results.json: holds no results of `evotok eval`: remove it, or give another folder.",
        "with damaged results in `out`",
        out__results=json.dumps(FINISHED)[:40],
    ),
]

GROUPS = [Group("Evaluations", "`evotok eval`", run_command, CASES, refusal="exit 2")]
