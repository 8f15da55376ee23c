"""What cases are made of: a tiny checkpoint of each kind, built once, and copies of it to spoil."""

import contextlib
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY_VQ, build_tiny_model
from PIL import Image
from release_format import SIZES, make_projector, make_tokenizer, prefixed, save_language_model, save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from evotok import EvoTokConfig, EvoTokProcessor
from evotok.commands.codes import Codes, write_codes
from evotok.data.code_shards import tokenizer_hash
from evotok.training.backbones.text_tokenizer import train_text_tokenizer
from strangers.case import SECRET, Place
from strangers.page import ORDER, Visitor


SIZE, POSITIONS, LEVELS, ENTRIES = 32, 16, 4, 32


class Materials:
    """A full checkpoint of 32 px images (`model`), its tokenizer alone (`tokenizer`) and another one (`other`).

    Args:
        folder: empty; the checkpoints are written there.
    """

    def __init__(self, folder: Path):
        self.folder, self.page_folder, self._open = folder, folder / "page", ExitStack()
        texts = ["What is this? A frog, please draw two cats on a blue background, noto style: yes no left right."] * 2
        self.processor = EvoTokProcessor.from_parts(
            train_text_tokenizer(texts, 300), image_size=SIZE, num_image_tokens=POSITIONS
        )
        tokenizer = self.processor.tokenizer
        config = EvoTokConfig(
            vq_config=dict(TINY_VQ),
            depth_decoder_config={
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            },
            text_config={
                "model_type": "qwen2", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "max_position_embeddings": 128, "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            },
            **self.processor.token_ids,
        )  # fmt: skip
        self.model = build_tiny_model(config)
        self.fingerprint = tokenizer_hash(self.model.model.vq_model)
        self.model.save_pretrained(folder / "model")
        self.processor.save_pretrained(folder / "model")
        self.model.model.vq_model.save_pretrained(folder / "tokenizer")
        build_tiny_model(config, seed=1).model.vq_model.save_pretrained(folder / "other")

    @functools.cached_property
    def release(self) -> Path:
        """Folder in the format of the paper's release: `last.pt`, a language model in two shards, a text tokenizer."""
        folder = self.folder / "release"
        save_tokenizer(self.folder / "last.pt", make_tokenizer())
        config = {
            "vocab_size": 303, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        }  # fmt: skip
        tensors = Qwen2ForCausalLM(Qwen2Config(**config)).state_dict()
        tensors |= prefixed("model.mm_projector.", make_projector(SIZES["dim"]))
        save_language_model(folder, tensors, config | {"mm_use_im_start_end": True}, form="bin", shards=2)
        shutil.move(self.folder / "last.pt", folder)
        tokenizer = train_text_tokenizer(["A frog, please draw two cats on a blue background."] * 2, 300)
        tokenizer.add_tokens(["[PAD]", "<im_start>", "<im_end>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        return folder

    @functools.cached_property
    def trained(self) -> Path:
        """Folder of a run of two steps: `recipe.yaml`, its `pictures`, and `run` with a checkpoint of the second."""
        from evotok.training.recipes import read_recipe
        from evotok.training.train import train

        folder = self.folder / "trained"
        (folder / "pictures").mkdir(parents=True)
        for number in range(4):
            Image.linear_gradient("L").rotate(90 * number).resize((40, 40)).save(folder / f"pictures/{number}.png")
        recipe = {
            "stage": "tokenizer",
            "model": {"config": TINY_VQ},
            "data": {"name": "folder", "path": "pictures"},
            "loss": {"perceptual": 0.0, "semantic": 0.0, "adversarial": 0.0},
            "training": {
                "output_dir": "run", "max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "seed": 0,
                "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
            },
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            train(read_recipe("recipe.yaml"))
        return folder

    @functools.cached_property
    def visitor(self) -> Visitor:
        """Of the page of `model`, which is served from now on until `close`."""
        pytest.importorskip("gradio", reason="the page needs the extra `app`")
        from evotok.app.server import serve
        from evotok.commands.app import listen

        self.page_folder.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(self.page_folder)  # where the page makes its folder
        served = self._open.enter_context(serve(self.model, self.processor, listen("127.0.0.1", None)))
        tempfile.tempdir = before
        visitor = Visitor(served.url)
        visitor.ask("draw-go", list(ORDER.values()))  # the first event makes folders of libraries
        return visitor

    def close(self) -> None:
        """Serve the page no longer."""
        if "visitor" in vars(self):
            self.visitor.client.close()
        self._open.close()

    def fill_outside(self, folder: Path) -> None:
        """The canaries: each would be taken if it lay inside, and says so when it is read."""
        Image.new("RGB", (8, 8), "red").save(folder / f"{SECRET}.png")
        (folder / "evil.py").write_text(f"raise SystemExit('{SECRET}')\n")
        (folder / "recipe.yaml").write_text(f"stage: gen\nmodel: {{{SECRET}: 1}}\n")
        shutil.copy(self.folder / "model" / "model.safetensors", folder)
        shutil.copy(self.folder / "model" / "config.json", folder)


def checkpoint(kind: str, spoil: Callable[[Path], Any] | None = None) -> Callable[[Place], str]:
    """Makes a copy of a checkpoint in the place, spoils it, and returns its name."""

    def make(place: Place) -> str:
        folder = place.path / kind
        shutil.copytree(place.materials.folder / kind, folder)
        if spoil is not None:
            spoil(folder)
        return kind

    return make


def change_json(name: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Changes a JSON file of a checkpoint in place."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return spoil


def change_weights(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Changes the tensors of a checkpoint in place."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def codes_of(place: Place, codes: np.ndarray, names: Any = None, tokenizer: str | None = None) -> str:
    """A file of codes as `evotok encode` would write it."""
    names = [f"picture {index}.png" for index in range(len(codes))] if names is None else names
    write_codes(place.path / "codes.safetensors", Codes(codes, names, tokenizer or place.materials.fingerprint))
    return "codes.safetensors"


def good_codes(images: int = 1) -> np.ndarray:
    """Codes that the tiny tokenizer knows, (images, 16, 4) uint16."""
    return np.random.default_rng(0).integers(0, ENTRIES, (images, POSITIONS, LEVELS)).astype(np.uint16)
