"""Trainings on streams: they resume exactly, count skipped rows on all processes, and require an end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from ports import free_port
from test_sources import MESSAGES, TEXT_MESSAGES, picture, write_images, write_parquet
from test_training import ROOT, losses, recipes  # noqa: F401 - a fixture
from transformers import Trainer

from evotok.data.collators import MAX_EMPTY_BATCHES
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.train import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Writes images with captions, one of them corrupt, and conversations, one in four of text alone."""
    folder = tmp_path_factory.mktemp("corpus")
    write_images(folder, *(f"pictures/{n}-red-wall.png" for n in range(24)))
    (folder / "pictures" / "bad.png").write_bytes(b"no picture")
    rows = [
        {
            "id": str(n),
            "image": {"bytes": picture("blue" if n % 2 else "red"), "path": None} if n % 4 else None,
            "conversations": MESSAGES if n % 4 else TEXT_MESSAGES,
            "data_source": "test",
        }
        for n in range(32)
    ]
    write_parquet(folder / "next/data/train-0.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def unified(recipes, corpus):  # noqa: F811
    """Returns the recipe of a stage that answers and generates in one run."""
    recipe = yaml.safe_load((recipes / "sft.yaml").read_text())
    sources = [
        {"source": "llava-next", "path": str(corpus / "next"), "weight": 2},
        {"source": "image-folder", "path": str(corpus / "pictures"), "weight": 1},
    ]
    recipe |= {"stage": "unified", "data": {"name": "mixture", "sources": sources, "pool_batches": 3}}
    recipe["data"]["caption_dropout"] = 0.3
    recipe["training"]["dataloader_num_workers"] = 2
    path = recipes / "unified.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def torchrun(script, *arguments):
    """Runs a script on two processes; it may fail."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command += [str(word) for word in (script, *arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)


def history(folder):
    return json.loads((Path(last_complete_checkpoint(folder)) / "trainer_state.json").read_text())["log_history"]


def test_stream_continues_with_other_workers_in_a_new_order(unified, tmp_path):
    arguments = [str(unified), f"training.output_dir={tmp_path}", "training.dataloader_num_workers=0"]
    assert main([*arguments, "training.max_steps=3"]) == 0
    assert main([*arguments[:2], "training.dataloader_num_workers=1"]) == 0
    assert len(losses(tmp_path)) == 6


def test_folder_of_images_resumes_with_the_same_crops_and_counts_bad_images(recipes, tmp_path):  # noqa: F811
    """`data.name: folder` is a mixture of one source."""
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        image = Image.linear_gradient("L").rotate(36 * number).resize((160, 96))
        image.save(tmp_path / "pictures" / f"{number}.{'png' if number else 'TIFF'}")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    words = [str(recipes / "tokenizer.yaml"), "data.name=folder", f"data.path={tmp_path / 'pictures'}"]
    words += ["training.dataloader_num_workers=1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*words, f"training.output_dir={whole}"]) == 0
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    assert main([*words, f"training.output_dir={resumed}"]) == 0
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    assert max(entry.get("skipped_image", 0) for entry in history(whole)) >= 1


def test_run_ends_after_its_images_are_removed(recipes, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The last readable image is not repeated."""
    write_images(tmp_path, *(f"pictures/{n}.png" for n in range(12)))
    words = [str(recipes / "tokenizer.yaml"), "data.name=folder", f"data.path={tmp_path / 'pictures'}"]
    words += ["training.max_steps=500", "training.per_device_train_batch_size=1", "training.save_steps=2"]
    training_step = Trainer.training_step

    def remove_images(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        if self.state.global_step == 4:
            shutil.rmtree(tmp_path / "pictures")
        return loss

    monkeypatch.setattr(Trainer, "training_step", remove_images)
    assert main([*words, f"training.output_dir={tmp_path / 'run'}"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"evotok train: Nothing in the last {MAX_EMPTY_BATCHES} batches can be used, {{'image': ")
    assert len(losses(tmp_path / "run")) < 60


# Two steps on two processes with different terms and different numbers of skipped rows.
LOGGED = """
import json, sys
from pathlib import Path
import torch
from transformers import TrainingArguments
from evotok.training.trainer import EvoTokTrainer
arguments = TrainingArguments(
    sys.argv[1], use_cpu=True, report_to="none", max_steps=2, logging_steps=2, per_device_train_batch_size=1,
    save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
)
rank = arguments.process_index

class Noting(EvoTokTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.record_terms({"text_loss": torch.tensor(2.0 + rank)})
        if rank == 1 and self.state.global_step:
            self.record_terms({"image_loss": torch.tensor(5.0)})
        return model(torch.ones(1, 1)).mean()

def collate(rows):
    return {"rows": torch.tensor(rows), "skipped": {"image": 1 + rank} | ({"length": 1} if rank else {})}

trainer = Noting(torch.nn.Linear(1, 1), arguments, train_dataset=list(range(8)), data_collator=collate)
trainer.train()
Path(sys.argv[1], f"logged-{rank}.json").write_text(json.dumps(trainer.state.log_history[0]))
torch.distributed.barrier()  # as in `train`: a group that is destroyed while the other process uses it aborts
torch.distributed.destroy_process_group()
"""


def test_logs_have_terms_and_skipped_rows_of_all_processes(tmp_path):
    script = tmp_path / "logged.py"
    script.write_text(LOGGED)
    done = torchrun(script, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / "run" / f"logged-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and (one["text_loss"], one["image_loss"]) == (2.5, 5.0)
    assert (one["skipped_image"], one["skipped_length"]) == (6, 2)


def test_mixture_requires_max_steps_and_sources(unified, tmp_path, capsys):
    assert main([str(unified), f"training.output_dir={tmp_path}", "training.max_steps=-1"]) == 2
    assert "set training.max_steps" in capsys.readouterr().err
    assert main([str(unified), "data.name=world"]) == 2
    assert "go together" in capsys.readouterr().err
