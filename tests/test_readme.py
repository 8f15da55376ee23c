"""README.md: its generated blocks are current, its commands and files exist, its numbers are the model's."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration
from evotok.cli import COMMANDS, build_parser
from evotok.readme import blocks, fill


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def test_generated_blocks_are_current():
    assert fill(README, blocks()) == README, "run `python -m evotok.readme`"


def test_a_missing_block_is_named():
    with pytest.raises(ValueError, match="no block <!-- nothing -->"):
        fill("text", {"nothing": ""})


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_exist_and_parse(line):
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "evotok":
        assert words[0] in COMMANDS
        options, rest = build_parser(words[0]).parse_known_args(words)
        assert options.run and not [word for word in rest if word.startswith("-")]
    else:
        assert program == "torchrun" and "evotok.training.train" in words
    for path in re.findall(r"configs/[\w./-]+", line):
        assert (ROOT / path).is_file(), path


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_names_real_folders():
    for name in re.findall(r"^    (\w+)/ {2,}", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_parameters_are_the_models():
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(EvoTokConfig())
    vq = model.model.vq_model
    parts = {
        "encoder": [vq.vision_tower],
        "to the latent space": [vq.to_latent],
        "codebooks": [vq.quantizer],
        "semantic decoder": [vq.semantic_decoder],
        "pixel decoder": [vq.pixel_decoder],
        r"\*\*image tokenizer\*\*": [vq],
        "semantic projector": [model.model.semantic_projector],
        "pixel projector": [model.model.pixel_projector],
        "depth decoder": [model.depth_decoder],
        "language model": [model.model.language_model, model.lm_head],
    }
    for name, modules in parts.items():
        count = sum(p.numel() for module in modules for p in module.parameters())
        said = re.search(rf"^\| {name} \|.*\| ([\d,]+) \|$", README, re.MULTILINE)
        assert said and said[1] == f"{count:,}", name
