"""Mixtures: no row twice, none lost, weights kept, and an exact resume from every position."""

import itertools
import json
from collections import Counter

import pytest
import torch
from datasets import Dataset
from test_sources import MESSAGES, write_tar
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

from evotok.data.arguments import DataArguments, SourceArguments
from evotok.data.mixture import MixtureSource, MixtureStream, _SourceReader
from evotok.data.sources.parquet import read_parquet
from evotok.data.sources.rows import Rows
from evotok.data.sources.source import conversation_row
from evotok.data.stream_loader import ResumableLoader, estimate_length, open_mixture, open_source


def rows_of(values, shards=1):
    rows = [{"value": value} for value in values]
    return Rows([rows[len(rows) * n // shards : len(rows) * (n + 1) // shards] for n in range(shards)], iter)


def source(name, size, shards, weight=1.0):
    return MixtureSource(name, rows_of([f"{name}{n}" for n in range(size)], shards), dict, weight)


def collate(rows):
    return {"values": [row["value"] for row in rows], "index": [row["index"] for row in rows]}


def stream(sources, **kwargs):
    return MixtureStream(sources, collate, batch_size=4, pool_batches=3, **kwargs)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def assert_resumes(build, whole, stops):
    """Asserts that a stream resumed from the state after each of `stops` batches yields the rest of `whole`."""
    for stop in stops:
        killed, resumed = build(), build()
        take(killed, stop)
        resumed.load_state_dict(killed.state_dict())
        assert take(resumed, len(whole) - stop) == whole[stop:], stop


@pytest.mark.parametrize(("size", "shards"), [(40, 10), (30, 7), (30, 2), (15, 1)])
def test_readers_share_a_source_with_any_number_of_shards(size, shards):
    values = []
    for number in range(5):
        reader = _SourceReader(source("a", size, shards), number, 5)
        rows = iter(reader)
        values.append(next(rows)["value"])
        while (value := next(rows)["value"]) and reader.epoch == 0:
            values.append(value)
    assert sorted(values) == sorted(f"a{n}" for n in range(size))


@pytest.mark.parametrize("number", [0, 6])
def test_readers_of_one_shard_resume_and_read_one_shard_each(number):
    read = []

    def read_shard(rows):
        read.append(rows[0]["value"])
        yield from rows

    def build():
        return _SourceReader(MixtureSource("a", Rows(shards, read_shard), dict, 1.0), number, 7)

    shards = rows_of(range(60), 3).shards
    epoch = {row["value"] for row in take(build(), 6)}
    assert len(read) == 1 and epoch < set(range(read[0], read[0] + 20))
    assert_resumes(build, take(build(), 40), (1, 9, 30))


@pytest.mark.parametrize("name", ["parquet-pairs", "image-folder", "opengpt-4o-image"])
def test_readers_read_shards_in_random_order(name, tmp_path):
    """A short run reads a part of the rows: the first rows of each reader are of both halves of the alphabet."""
    captions = [f"{letter} {n}" for letter in "abcdefghijklmnopqrst" for n in range(10)]
    if name == "parquet-pairs":
        for start in range(0, 200, 10):
            columns = {"image": [b"x"] * 10, "caption": captions[start : start + 10]}
            Dataset.from_dict(columns).to_parquet(tmp_path / f"{captions[start]}.parquet")
    for caption in captions if name == "image-folder" else ["out"]:
        (tmp_path / f"{caption}.png").write_bytes(b"x")
    rows = [{"input_prompt": caption, "output_image": "out.png"} for caption in captions]
    (tmp_path / "gen.json").write_text(json.dumps(rows))
    opened, _ = open_source(SourceArguments(name, str(tmp_path)))
    for number in range(2):
        rows = take(_SourceReader(opened, number, 2), 25)
        letters = {opened.convert(row)["messages"][0]["content"][0]["text"][0] for row in rows}
        assert min(letters) < "k" <= max(letters)


def test_stream_keeps_weights_and_unique_indices():
    sources = [source("a", 50, 5, weight=3.0), source("b", 50, 5, weight=1.0)]
    batches = [b for rank in range(2) for b in take(stream(sources, rank=rank, world_size=2), 150)]
    counts = Counter(value[0] for batch in batches for value in batch["values"])
    assert 0.7 < counts["a"] / counts.total() < 0.8
    indices = [index for batch in batches for index in batch["index"]]
    assert len(indices) == len(set(indices))


@pytest.mark.parametrize(("workers", "stops"), [(0, (1, 3, 7, 29)), (2, (3, 7))])  # in, at the end of and after a pool
def test_stream_resumes_exactly(workers, stops):
    def loader():
        sources = [source("a", 30, 4), source("b", 9, 1), source("c", 200, 8)]
        return StatefulDataLoader(stream(sources, rank=1, world_size=2), batch_size=None, num_workers=workers)

    whole = take(loader(), max(stops) + 8)
    for stop in stops:
        killed, resumed = loader(), loader()
        iterator = iter(killed)
        assert [next(iterator) for _ in range(stop)] == whole[:stop]
        resumed.load_state_dict(killed.state_dict())
        assert take(resumed, 8) == whole[stop : stop + 8]


def test_stream_resumes_with_the_last_usable_row_of_the_collator():
    class Repeating:
        last = None

        def __call__(self, rows):
            usable = [row["value"] for row in rows if int(row["value"][1:]) % 3 == 0]
            if not usable and self.last is None:
                raise ValueError("nothing usable yet")
            usable = usable or [self.last]
            self.last = usable[-1]
            return {"values": usable}

    def build():
        return MixtureStream([source("a", 30, 4)], Repeating(), batch_size=1, pool_batches=16, seed=1)

    whole = take(build(), 16)
    assert sum(one == other for one, other in itertools.pairwise(whole)) > 4
    assert_resumes(build, whole, range(1, 16))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_stream_resumes_in_files_and_counts_a_damaged_rest_as_malformed(kind, tmp_path):
    for shard in range(3):
        values = [f"{shard}/{n}" for n in range(150)]
        if kind == "parquet":
            Dataset.from_dict({"value": values}).to_parquet(tmp_path / f"{shard}.parquet", batch_size=40)
        else:
            write_tar(tmp_path / f"{shard}.tar", [(f"{n:05d}", {"txt": v.encode()}) for n, v in enumerate(values)])
    if kind == "webdataset":
        (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:40000])
        rows = open_source(SourceArguments("webdataset-pairs", str(tmp_path)))[0].rows
    else:
        rows = Rows(sorted(str(path) for path in tmp_path.glob("*.parquet")), read_parquet)

    def build():
        convert = dict if kind == "parquet" else lambda row: {"value": row["txt"]}
        return stream([MixtureSource("x", rows, convert, 1.0)], rank=1, world_size=2)

    whole = take(build(), 50)
    assert (sum(batch["skipped"].get("malformed", 0) for batch in whole) > 0) == (kind == "webdataset")
    values = [batch | {"skipped": None} for batch in whole]
    for stop in (5, 18, 40):
        killed, resumed = build(), build()
        take(killed, stop)
        resumed.load_state_dict(killed.state_dict())
        assert [batch | {"skipped": None} for batch in take(resumed, 50 - stop)] == values[stop:]


def test_stream_order_changes_with_seed_and_restart():
    sources = [source("a", 100, 5)]
    first = take(stream(sources, seed=1), 3)
    assert take(stream(sources, seed=1), 3) == first != take(stream(sources, seed=2), 3)
    restarted = stream(sources, seed=1)
    restarted.restart = 10
    assert take(restarted, 3) != first


def test_stream_batches_rows_of_similar_length_in_any_order():
    opened = MixtureSource("a", rows_of(["x" * n for n in range(1, 97)], 4), dict, 1.0)
    batches = take(MixtureStream([opened], collate, 4, lambda row: len(row["value"]), pool_batches=24), 24)
    lengths = [sorted(map(len, batch["values"])) for batch in batches]
    assert max(longest - shortest for shortest, *_, longest in lengths) < 10 and lengths != sorted(lengths)
    row = conversation_row(1, MESSAGES, ["x"])
    assert estimate_length(row, num_image_tokens=16) == 16 + len("What colour?Red.") // 4


def test_stream_skips_and_counts_malformed_rows():
    def convert(row):
        if row["value"] % 4 == 0:
            raise ValueError("a fourth is bad")
        return dict(row)

    batches = take(stream([MixtureSource("a", rows_of(range(40), 2), convert, 1.0)]), 30)
    assert all(value % 4 for batch in batches for value in batch["values"])
    assert sum(batch["skipped"].get("malformed", 0) for batch in batches) == pytest.approx(40, abs=4)  # beside 120


@pytest.mark.parametrize(
    ("opened", "rank", "message"),
    [
        (
            MixtureSource("a", rows_of([1, 2, 3]), lambda row: row["key"], 1.0),
            0,
            "a: 1000 rows in a row cannot be converted .no column 'key'.",
        ),
        (source("a", 3, shards=1), 3, "a: too few rows for 4 readers"),
    ],
)
def test_stream_refuses_sources_without_rows(opened, rank, message):
    with pytest.raises(ValueError, match=message):
        take(stream([opened], rank=rank, world_size=4), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_keeps_the_state_of_the_generator(workers, tmp_path):
    """A checkpoint has restored it: otherwise dropout would differ from that of an undisturbed run."""
    arguments = TrainingArguments(tmp_path, dataloader_num_workers=workers, report_to="none", use_cpu=True)
    before = torch.get_rng_state()
    take(ResumableLoader(stream([source("a", 30, 4)]), arguments).loader, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "llava-nxt"}, "'llava-nxt' is not one of cc12m"),
        ({"source": "codes"}, "codes need `path`"),
        ({"source": "codes", "path": "."}, "no code shards"),
        ({"source": "opengpt-4o-image", "path": "."}, "no rows in it"),
    ],
)
def test_open_mixture_refuses_unknown_and_empty_sources(fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gen.json").write_text("[]")
    with pytest.raises(ValueError, match=message):
        open_mixture(DataArguments(name="mixture", sources=[SourceArguments(**fields)]))
