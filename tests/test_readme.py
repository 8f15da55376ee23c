"""README.md: its generated blocks are current, its numbers are the model's. Its code is in test_documents.py."""

import re
from pathlib import Path

import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration
from evotok.readme import blocks, fill


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_blocks_are_current():
    assert fill(README, blocks()) == README, "run `python -m evotok.readme`"


def test_a_missing_block_is_named():
    with pytest.raises(ValueError, match="no block <!-- nothing -->"):
        fill("text", {"nothing": ""})


def test_the_tree_has_every_folder_and_file_of_code():
    tree = blocks()["tree"]
    for top in ("evotok", "modeling_evotok", "processing", "training", "eval"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            assert f"\n{folder}/ " in tree, f"{folder}: missing in `TREE` of evotok/readme.py"
            if path.name != "__init__.py":
                assert f"\n    {path.name} " in tree, f"{path}: its docstring says nothing"


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
