"""Shards of codes: what they hold, that they restart, whose they are, and that training from them is training."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import build_chat_model
from datasets import Dataset
from PIL import Image
from test_sources import picture, write_parquet, write_tar
from test_streaming import torchrun
from transformers import SiglipImageProcessorPil

from evotok.cli import main as cli
from evotok.data.arguments import DataArguments, SourceArguments
from evotok.data.code_encoding import CorpusEncoder
from evotok.data.code_shards import (
    ShardInfo,
    ShardWriter,
    check_tokenizer,
    fingerprint,
    open_codes,
    preparation,
    to_record,
)
from evotok.data.collators import EvoTokCollator
from evotok.data.stream_loader import open_mixture, open_source
from evotok.training.train import main as train
from tools import measure_rates as rates


@pytest.fixture(scope="module")
def chat():
    return build_chat_model()


@pytest.fixture(scope="module")
def checkpoint(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in chat:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def tars(tmp_path):
    """Two tars of five pictures, each of its own colour; one is corrupt."""
    for shard in range(2):
        samples = []
        for n in range(5):
            data = picture("red" if n % 2 else "blue")
            samples.append(
                (f"{shard}-{n}", {"txt": f"wall {n}".encode(), "png": b"x" if (shard, n) == (1, 3) else data})
            )
        write_tar(tmp_path / f"{shard}.tar", samples)
    return tmp_path


def encoder(chat, tars, out, **kwargs):
    model, processor = chat
    part, _ = open_source(SourceArguments("webdataset-pairs", str(tars)))
    return CorpusEncoder(model.model.vq_model, processor.image_processor, part, out, **kwargs)


def test_encoding_a_corpus(chat, tars, tmp_path):
    """Two processes share the shards out; what is bad is counted and listed; a second run has nothing to do."""
    out = tmp_path / "codes"
    results = [encoder(chat, tars, out, batch_size=2, threads=2).run(rank, 2) for rank in range(2)]
    assert [(r.written, r.found, r.images, r.skipped) for r in results] == [(1, 0, 5, 0), (1, 0, 4, 1)]
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "codes-00000-of-00002.parquet", "codes-00001-of-00002.parquet", "codes-00001-of-00002.skipped.jsonl",
    ]  # fmt: skip
    assert json.loads((out / names[2]).read_text())["key"] == "1-3"
    again = encoder(chat, tars, out).run()
    assert (again.written, again.found, again.images) == (0, 2, 0)

    model, processor = chat
    vq_model = model.model.vq_model
    info = ShardInfo.read(out / names[1])
    prepared = preparation(processor.image_processor)
    assert info == ShardInfo(fingerprint(vq_model), 16, 2, "webdataset-pairs", 1, prepared) and prepared["image_mean"]
    rows = list(open_codes(out)[0])
    assert [row["key"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "0-4", "1-0", "1-1", "1-2", "1-4"]
    pixels = processor.image_processor(Image.new("RGB", (40, 30), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    codes = to_record(rows[1], info)["codes"]
    assert codes.shape == (1, 16, 2) and (codes == vq_model.encode(pixels)[..., :2].numpy()).all()
    schema = pq.read_schema(out / names[0])
    assert str(schema.field("codes").type) == "fixed_size_binary[64]"
    columns = pq.read_metadata(out / names[0]).row_group(0)
    assert {columns.column(place).compression for place in range(3)} == {"ZSTD"}


def test_a_killed_encoding_leaves_no_half_shard_and_goes_on(chat, tars, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    model = chat[0].model.vq_model
    encode, calls = model.encode, []

    def dying(pixels):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(model, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        encoder(chat, tars, out, batch_size=3).run()
    assert [path.name for path in out.iterdir()] == ["codes-00000-of-00002.parquet"]
    assert encoder(chat, tars, out, batch_size=3).run().written == 1


# `evotok encode-dataset` as a process that is killed, in rank 1, while it encodes its second shard.
KILLED = """
import os, signal, sys
from evotok.cli import main
from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel
encode, seen = EvoTokVQModel.encode, []
def dying(self, *args, **kwargs):
    seen.append(1)
    if os.environ["RANK"] == "1" and len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, *args, **kwargs)
