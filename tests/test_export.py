"""`evotok export`: a folder for the Hub, without files of an older export."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import build_chat_model
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor
from transformers.pipelines import get_supported_tasks
from transformers.utils import hub

from evotok import EvoTokForConditionalGeneration, EvoTokModel, EvoTokProcessor
from evotok.cli import main
from evotok.commands.checkpoints import find_asset
from evotok.commands.files import add_files


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("trained")
    for part in parts:
        part.save_pretrained(folder)
    return folder


def export(*words) -> int:
    return main(["export", *map(str, words)])


def check_metadata(card: ModelCard):
    """Checks the metadata by which the Hub classifies a model."""
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "any-to-any" and card.data.pipeline_tag in get_supported_tasks()
    assert {"evotok", "image-tokenizer", "text-to-image"} <= set(card.data.tags)


def test_export_writes_a_card(trained, parts, tmp_path):
    bases = ["Qwen/Qwen2.5-7B-Instruct", "google/siglip2-large-patch16-256"]
    assert export(trained, "--out", tmp_path / "my-model", "--base-model", *bases) == 0
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    check_metadata(card)
    assert card.data.base_model == bases
    assert "# my-model" in card.text and 'from_pretrained("my-model")' in card.text
    assert f"| {parts[0].num_parameters() / 1e6:,.1f} M |" in card.text
    assert export(trained, "--out", tmp_path / "other", "--license", "cc-by-4.0") == 0
    data = ModelCard.load(tmp_path / "other" / "README.md").data
    assert data.license == "cc-by-4.0" and "base_model" not in data.to_dict()
    check_metadata(ModelCard.load(find_asset("evotok-mini") / "README.md"))


def test_export_keeps_an_existing_card(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    assert export(trained, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert export(tmp_path / "out", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "README.md").read_text() == "mine"


def test_export_sets_sampling_values_and_keeps_codebooks_in_fp32(trained, parts, tmp_path):
    assert export(trained, "--out", tmp_path, "--guidance-min-p", 0.25, "--top-k", 7, "--temperature", 0.5) == 0
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["guidance_min_p"], saved["image_top_k"], saved["image_temperature"]) == (0.25, 7, 0.5)
    chat = [{"role": "user", "content": "a cat"}]
    inputs = parts[1].apply_chat_template(chat, generation_mode="image", tokenize=True, return_dict=True)
    assert saved["image_negative_prompt_ids"] == inputs["negative_prompt_ids"][0]
    loaded = EvoTokForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    entries = loaded.model.vq_model.quantizer.codebooks[0].weight
    assert entries.dtype == torch.float32
    assert torch.equal(entries, parts[0].model.vq_model.quantizer.codebooks[0].weight)
    assert loaded.lm_head.weight.dtype == torch.bfloat16


def test_export_removes_weights_and_code_of_an_older_export(trained, tmp_path):
    """`from_pretrained` would prefer `model.safetensors` to shards beside it."""
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "old_evotok.py", "notes.txt"):
        (tmp_path / name).write_text("old")
    assert export(trained, "--out", tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "modeling_evotok.py", "notes.txt"} <= names
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "old_evotok.py"} & names


def test_export_without_code_loads_with_the_package(trained, tmp_path):
    assert export(trained, "--out", tmp_path) == export(trained, "--out", tmp_path, "--no-code") == 0
    assert not list(tmp_path.glob("*.py"))
    assert not [path.name for path in tmp_path.glob("*.json") if "auto_map" in path.read_text("utf-8")]
    assert isinstance(AutoModel.from_pretrained(tmp_path), EvoTokModel)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), EvoTokProcessor)


def test_export_keeps_the_folder_after_an_error(tmp_path, capsys):
    assert export(tmp_path / "missing", "--out", tmp_path / "a" / "b") == 2
    (tmp_path / "file").write_text("")
    assert export("mini", "--out", tmp_path / "file") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "no such folder" in errors[0] and "this is a file" in errors[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_add_files_adds_all_files_or_none(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), add_files(tmp_path, ["*.txt"]) as part:
        (part / "new.txt").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    with add_files(tmp_path, ["*.txt"]) as part:
        (part / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def test_add_files_changes_nothing_on_a_full_disk(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "disk full")

    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(OSError, match="full"), add_files(tmp_path, ["*.txt"]) as part:
        (part / "new.txt").write_text("new")
        monkeypatch.setattr(os, "fsync", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]


def test_push_to_hub_uploads_the_whole_folder(trained, tmp_path, monkeypatch):
    """Weights, configs, code and the card are uploaded to a stand-in for the Hub."""
    assert export(trained, "--out", tmp_path / "model") == 0
    card, sent = ModelCard.load(tmp_path / "model" / "README.md"), {}

    def receive(self, working_dir, repo_id, **kwargs):
        sent.update({path.name: path.read_bytes() for path in Path(working_dir).iterdir()})
        return repo_id

    monkeypatch.setattr(
        hub, "hf_api", lambda *_, **__: SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    )
    monkeypatch.setattr(hub.ModelCard, "load", lambda *_, **__: card)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", receive)
    EvoTokForConditionalGeneration.from_pretrained(tmp_path / "model").push_to_hub("somebody/model")
    EvoTokProcessor.from_pretrained(tmp_path / "model").push_to_hub("somebody/model")
    assert set(sent) == {path.name for path in (tmp_path / "model").iterdir()}
    assert ModelCard(sent["README.md"].decode()).data.pipeline_tag == "any-to-any"
