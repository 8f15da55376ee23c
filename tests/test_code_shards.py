"""Code shards: their content, encoding that continues, refusal of other tokenizers' codes, training from codes."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import build_chat_model
from datasets import Dataset
from PIL import Image
from test_sources import picture, write_tar
from transformers import SiglipImageProcessorPil

from evotok.cli import main as cli
from evotok.commands.checkpoints import load_tokenizer
from evotok.data.arguments import DataArguments, SourceArguments
from evotok.data.code_encoding import CorpusEncoder
from evotok.data.code_shards import (
    ShardInfo,
    ShardWriter,
    check_tokenizer,
    code_row,
    image_preparation,
    open_codes,
    tokenizer_hash,
)
from evotok.data.collators import EvoTokCollator
from evotok.data.stream_loader import open_mixture, open_source
from evotok.processing.image_loading_evotok import load_image
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


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Writes two tars of five images, one of them corrupt."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        samples = []
        for n in range(5):
            data = b"x" if (shard, n) == (1, 3) else picture("red" if n % 2 else "blue")
            samples.append((f"{shard}-{n}", {"txt": f"wall {n}".encode(), "png": data}))
        write_tar(folder / f"{shard}.tar", samples)
    return folder


def encoder(chat, tars, out, **kwargs):
    model, processor = chat
    opened, _ = open_source(SourceArguments("webdataset-pairs", str(tars)))
    return CorpusEncoder(model.model.vq_model, processor.image_processor, opened, out, **kwargs)


def red_codes(chat):
    model, processor = chat
    pixels = processor.image_processor(Image.new("RGB", (40, 30), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    return model.model.vq_model.encode(pixels)[..., :2].numpy()


@pytest.fixture(scope="module")
def codes(chat, tars, tmp_path_factory):
    """Returns code shards of the tars, encoded by two processes."""
    out = tmp_path_factory.mktemp("codes")
    results = [encoder(chat, tars, out, batch_size=2, threads=2).run(rank, 2) for rank in range(2)]
    assert [(r.written, r.found, r.images, r.skipped) for r in results] == [(1, 0, 5, 0), (1, 0, 4, 1)]
    return out


def test_encoder_writes_shards_and_lists_skipped_images(chat, tars, codes, tmp_path):
    names = sorted(path.name for path in codes.iterdir())
    assert names == [
        "codes-00000-of-00002.parquet", "codes-00001-of-00002.parquet", "codes-00001-of-00002.skipped.jsonl",
    ]  # fmt: skip
    assert json.loads((codes / names[2]).read_text())["key"] == "1-3"
    again = encoder(chat, tars, codes).run()
    assert (again.written, again.found, again.images) == (0, 2, 0)
    encoder(chat, tars, tmp_path).run()
    assert all((tmp_path / name).read_bytes() == (codes / name).read_bytes() for name in names), "one process is as two"
    model, processor = chat
    info, prepared = ShardInfo.read(codes / names[1]), image_preparation(processor.image_processor)
    assert info == ShardInfo(tokenizer_hash(model.model.vq_model), 16, 2, "webdataset-pairs", 1, prepared)
    assert prepared["image_mean"]
    rows = list(open_codes(codes)[0])
    assert [row["key"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "0-4", "1-0", "1-1", "1-2", "1-4"]
    assert (code_row(rows[1], info)["codes"] == red_codes(chat)).all()
    assert str(pq.read_schema(codes / names[0]).field("codes").type) == "fixed_size_binary[64]"
    columns = pq.read_metadata(codes / names[0]).row_group(0)
    assert {columns.column(number).compression for number in range(3)} == {"ZSTD"}


def test_encoder_removes_partial_shards_and_continues(chat, tars, tmp_path, monkeypatch):
    model, calls = chat[0].model.vq_model, count(1)
    encode = model.encode

    def dying(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(model, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        encoder(chat, tars, tmp_path / "codes", batch_size=3).run()
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["codes-00000-of-00002.parquet"]
    assert encoder(chat, tars, tmp_path / "codes", batch_size=3).run().written == 1


def test_codes_are_those_of_the_plain_path_for_all_kinds_of_images(chat, tmp_path):
    model, processor = chat
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number, mode in enumerate(["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "F"]):
        for width, height in ((50, 31), (32, 32), (7, 90)):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            image = image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
            image.save(folder / f"{number}-{width}.{'tiff' if mode in ('CMYK', 'F') else 'png'}")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    (folder / "damaged.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:900])
    opened, _ = open_source(SourceArguments("image-folder", str(folder)))
    done = CorpusEncoder(
        model.model.vq_model, processor.image_processor, opened, tmp_path / "codes", batch_size=4, threads=3
    ).run()
    assert (done.images, done.skipped) == (28, 1)
    rows, info = open_codes(tmp_path / "codes")
    for row in rows:
        image = load_image(str(folder / row["key"]))
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        assert (code_row(row, info)["codes"] == model.model.vq_model.encode(pixels)[..., :2].numpy()).all(), row["key"]


def test_codes_of_another_tokenizer_or_preparation_are_refused(chat, tars, codes, tmp_path):
    (model, processor), (other_model, other_processor) = chat, build_chat_model()
    vq_model, other = model.model.vq_model, other_model.model.vq_model
    other.to_latent.linear_2.weight.data.add_(1.0)
    other_processor.image_processor.image_mean = [0.4, 0.5, 0.6]
    for pair in ((other_model, processor), (model, other_processor)):
        with pytest.raises(ValueError, match="or from images prepared in another way: give another folder"):
            encoder(pair, tars, codes)
    data = DataArguments(name="mixture", sources=[SourceArguments("codes", str(codes))])
    [opened] = open_mixture(data, vq_model, processor.image_processor)
    assert opened.name == "codes webdataset-pairs"
    for given, message in (
        ((other, processor.image_processor), "but this model's is"),
        ((vq_model, other_processor.image_processor), r'prepared with \{"image_mean": .0.5.*\}, .* are with .*0.6'),
        ((), "stage tokenizer is trained on images"),
    ):
        with pytest.raises(ValueError, match=message):
            open_mixture(data, *given)
    data.sources.append(SourceArguments("webdataset-pairs", str(tars)))
    with pytest.raises(ValueError, match="codes beside images to be generated .webdataset-pairs."):
        open_mixture(data, vq_model, processor.image_processor)
    info = ShardInfo.of(vq_model, processor.image_processor)
    with pytest.raises(ValueError, match="codes of 4 levels, but this model generates 2"):
        check_tokenizer(replace(info, levels=4), info, "x")
    shutil.copy(codes / "codes-00000-of-00002.parquet", tmp_path)
    writer = ShardWriter(tmp_path / "other.parquet", replace(info, tokenizer="another"))
    writer.close(skipped=0)
    with pytest.raises(ValueError, match="use one folder for each"):
        open_codes(tmp_path)


def test_open_codes_refuses_damaged_and_other_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="incomplete or damaged code shard"):
        open_codes(tmp_path)
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="not a code shard"):
        open_codes(tmp_path)


def test_writer_refuses_other_shapes_and_large_codes(tmp_path):
    writer = ShardWriter(tmp_path / "x.parquet", ShardInfo("t", 4, 2))
    with pytest.raises(ValueError, match="codes of shape"):
        writer.write(["a"], ["b"], np.zeros((1, 4, 3), int))
    with pytest.raises(ValueError, match="16 bits hold"):
        writer.write(["a"], ["b"], np.full((1, 4, 2), 70000))
    assert not list(tmp_path.iterdir())


def test_codes_and_images_have_equal_losses(chat, tars, codes):
    model, processor = chat
    rows, info = open_codes(codes)
    rows = {row["key"]: row for row in rows}
    source, _ = open_source(SourceArguments("webdataset-pairs", str(tars)))
    from_images = [source.convert(row) for row in source.rows if row["__key__"] in rows]
    from_codes = [code_row(rows[row["id"]], info) for row in from_images]
    collator = EvoTokCollator(processor)
    with torch.no_grad():
        losses = [model(**collator(given)).loss for given in (from_images, from_codes)]
    assert torch.equal(*losses)


def test_encode_dataset_writes_codes_for_training(checkpoint, tars, tmp_path, capsys, monkeypatch):
    out = tmp_path / "codes"
    words = ["encode-dataset", str(checkpoint), "--source", "webdataset-pairs", "--path", str(tars), "--out", str(out)]
    assert isinstance(load_tokenizer(str(checkpoint))[1], SiglipImageProcessorPil), "the one of training"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, line in enumerate(("5 images in 1 shards, 0 skipped", "4 images in 1 shards, 1 skipped")):
        monkeypatch.setenv("RANK", str(rank))
        assert cli(words) == 0
        assert f"process {rank} of 2: {line}" in capsys.readouterr().out
    monkeypatch.undo()
    assert cli([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["folder"], facts["written"], facts["found"], facts["processes"]) == (str(out), 0, 2, 1)
    assert facts["images_per_second"] == facts["device_share"] == 0
    shutil.rmtree(out)
    assert cli([*words, "--json", "--threads", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images_per_second"] == facts["images"] / facts["seconds"] > 0
    assert facts["device_share"] == facts["device_seconds"] / facts["seconds"] and 0 < facts["device_share"] <= 1
    assert cli([*words[:3], "llava-next", *words[4:]]) == 2
    assert "codes are for images to generate" in capsys.readouterr().err
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


def test_measure_rates_keeps_other_rows(capsys, monkeypatch, tmp_path):
    measures = {name: partial(rates.RATES[name], images=32) for name in ("encode-mini", "read-records")}
    monkeypatch.setattr(rates, "RATES", measures)
    kept = tmp_path / "new" / "rates.json"
    assert rates.main(["mini", "read", "--json", str(kept)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(measures)
    before = json.loads(kept.read_text())
    assert rates.main(["read-records", "--json", str(kept)]) == 0
    after = json.loads(kept.read_text())
    assert [row["name"] for row in before] == [row["name"] for row in after] == list(measures)
    assert before[0] == after[0] and before[1] != after[1]
    assert all(row["images_per_second"] == row["images"] / row["seconds"] > 0 for row in after)
