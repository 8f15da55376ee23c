"""Streams of mixtures: nothing twice, nothing lost, the weights hold, and every place can be gone on from."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from test_sources import TEXT_TURNS, TURNS, picture, write_tar
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

from evotok.data.arguments import DataArguments, SourceArguments
from evotok.data.collators import MAX_EMPTY_BATCHES
from evotok.data.image_datasets import ImageCollator
from evotok.data.mixture import MixtureStream, Part, _Reader
from evotok.data.sources.parquet import read_parquet
from evotok.data.sources.rows import Rows
from evotok.data.sources.tars import read_tar
from evotok.data.stream_loader import ResumableLoader, estimate_length, open_mixture, open_source


def rows_of(values, shards=1):
    rows = [{"value": value} for value in values]
    return Rows([rows[len(rows) * n // shards : len(rows) * (n + 1) // shards] for n in range(shards)], iter)


def part(name, size, shards, weight=1.0):
    return Part(name, rows_of([f"{name}{n}" for n in range(size)], shards), dict, weight)


def collate(records):
    return {"values": [record["value"] for record in records], "index": [record["index"] for record in records]}


def stream(parts, **kwargs):
    return MixtureStream(parts, collate, batch_size=4, pool_batches=3, **kwargs)


def take(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("size, shards", [(40, 10), (30, 7), (30, 2), (15, 1)])
def test_readers_share_a_source_out_whatever_its_shards(size, shards):
    readers = [_Reader(part("a", size, shards), number, 5) for number in range(5)]
    shares = []
    for reader in readers:
        stream = iter(reader)
        share = [next(stream)["value"]]
        while (value := next(stream)["value"]) and reader.epoch == 0:
            share.append(value)
        shares.append(share)
    assert sorted(value for share in shares for value in share) == sorted(f"a{n}" for n in range(size))


@pytest.mark.parametrize("number", range(7))
def test_more_readers_than_shards_go_on_exactly_and_look_at_one_shard_each(number):
    looked_at = []

    def read_shard(rows):
        looked_at.append(rows[0]["value"])
        yield from rows

    def reader():
        return _Reader(Part("a", Rows(rows_of(range(60), 3).shards, read_shard), dict, 1.0), number, 7)

    whole = [row["value"] for row in itertools.islice(reader(), 50)]
    looked_at.clear()
    epoch = [row["value"] for row in itertools.islice(reader(), 6)]
    assert len(looked_at) == 1 and set(epoch) < set(range(looked_at[0], looked_at[0] + 20))
    for stop in range(1, 40):
        killed, resumed = reader(), reader()
        list(itertools.islice(killed, stop))
        resumed.load_state_dict(killed.state_dict())
        assert [row["value"] for row in itertools.islice(resumed, 10)] == whole[stop : stop + 10]


def test_a_shard_that_is_smaller_than_its_group_ends_no_run():
    """A reader that finds none of it left has another one in the next round."""
    shards = [[{"value": 0}], [{"value": value} for value in range(1, 50)]]
    for number in range(4):
        reader = _Reader(Part("a", Rows(shards, iter), dict, 1.0), number, 4)
        assert len({row["value"] for row in itertools.islice(reader, 30)}) > 10


def write_alphabet(folder, kind):
    """Twenty files `a` to `t` of ten rows each; the caption begins with the file's letter. JSON is one file of them."""
    for letter in "abcdefghijklmnopqrst":
        captions = [f"{letter} {n}" for n in range(10)]
        if kind == "parquet":
            Dataset.from_dict({"image": [b"x"] * 10, "caption": captions}).to_parquet(folder / f"{letter}.parquet")
        elif kind == "webdataset":
            samples = [(str(n), {"jpg": b"x", "txt": caption.encode()}) for n, caption in enumerate(captions)]
            write_tar(folder / f"{letter}.tar", samples)
        elif kind == "image":
            for caption in captions:
                (folder / f"{caption}.png").write_bytes(b"x")
    if kind == "json":
        (folder / "out.png").write_bytes(b"x")
        captions = [f"{letter} {n}" for letter in "abcdefghijklmnopqrst" for n in range(10)]
        rows = [{"input_prompt": caption, "output_image": "out.png"} for caption in captions]
        (folder / "gen.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    "name, kind",
    [
        ("parquet-pairs", "parquet"),
        ("webdataset-pairs", "webdataset"),
        ("image-folder", "image"),
        ("opengpt-4o-image", "json"),
    ],
)
def test_readers_do_not_go_through_the_alphabet(name, kind, tmp_path):
    """What two readers see first is of both halves; a run may end long before it has seen all."""
    write_alphabet(tmp_path, kind)
    part, _ = open_source(SourceArguments(name, str(tmp_path)))
    for number in range(2):
        rows = itertools.islice(_Reader(part, number, 2), 25)
        letters = {part.record(row)["messages"][0]["content"][0]["text"][0] for row in rows}
        assert min(letters) < "k" <= max(letters)


def test_the_damaged_rest_of_a_file_is_one_row_that_is_passed_over_and_counted(tmp_path):
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{n}", {"txt": b"x", "jpg": b"x" * 2000}) for n in range(9)])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:20000])
    opened, _ = open_source(SourceArguments("webdataset-pairs", str(tmp_path)))

    def build():
        return MixtureStream([opened], lambda records: {"ids": [record["id"] for record in records]}, 2, pool_batches=2)

    whole = take(build(), 30)
    good = sum(row.get("__key__", "").startswith("b") for row in opened.rows)
    assert 0 < good < 9 and sum(batch["skipped"].get("malformed", 0) for batch in whole) >= 2
    for stop in range(1, 20):
        killed, resumed = build(), build()
        take(killed, stop)
        resumed.load_state_dict(killed.state_dict())
        assert [batch["ids"] for batch in take(resumed, 10)] == [batch["ids"] for batch in whole[stop : stop + 10]]


def test_weights_hold_and_places_are_unique():
    parts = [part("a", 50, 5, weight=3.0), part("b", 50, 5, weight=1.0)]
    batches = [b for rank in range(2) for b in take(stream(parts, rank=rank, world_size=2), 150)]
    counts = Counter(value[0] for batch in batches for value in batch["values"])
    assert 0.7 < counts["a"] / counts.total() < 0.8
    places = [place for batch in batches for place in batch["index"]]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 7, 29])  # within a pool, at its end, after it, in the sources' second rounds
def test_resumes_exactly(workers, stop):
    def loader(rank):
        parts = [part("a", 30, 4), part("b", 9, 1), part("c", 200, 8)]
        streamed = stream(parts, rank=rank, world_size=2)
        return StatefulDataLoader(streamed, batch_size=None, num_workers=workers)

    for rank in range(2):
        whole = take(loader(rank), stop + 8)
        killed = loader(rank)
        iterator = iter(killed)
        assert [next(iterator) for _ in range(stop)] == whole[:stop]
        state = killed.state_dict()
        resumed = loader(rank)
        resumed.load_state_dict(state)
        assert take(resumed, 8) == whole[stop:]


def test_goes_on_with_the_last_good_sample_where_there_is_none():
    """As collators do that repeat it: also when the run was killed in between."""

    class Repeating:
        spare = None

        def __call__(self, records):
            good = [record["value"] for record in records if int(record["value"][1:]) % 3 == 0]
            if not good and self.spare is None:
                raise ValueError("nothing good yet")
            good = good or [self.spare]
            self.spare = good[-1]
            return {"values": good}

    def build():
        return MixtureStream([part("a", 30, 4)], Repeating(), batch_size=1, pool_batches=16, seed=1)

    whole = take(build(), 16)
    assert sum(one == other for one, other in itertools.pairwise(whole)) > 4
    for stop in range(1, 16):
        killed, resumed = build(), build()
        take(killed, stop)
        resumed.load_state_dict(killed.state_dict())
        assert take(resumed, 16 - stop) == whole[stop:], stop


