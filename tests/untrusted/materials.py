"""Tiny checkpoints that the cases copy and change, each built once, and a page that is served."""

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_VQ, build_chat_model
from page_client import ORDER, SECRET, Visitor
from PIL import Image
from release_format import SIZES, make_projector, make_tokenizer, prefixed, save_language_model, save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from evotok.data.code_shards import tokenizer_hash
from evotok.training.backbones.text_tokenizer import train_text_tokenizer
from untrusted.case import Workspace


LEVELS, ENTRIES = TINY_VQ["num_codebooks"], TINY_VQ["codebook_size"]
DEEP = '{"a":' * 3000 + "1" + "}" * 3000  # JSON that recursion does not read


class Materials:
    """A full checkpoint of 32 px images (`model`) and its image tokenizer alone (`tokenizer`).

    Args:
        folder: empty; the checkpoints are written there.
    """

    def __init__(self, folder: Path):
        self.folder, self.page_folder, self._open = folder, folder / "page", ExitStack()
        self.model, self.processor = build_chat_model()
        self.model.config.text_config.max_position_embeddings = 128
        self.fingerprint = tokenizer_hash(self.model.model.vq_model)
        self.model.save_pretrained(folder / "model")
        self.processor.save_pretrained(folder / "model")
        self.model.model.vq_model.save_pretrained(folder / "tokenizer")

    @functools.cached_property
    def release(self) -> Path:
        """Writes a folder in the format of the release: `last.pt`, a language model in two shards, a text tokenizer."""
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
        """Trains for two steps; the folder has `recipe.yaml`, its `images`, and `run` with `checkpoint-2`."""
        from evotok.training.recipes import read_recipe
        from evotok.training.train import train

        folder = self.folder / "trained"
        (folder / "images").mkdir(parents=True)
        for number in range(4):
            Image.linear_gradient("L").rotate(90 * number).resize((40, 40)).save(folder / f"images/{number}.png")
        recipe = {
            "stage": "tokenizer",
            "model": {"config": TINY_VQ},
            "data": {"name": "folder", "path": "images"},
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
        """Returns a visitor of the page of `model`, which is served from the first use until `close`."""
        pytest.importorskip("gradio", reason="the page needs the extra `app`")
        from evotok.app.server import serve
        from evotok.commands.app import listen

        self.page_folder.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(self.page_folder)  # where the page makes its folder
        served = self._open.enter_context(serve(self.model, self.processor, listen("127.0.0.1", None)))
        tempfile.tempdir = before
        visitor = Visitor(served.url)
        visitor.ask("generate-start", list(ORDER.values()))  # libraries make folders of their own at the first event
        return visitor

    def close(self) -> None:
        """Stops serving the page."""
        if "visitor" in vars(self):
            self.visitor.client.close()
        self._open.close()

    def fill_outside(self, folder: Path) -> None:
        """Writes the files that must not be read: each is valid, and contains `SECRET` where it can."""
        Image.new("RGB", (8, 8), "red").save(folder / f"{SECRET}.png")
        (folder / "evil.py").write_text(f"raise SystemExit('{SECRET}')\n")
        (folder / "recipe.yaml").write_text(f"stage: gen\nmodel: {{{SECRET}: 1}}\n")
        shutil.copy(self.folder / "model" / "model.safetensors", folder)
        shutil.copy(self.folder / "model" / "config.json", folder)


Change = Callable[[Path], Any]


def copy(source: str, name: str | None = None, change: Change | None = None) -> Callable[[Workspace], str]:
    """Returns a `make` that copies a folder of the materials, changes the copy, and returns its name."""

    def make(workspace: Workspace) -> str:
        folder = workspace.path / (name or source)
        shutil.copytree(workspace.materials.folder / source, folder)
        if change is not None:
            change(folder)
        return folder.name

    return make


def write(name: str, content: bytes | str) -> Change:
    """Overwrites a file of a folder."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, end: int) -> Change:
    """Truncates a file of a folder."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def remove(name: str) -> Change:
    """Removes a file of a folder."""
    return lambda folder: (folder / name).unlink()


def pipe(name: str) -> Change:
    """Replaces a file of a folder by a pipe, of which a read does not return."""
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def link_out(name: str) -> Change:
    """Replaces a file of a folder by a link to a valid file outside."""

    def change(folder: Path) -> None:
        outside = folder.parent.parent / "outside"
        if not (outside / name).exists():
            shutil.copy(folder / name, outside)
        (folder / name).unlink()
        os.symlink(outside / name, folder / name)

    return change


def change_json(name: str, keys: str = "", **fields) -> Change:
    """Changes fields of a JSON file of a folder, or of its section at the dotted `keys`."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        section = functools.reduce(dict.__getitem__, filter(None, keys.split(".")), content)
        section.update(fields)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def change_weights(change: Callable[[dict], Any]) -> Change:
    """Changes the tensors of a checkpoint."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil
