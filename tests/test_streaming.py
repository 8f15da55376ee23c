"""Stages on streamed mixtures, as real processes: killed and resumed, on two ranks with workers, from codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from ports import free_port
from test_sources import TEXT_TURNS, TURNS, picture, write_images, write_parquet, write_tar
from test_training import KILLED, ROOT, losses, recipes, run  # noqa: F401 - a fixture
from transformers import Trainer

from evotok import EvoTokForConditionalGeneration
from evotok.training.checkpoints import last_complete_checkpoint
from evotok.training.last_good import MAX_BARREN
from evotok.training.multimodal_stages import _load_checkpoint
from evotok.training.train import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pictures to draw, one of them corrupt, and conversations, one in four of text alone."""
    folder = tmp_path_factory.mktemp("corpus")
    write_images(folder, *(f"pictures/{n}-red-wall.png" for n in range(24)))
    (folder / "pictures" / "bad.png").write_bytes(b"no picture")
    rows = [
        {
            "id": str(n),
            "image": {"bytes": picture("blue" if n % 2 else "red"), "path": None} if n % 4 else None,
            "conversations": TURNS if n % 4 else TEXT_TURNS,
            "data_source": "test",
        }
        for n in range(32)
    ]
    write_parquet(folder / "next/data/train-0.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def unified(recipes, corpus):  # noqa: F811
    """The recipe of the stage that understands and draws in one run."""
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
    """A script of ours on two ranks; it may fail."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += [str(word) for word in (script, *arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)


def history(folder):
    return json.loads((Path(last_complete_checkpoint(folder)) / "trainer_state.json").read_text())["log_history"]


def test_unified_stage_killed_and_resumed_on_two_ranks_with_workers(unified, tmp_path):
    """Text alone, images given and images written meet on different ranks in one step; the losses are bit-equal, and
    where dropout and noise fall, too."""
    words = [unified, "model.config.depth_decoder_config.hidden_dropout=0.1", "data.code_noise=0.3"]
    run([*words, f"training.output_dir={tmp_path / 'whole'}"], nproc=2)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = torchrun(script, *words, f"training.output_dir={tmp_path / 'killed'}")
    assert killed.returncode != 0 and "Signal 9" in killed.stderr
    checkpoint = Path(last_complete_checkpoint(tmp_path / "killed"))
    assert checkpoint.name == "checkpoint-3"
    assert {path.name for path in checkpoint.glob("data_state_*")} == {"data_state_0.pt", "data_state_1.pt"}
    run([*words, f"training.output_dir={tmp_path / 'killed'}"], nproc=2)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    log = history(tmp_path / "whole")
    assert any("image_loss" in entry for entry in log) and any("text_loss" in entry for entry in log)


def test_a_stream_goes_on_with_other_workers_in_a_new_order(unified, tmp_path):
    arguments = [str(unified), f"training.output_dir={tmp_path}", "training.dataloader_num_workers=0"]
    assert main([*arguments, "training.max_steps=3"]) == 0
    assert main([*arguments[:2], "training.dataloader_num_workers=1"]) == 0
    assert len(losses(tmp_path)) == 6


def test_tokenizer_stage_on_a_mixture_counts_bad_pictures(recipes, corpus, tmp_path):  # noqa: F811
    recipe = yaml.safe_load((recipes / "tokenizer.yaml").read_text())
    sources = [{"source": "image-folder", "path": str(corpus / "pictures")}]
    recipe["data"] = {"name": "mixture", "sources": sources, "pool_batches": 8}
    path = tmp_path / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main([str(path), f"training.output_dir={tmp_path / 'run'}", "training.max_steps=9"]) == 0
    assert history(tmp_path / "run")[-2]["skipped_image"] >= 1


def test_a_folder_of_images_goes_on_with_the_same_crops(recipes, tmp_path):  # noqa: F811
    """`data.name: folder` is a mixture of one: what cannot be read is passed over, and a run resumes to the bit."""
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        picture = Image.linear_gradient("L").rotate(36 * number).resize((160, 96))
        picture.save(tmp_path / "pictures" / f"{number}.{'png' if number else 'TIFF'}")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    words = [str(recipes / "tokenizer.yaml"), "data.name=folder", f"data.path={tmp_path / 'pictures'}"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*words, f"training.output_dir={whole}"]) == 0
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    assert main([*words, f"training.output_dir={resumed}"]) == 0
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    assert max(entry.get("skipped_image", 0) for entry in history(whole)) == 1


def after_step(monkeypatch, step, act):
    """Do something in the middle of a run."""
    take = Trainer.training_step

    def taking(self, *args, **kwargs):
        loss = take(self, *args, **kwargs)
        if self.state.global_step == step:
            act()
        return loss

    monkeypatch.setattr(Trainer, "training_step", taking)


def test_a_run_whose_pictures_are_gone_does_not_go_on_with_the_last_one(recipes, tmp_path, monkeypatch, capsys):  # noqa: F811
    write_images(tmp_path, *(f"pictures/{n}.png" for n in range(12)))
    words = [str(recipes / "tokenizer.yaml"), "data.name=folder", f"data.path={tmp_path / 'pictures'}"]
    words += ["training.max_steps=500", "training.per_device_train_batch_size=1", "training.save_steps=2"]
    after_step(monkeypatch, 4, lambda: shutil.rmtree(tmp_path / "pictures"))
    assert main([*words, f"training.output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"evotok train: Nothing in the last {MAX_BARREN} batches can be used, {{'image': ")
    assert len(losses(tmp_path / "run")) < 60


def test_a_worker_whose_tar_is_gone_says_so_in_one_line(recipes, tmp_path, monkeypatch, capsys):  # noqa: F811
    for number in range(2):
        samples = [(f"{number}-{n}", {"txt": b"red", "png": picture()}) for n in range(4)]
        write_tar(tmp_path / f"{number}.tar", samples)
    recipe = yaml.safe_load((recipes / "tokenizer.yaml").read_text())
    sources = [{"source": "webdataset-pairs", "path": str(tmp_path)}]
    recipe["data"] = {"name": "mixture", "sources": sources, "pool_batches": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = [str(tmp_path / "recipe.yaml"), "training.max_steps=500", "training.dataloader_num_workers=2"]
    after_step(monkeypatch, 1, lambda: [path.unlink() for path in tmp_path.glob("*.tar")])
    assert main([*words, f"training.output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    mend = r"cannot be read \(No such file or directory\): put it back, or leave it out."
    assert re.fullmatch(rf"evotok train: {tmp_path}/\d.tar: {mend}", said)


# Two steps on two ranks that see other terms and skip other numbers of samples.
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
        self.note_terms({"text_loss": torch.tensor(2.0 + rank)})
        if rank == 1 and self.state.global_step:
            self.note_terms({"image_loss": torch.tensor(5.0)})
        return model(torch.ones(1, 1)).mean()

def collate(rows):
    return {"rows": torch.tensor(rows), "skipped": {"image": 1 + rank} | ({"length": 1} if rank else {})}

trainer = Noting(torch.nn.Linear(1, 1), arguments, train_dataset=list(range(8)), data_collator=collate)
trainer.train()
Path(sys.argv[1], f"logged-{rank}.json").write_text(json.dumps(trainer.state.log_history[0]))
torch.distributed.destroy_process_group()
"""


def test_terms_and_what_was_skipped_are_logged_of_all_ranks(tmp_path):
    script = tmp_path / "logged.py"
    script.write_text(LOGGED)
    done = torchrun(script, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / "run" / f"logged-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and (one["text_loss"], one["image_loss"]) == (2.5, 5.0)
    assert (one["skipped_image"], one["skipped_length"]) == (6, 2)


def test_a_mixture_needs_an_end_and_sources(unified, tmp_path, capsys):
    assert main([str(unified), f"training.output_dir={tmp_path}", "training.max_steps=-1"]) == 2
    assert "set training.max_steps" in capsys.readouterr().err
    assert main([str(unified), "data.name=emoji"]) == 2
    assert "go together" in capsys.readouterr().err


def test_a_stage_goes_on_from_the_adapters_of_the_one_before(recipes, tmp_path):  # noqa: F811
    """As the low-memory recipes do: their weights are merged, the copies that were trained in full are taken over."""
    pytest.importorskip("peft")
    first, adapters = tmp_path / "first", tmp_path / "adapters"
    one = ["training.max_steps=1", "training.learning_rate=0.05"]
    assert main([str(recipes / "sft.yaml"), f"training.output_dir={first}", *one]) == 0
    lora = [f"model.checkpoint={first}", "model.trainable=[semantic_projector,language_model]", "lora.r=4"]
    assert main([str(recipes / "sft.yaml"), f"training.output_dir={adapters}", *one, *lora]) == 0
    merged = _load_checkpoint(str(adapters)).state_dict()
    before = EvoTokForConditionalGeneration.from_pretrained(first).state_dict()
    assert merged.keys() == before.keys()
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    assert any("q_proj" in name for name in moved) and any("semantic_projector" in name for name in moved)
    assert not any("vq_model" in name or "depth_decoder" in name for name in moved)