EvoTokVQModel.encode = dying
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_killed_and_started_again_write_what_one_does(checkpoint, tmp_path):
    """Under torchrun: every shard by one of them, bit for bit, bad images counted and listed, nothing left over."""
    rng = np.random.default_rng(0)
    (tmp_path / "tars").mkdir()
    for shard in range(5):
        samples = []
        for n in range(4):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            buffer = BytesIO()
            image.save(buffer, "PNG")
            data = buffer.getvalue()[:90] if (shard, n) == (3, 1) else buffer.getvalue()
            samples.append((f"{shard}-{n}", {"txt": f"noise {n}".encode(), "png": data}))
        write_tar(tmp_path / "tars" / f"{shard}.tar", samples)
    words = ["encode-dataset", str(checkpoint), "--source", "webdataset-pairs", "--path", str(tmp_path / "tars")]
    words += ["--batch-size", "2", "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli([*words, str(one)]) == 0
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = torchrun(script, *words, two)
    assert killed.returncode != 0 and "Signal 9" in killed.stderr
    there = len(list(two.glob("codes-*.parquet")))
    assert 1 <= there < 5
    again = torchrun("-m", "evotok.cli", *words, two)
    assert again.returncode == 0, again.stderr[-3000:]
    said = (r"in (\d+) shards", r"(\d+) shards were there")  # by either process
    assert [sum(map(int, re.findall(words, again.stdout))) for words in said] == [5 - there, there]
    files = sorted(path.name for path in one.iterdir())
    assert len(files) == 6 and files == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    assert json.loads((two / "codes-00003-of-00005.skipped.jsonl").read_text())["key"] == "3-1"
    assert len({row["codes"] for row in open_codes(two)[0]}) == 19


@pytest.mark.parametrize("source", ["parquet-pairs", "image-folder"])
def test_other_corpora_are_encoded_alike(chat, tmp_path, source):
    """Parquet files, of which one row has no caption, and a folder, each with a picture that is cut off."""
    model, processor = chat
    pictures = {"a-red-wall": picture(), "a-blue-wall": picture("blue"), "half-a-wall": picture()[:60]}
    if source == "parquet-pairs":
        rows = [{"image": {"bytes": data, "path": None}, "caption": name} for name, data in pictures.items()]
        write_parquet(tmp_path / "corpus/a.parquet", [*rows, rows[0] | {"caption": ""}])
    else:
        (tmp_path / "corpus").mkdir()
        for name, data in pictures.items():
            (tmp_path / "corpus" / f"{name}.png").write_bytes(data)
    part, _ = open_source(SourceArguments(source, str(tmp_path / "corpus")))
    out = tmp_path / "codes"
    done = CorpusEncoder(model.model.vq_model, processor.image_processor, part, out, batch_size=2).run()
    bad = 2 if source == "parquet-pairs" else 1
    assert (done.written, done.images, done.skipped) == (1, 2, bad)
    [shard], [listed] = out.glob("*.parquet"), out.glob("*.skipped.jsonl")
    rows = {row["caption"].replace("-", " "): row for row in open_codes(out)[0]}
    pixels = processor.image_processor(Image.new("RGB", (40, 30), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    codes = to_record(rows["a red wall"], ShardInfo.read(shard))["codes"]
    assert set(rows) == {"a red wall", "a blue wall"} and ShardInfo.read(shard).skipped == bad
    assert (codes == model.model.vq_model.encode(pixels)[..., :2].numpy()).all()
    reasons = [json.loads(line)["reason"] for line in listed.read_text().splitlines()]
    assert len(reasons) == bad and all(reasons)


def test_shards_of_another_tokenizer_are_refused(chat, tars, tmp_path):
    out = tmp_path / "codes"
    encoder(chat, tars, out).run()
    other, processor = build_chat_model()
    other.model.vq_model.to_latent.linear_2.weight.data.add_(1.0)
    with pytest.raises(ValueError, match="give another folder"):
        encoder((other, processor), tars, out)
    data = DataArguments(name="mixture", sources=[SourceArguments("codes", str(out))])
    [part] = open_mixture(data, chat[0].model.vq_model, processor.image_processor)
    assert part.name == "codes webdataset-pairs"
    with pytest.raises(ValueError, match="but this model's is"):
        open_mixture(data, other.model.vq_model, processor.image_processor)
    with pytest.raises(ValueError, match="tokenizer stage learns from images"):
        open_mixture(data)
    data.sources.append(SourceArguments("webdataset-pairs", str(tars)))
    with pytest.raises(ValueError, match="codes beside pictures to be drawn .webdataset-pairs."):
        open_mixture(data, chat[0].model.vq_model, processor.image_processor)
    mine = ShardInfo.of(chat[0].model.vq_model, processor.image_processor)
    with pytest.raises(ValueError, match="codes of 4 levels, but this model draws 2"):
        check_tokenizer(replace(mine, levels=4), mine, "x")


def test_shards_of_images_prepared_in_another_way_are_refused(chat, tars, tmp_path):
    """The same encoder, but another mean: other codes."""
    out = tmp_path / "codes"
    encoder(chat, tars, out).run()
    _, other = build_chat_model()
    other.image_processor.image_mean = [0.4, 0.5, 0.6]
    with pytest.raises(ValueError, match="or of images prepared in another way: give another folder"):
        encoder((chat[0], other), tars, out)
    data = DataArguments(name="mixture", sources=[SourceArguments("codes", str(out))])
    with pytest.raises(ValueError, match=r'prepared with \{"image_mean": .0.5.*\}, but this model.s are with .*0.6'):
        open_mixture(data, chat[0].model.vq_model, other.image_processor)
    (out / "codes-00001-of-00002.parquet").unlink()
    encoder((chat[0], other), tars, tmp_path / "others").run()
    shutil.copy(tmp_path / "others/codes-00001-of-00002.parquet", out)
    with pytest.raises(ValueError, match="keep a folder for each"):
        open_codes(out)


def test_the_tokenizer_is_hashed_once_for_all_sources(chat, tars, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    encoder(chat, tars, out).run()
    hashed = []
    monkeypatch.setattr("evotok.data.code_shards.fingerprint", lambda model: hashed.append(model) or fingerprint(model))
    sources = [SourceArguments("codes", str(out)) for _ in range(3)]
    model, processor = chat[0].model.vq_model, chat[1].image_processor
    assert len(open_mixture(DataArguments(name="mixture", sources=sources), model, processor)) == 3
    assert hashed == [model]


def test_damaged_and_foreign_shards_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="not a whole shard"):
        open_codes(tmp_path)
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="not a shard of codes"):
        open_codes(tmp_path)


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    writer = ShardWriter(tmp_path / "x.parquet", ShardInfo("t", 4, 2))
    with pytest.raises(ValueError, match="codes of shape"):
        writer.write(["a"], ["b"], np.zeros((1, 4, 3), int))
    with pytest.raises(ValueError, match="16 bits hold"):
        writer.write(["a"], ["b"], np.full((1, 4, 2), 70000))
    assert not list(tmp_path.iterdir())


def test_codes_and_images_give_the_same_loss(chat, tars, tmp_path):
    """The same pictures, once decoded and once as codes, through the collator and the model."""
    model, processor = chat
    out = tmp_path / "codes"
    encoder(chat, tars, out).run()
    rows, info = open_codes(out)
    rows = {row["key"]: row for row in rows}
    part, _ = open_source(SourceArguments("webdataset-pairs", str(tars)))
    from_images = [part.convert(row) for row in part.rows if row["__key__"] in rows]
    from_codes = [to_record(rows[record["id"]], info) for record in from_images]
    collator = EvoTokCollator(processor)
    with torch.no_grad():
        losses = [model(**collator(records)).loss for records in (from_images, from_codes)]
    assert torch.equal(*losses)


def test_command_line_and_training_from_codes(checkpoint, tars, tmp_path, capsys):
    out = tmp_path / "codes"
    words = ["encode-dataset", str(checkpoint), "--source", "webdataset-pairs", "--path", str(tars), "--out", str(out)]
    assert cli(words) == 0
    assert "9 images in 2 shards, 1 skipped" in capsys.readouterr().out
    assert cli([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["folder"], facts["written"], facts["found"], facts["processes"]) == (str(out), 0, 2, 1)
    assert cli([*words[:3], "llava-next", *words[4:]]) == 2
    assert "codes are of pictures to be drawn" in capsys.readouterr().err

    recipe = {
        "stage": "gen",
        "model": {"checkpoint": str(checkpoint)},
        "data": {"name": "mixture", "sources": [{"source": "codes", "path": str(out)}], "pool_batches": 2},
        "training": {
            "output_dir": str(tmp_path / "run"), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none",
            "disable_tqdm": True, "logging_steps": 1,
        },
    }  # fmt: skip
    path = tmp_path / "gen.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert train([str(path)]) == 0
    state = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    assert "image_loss" in state["log_history"][0]

    shutil.copytree(checkpoint, tmp_path / "other")
    model, _ = build_chat_model()
    model.model.vq_model.to_latent.linear_2.weight.data.add_(1.0)
    model.save_pretrained(tmp_path / "other")
    assert train([str(path), f"model.checkpoint={tmp_path / 'other'}"]) == 2
    assert "encode the images again" in capsys.readouterr().err


def test_reading_is_fast(tmp_path):
    """The number that counts is measured elsewhere; a tenth of it here, so that a slow machine does not fail it."""
    import time

    codes = np.random.default_rng(0).integers(0, 32768, (4096, 256, 4))
    writer = ShardWriter(tmp_path / "x.parquet", info := ShardInfo("t", 256, 4))
    writer.write([str(n) for n in range(4096)], ["a caption"] * 4096, codes)
    writer.close(skipped=0)
    start = time.perf_counter()
    records = [to_record(row, info) for row in open_codes(tmp_path)[0]]
    assert len(records) / (time.perf_counter() - start) > 3000
    assert (records[77]["codes"][0] == codes[77]).all()


def test_the_image_processor_is_the_one_of_training(checkpoint):
    from evotok.commands.checkpoints import load_tokenizer

    assert isinstance(load_tokenizer(str(checkpoint))[1], SiglipImageProcessorPil)


def test_rates_are_measured_and_kept(capsys, monkeypatch, tmp_path):
    """The script at sizes that take no time; its numbers are for a quiet machine. Those of other works stay."""
    measures = {name: partial(measure, images=256) for name, measure in rates.RATES.items() if name != "encode-paper"}
    monkeypatch.setattr(rates, "RATES", measures)
    kept = tmp_path / "new" / "rates.json"
    assert rates.main(["mini", "read", "--json", str(kept)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(measures)
    before = json.loads(kept.read_text())
    assert rates.main(["read-records", "--json", str(kept)]) == 0
    after = json.loads(kept.read_text())
    assert [row["name"] for row in before] == [row["name"] for row in after] == list(measures)
    assert [row["name"] for row, again in zip(before, after, strict=True) if row != again] == ["read-records"]
    assert all(row["images_per_second"] == row["images"] / row["seconds"] > 0 for row in after)