@pytest.mark.parametrize("workers", [0, 1])
def test_dropout_falls_where_it_would_have(workers, tmp_path):
    """A loader begins after the generator of a checkpoint was brought back, and leaves it as it is."""
    arguments = TrainingArguments(tmp_path, dataloader_num_workers=workers, report_to="none", use_cpu=True)
    before = torch.get_rng_state()
    take(ResumableLoader(stream([part("a", 30, 4)]), arguments).loader, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_resumes_exactly_in_files_larger_than_a_chunk(kind, tmp_path):
    for shard in range(3):
        if kind == "parquet":
            Dataset.from_dict({"value": [f"{shard}/{n}" for n in range(150)]}).to_parquet(
                tmp_path / f"{shard}.parquet", batch_size=40
            )
        else:
            samples = [(f"{n:05d}", {"txt": f"{shard}/{n}".encode(), "jpg": b"x"}) for n in range(150)]
            write_tar(tmp_path / f"{shard}.webdataset", samples)
    files = sorted(str(path) for path in tmp_path.glob(f"*.{kind}"))

    def build():
        rows = Rows(files, read_parquet if kind == "parquet" else read_tar)
        convert = dict if kind == "parquet" else lambda row: {"value": row["txt"]}
        return stream([Part("x", rows, convert, 1.0)], rank=1, world_size=2)

    whole = take(build(), 60)
    for stop in (5, 18, 40):
        killed = build()
        take(killed, stop)
        resumed = build()
        resumed.load_state_dict(killed.state_dict())
        assert take(resumed, 60 - stop) == whole[stop:]


def test_another_seed_or_restart_is_another_order():
    parts = [part("a", 100, 5)]
    one, two = stream(parts, seed=1), stream(parts, seed=1)
    assert take(one, 3) == take(two, 3)
    assert take(stream(parts, seed=2), 3) != take(stream(parts, seed=1), 3)
    two = stream(parts, seed=1)
    two.restart = 10
    assert take(two, 3) != take(stream(parts, seed=1), 3)


def test_batches_hold_rows_of_like_length():
    rows = rows_of(["x" * n for n in range(1, 97)], 4)
    grouped = MixtureStream(
        [Part("a", rows, dict, 1.0)], collate, 4, length_of=lambda record: len(record["value"]), pool_batches=24
    )
    batches = take(grouped, 24)
    spans = [max(map(len, batch["values"])) - min(map(len, batch["values"])) for batch in batches]
    assert max(spans) < 10
    lengths = [len(batch["values"][0]) for batch in batches]
    assert lengths != sorted(lengths)  # the batches themselves come in any order


def test_record_length_counts_images_in_full():
    from evotok.data.sources.source import to_answer

    assert estimate_length(to_answer(1, TURNS, ["x"]), num_image_tokens=16) == 16 + len("What colour?Red.") // 4
    assert estimate_length(to_answer(1, TEXT_TURNS, []), num_image_tokens=16) < 16


def test_malformed_rows_are_skipped_and_counted_once():
    rows = rows_of(range(40), 2)

    def convert(row):
        if row["value"] % 4 == 0:
            raise ValueError("a fourth is bad")
        return dict(row)

    batches = take(stream([Part("a", rows, convert, 1.0)]), 30)
    assert all(value % 4 for batch in batches for value in batch["values"])
    bad = sum(batch["skipped"].get("malformed", 0) for batch in batches)
    assert bad == pytest.approx(40, abs=4)  # 120 good ones are drawn


def test_a_source_of_nothing_but_malformed_rows_ends_the_run():
    rows = rows_of([1, 2, 3])
    with pytest.raises(ValueError, match="a: 1000 rows in a row are no records .no column 'key'."):
        take(stream([Part("a", rows, lambda row: row["key"], 1.0)]), 1)


def test_a_source_too_small_for_the_readers_says_so():
    with pytest.raises(ValueError, match="a: too few samples for 4 readers"):
        take(stream([part("a", 3, shards=1)], rank=3, world_size=4), 1)


def test_bad_pictures_are_skipped_and_counted(tmp_path):
    """Corrupt, truncated, huge and endlessly long ones; odd modes are read."""
    good = {"rgba": "RGBA", "palette": "P", "grey16": "I;16", "bilevel": "1", "cmyk": "CMYK"}
    for name, mode in good.items():
        Image.new(mode, (40, 50)).save(tmp_path / f"{name}.{'tiff' if mode == 'CMYK' else 'png'}")
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "truncated.png").write_bytes(picture()[:60])
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    Image.new("L", (4000, 2)).save(tmp_path / "long.png")
    names = [*(path.name for path in sorted(tmp_path.iterdir()))]
    collator = ImageCollator(size=32)
    batch = collator([{"id": name, "index": n, "images": [str(tmp_path / name)]} for n, name in enumerate(names)])
    assert batch["pixel_values"].shape == (len(good), 3, 32, 32) and collator.skipped == {"image": 4}
    only_bad = collator([{"id": "x", "index": 0, "images": [str(tmp_path / "corrupt.jpg")]}])
    assert only_bad["pixel_values"].shape[0] == 1
    for _ in range(MAX_EMPTY_BATCHES - 2):
        collator([{"id": "x", "index": 0, "images": []}])
    with pytest.raises(ValueError, match=f"Nothing in the last {MAX_EMPTY_BATCHES} batches can be used"):
        collator([{"id": "x", "index": 0, "images": []}])
    with pytest.raises(ValueError, match="Nothing in the batch can be used"):
        ImageCollator(size=32)([{"id": "x", "index": 0, "images": []}])


def test_the_crop_follows_from_seed_and_index(tmp_path):
    gradient = np.tile(np.arange(200, dtype=np.uint8), (50, 1))
    Image.fromarray(gradient).save(tmp_path / "x.png")
    record = {"id": "x", "index": 5, "images": [str(tmp_path / "x.png")]}
    one, again = (ImageCollator(32, seed=1)([record])["pixel_values"] for _ in range(2))
    other = ImageCollator(32, seed=1)([record | {"index": 6}])["pixel_values"]
    assert (one == again).all() and (one != other).any()


def test_mistakes_in_sources_are_named(tmp_path):
    def data(*sources):
        return DataArguments(name="mixture", sources=[SourceArguments(**source) for source in sources])

    with pytest.raises(ValueError, match="'llava-nxt' is not one of cc12m"):
        open_mixture(data({"source": "llava-nxt"}), None)
    with pytest.raises(ValueError, match="codes need `path`"):
        open_mixture(data({"source": "codes"}), None)
    with pytest.raises(ValueError, match="no shards of codes"):
        open_mixture(data({"source": "codes", "path": str(tmp_path)}), None)
    (tmp_path / "gen.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="no records in it"):
        open_mixture(data({"source": "opengpt-4o-image", "path": str(tmp_path)}), None)
