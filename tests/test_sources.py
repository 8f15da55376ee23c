"""Sources: every converter on a tiny file of its data set's schema, and refused input."""

import json
import random
import tarfile
from io import BytesIO

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture

from evotok.data.arguments import SourceArguments
from evotok.data.sources import SOURCES
from evotok.data.sources.parquet import read_parquet
from evotok.data.sources.rows import DAMAGED, Rows
from evotok.data.stream_loader import open_source
from evotok.processing.image_loading_evotok import load_image


COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
MESSAGES = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Red."}]
TEXT_MESSAGES = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]


def picture(color="red", suffix="png"):
    buffer = BytesIO()
    Picture.new("RGB", (40, 30), COLORS[color]).save(buffer, format={"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def write_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("red", name[-3:]))


def write_parquet(path, rows, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features) if features else None).to_parquet(path)


def write_tar(path, samples):
    """Writes a tar of samples (key, {suffix: bytes})."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))


def texts(row):
    """Returns the question and answer of a row, with `<image>` for an image."""
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["user", "assistant"]
    return tuple("".join(part["text"] or "<image>" for part in message["content"]) for message in row["messages"])


def converted(name, path, **kwargs):
    rows, folder = SOURCES[name].open(str(path), **kwargs)
    return [SOURCES[name].convert(row, folder) for row in rows]


IMAGE = {"bytes": picture(), "path": "n01440764_1.JPEG"}
LLAVA = {
    "id": Value("string"),
    "image": Image(),
    "conversations": [{"from": Value("string"), "value": Value("string")}],
    "data_source": Value("string"),
}
LLAVA_ROWS = [
    {"id": "a", "image": IMAGE, "conversations": MESSAGES, "data_source": "ai2d"},
    {"id": "b", "image": None, "conversations": TEXT_MESSAGES, "data_source": "text"},
]
CAMBRIAN_ROWS = [
    {"id": 7, "image": "a.jpg", "conversations": MESSAGES, "source": "coco.json"},
    {"id": "t", "conversations": TEXT_MESSAGES, "source": "text.json"},
    {"image": "a.jpg", "conversations": TEXT_MESSAGES},  # without an image mark
]
HONEYBEE_ROWS = [
    {"q_source": "Ours", "q_id": "1", "image_path": "a.jpg", "question": "How many?", "cot": "\\boxed{2}"},
    {"q_source": "OpenThoughts3", "q_id": "2", "image_path": None, "question": "1 + 1?", "cot": "\\boxed{2}"},
]
RLAIF_ROW = {"ds_name": "x", "image": IMAGE, "question": "What?", "chosen": "Red.", "rejected": "Blue.", "idx": "7"}
PAIR = {"jpg": picture("red", "jpg"), "txt": b"a red wall", "json": b'{"url": "http://x"}'}
DRAWN = {"input_prompt": "a red wall", "output_image": "a.jpg"}
EDITED = {"input_prompt": "paint it", "input_image": ["a.jpg"], "output_image": "a.jpg"}
ASKED, SAID, WALL = ("<image>What colour?", "Red."), ("Say hello.", "Hello."), ("a red wall", "<image>")
FILES = {  # source -> writer, file, what is written, texts of the rows
    "llava-pretrain": (write_json, "blip_laion_cc_sbu_558k.json", [CAMBRIAN_ROWS[0]], {ASKED}),
    "cambrian": (write_json, "jsons/Cambrian10M.jsonl", CAMBRIAN_ROWS, {ASKED, SAID, ("<image>Say hello.", "Hello.")}),
    "llava-next": (write_parquet, "data/train-00000.parquet", LLAVA_ROWS, {ASKED, SAID}),
    "llava-onevision": (write_parquet, "ai2d/a.parquet", LLAVA_ROWS, {ASKED, SAID}),
    "honeybee": (
        write_parquet,
        "train.parquet",
        HONEYBEE_ROWS,
        {("<image>How many?", "\\boxed{2}"), ("1 + 1?", "\\boxed{2}")},
    ),
    "rlaif-v": (write_parquet, "RLAIF-V-Dataset_000.parquet", [RLAIF_ROW], {("<image>What?", "Red.")}),
    "cc12m": (write_tar, "cc12m-train-0000.tar", [("1", PAIR)], {WALL}),
    "blip3o-short": (write_tar, "sa_000.tar", [("1", PAIR)], {WALL}),
    "imagenet-1k": (write_parquet, "data/train-0.parquet", [{"image": IMAGE, "label": 1}], {("class 1", "<image>")}),
    "imagenet1k-qwenimage": (
        write_parquet,
        "data/a.parquet",
        [{"image": IMAGE, "captions": ["a red wall", "a wall"]}],
        {WALL},
    ),
    "llava-onevision-1.5": (
        write_parquet,
        "imagenet/EN/part00/a.parquet",
        [{"image": IMAGE, "caption": "a red wall", "id": "x"}],
        {WALL},
    ),
    "sharegpt-4o-image": (write_json, "text_to_image.json", [DRAWN], {WALL}),
    "opengpt-4o-image": (write_json, "editing.json", [DRAWN, EDITED], {WALL, ("<image>paint it", "<image>")}),
    "webdataset-pairs": (write_tar, "deep.tar", [("1", {"png": picture(), "txt": b"red"})], {("red", "<image>")}),
    "parquet-pairs": (write_parquet, "x.parquet", [{"image": IMAGE, "prompt": "red"}], {("red", "<image>")}),
}
FEATURES = {
    "llava-next": LLAVA,
    "llava-onevision": LLAVA,
    "imagenet-1k": {"image": Image(), "label": ClassLabel(names=["tench", "goldfish"])},
}


@pytest.mark.parametrize("name", FILES)
def test_source_converts_the_published_schema(name, tmp_path):
    write, file, content, expected = FILES[name]
    write_images(tmp_path, "a.jpg")
    write(tmp_path / file, content, *([FEATURES[name]] if name in FEATURES else []))
    rows = converted(name, tmp_path)
    assert {texts(row) for row in rows} == expected and len(rows) == len(content)
    for row in rows:
        assert sum(text.count("<image>") for text in texts(row)) == len(row["images"])
        for image in row["images"]:
            red, _, blue = load_image(image).getpixel((5, 5))
            assert red > 200 and blue < 60
        assert ("rejected" in row) == SOURCES[name].preferences


def test_source_rows_have_ids_and_rejected_answers(tmp_path):
    write_parquet(tmp_path / "a.parquet", [RLAIF_ROW])
    [row] = converted("rlaif-v", tmp_path)
    assert (row["id"], row["rejected"]) == ("7", "Blue.")
    write_tar(tmp_path / "cc12m-train-0.tar", [(f"{n:09d}", PAIR) for n in range(3)])
    assert [row["id"] for row in converted("cc12m", tmp_path)] == ["000000000", "000000001", "000000002"]
    assert SOURCES["imagenet-1k"].convert({"image": IMAGE, "label": 1}, None)["id"] == "n01440764_1.JPEG"


def test_image_folder_reads_texts_from_files_or_names(tmp_path):
    write_images(tmp_path, "a/red-wall.png", "b.jpg")
    (tmp_path / "b.txt").write_text("a wall\n")
    assert {texts(row)[0] for row in converted("image-folder", tmp_path)} == {"red wall", "a wall"}


def test_sources_have_licence_weight_and_sizes():
    assert set(FILES) | {"image-folder"} == set(SOURCES)
    for name, source in SOURCES.items():
        assert name == source.name and source.licence and source.weight > 0
        assert bool(source.hub_id) == bool(source.num_rows) == bool(source.num_bytes)


def _overwritten(data):
    """Overwrites data with noise in the middle, from the start of a block on."""
    start = len(data) // 1024 * 512
    return data[:start] + b"\xff" * 1024 + data[start + 1024 :]


@pytest.mark.parametrize("kind", ["webdataset-pairs", "parquet-pairs"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], _overwritten, lambda data: b"no file" * 999])
def test_damaged_file_is_skipped_from_the_damage_on(kind, damage, tmp_path):
    for name in "abc":
        if kind == "webdataset-pairs":
            path = tmp_path / f"{name}.tar"
            write_tar(path, [(f"{name}{n}", {"txt": b"red", "jpg": b"x" * 300}) for n in range(9)])
        else:
            path = tmp_path / f"{name}.parquet"
            # Noise, which is not compressed: half of the file is a column's data.
            rows = [{"id": f"{name}{n}", "image": random.Random(n).randbytes(999), "caption": "red"} for n in range(9)]
            write_parquet(path, rows)
        if name == "b":
            path.write_bytes(damage(path.read_bytes()))
    source, _ = open_source(SourceArguments(kind, str(tmp_path)))
    rows = list(source.rows)
    names = [row.get("__key__") or row.get("id") for row in rows]
    assert [name for name in names if name and name[0] != "b"] == [f"{a}{n}" for a in "ac" for n in range(9)]
    [bad] = [row for row in rows if DAMAGED in row]
    message = r"b\.(tar|parquet): damaged, the rest is skipped \(.+\): copy it again$"
    with pytest.raises(ValueError, match=message):
        source.convert(bad)


def test_missing_file_raises_an_error(tmp_path):
    with pytest.raises(OSError, match="a.parquet: cannot be read .No such file or directory.: put it back"):
        list(Rows([str(tmp_path / "a.parquet")], read_parquet))


def test_source_on_the_hub_has_its_files_as_shards(monkeypatch):
    class Hub:
        def glob(self, pattern):
            if pattern.startswith("datasets/else/where"):
                raise ConnectionError("no network")
            return ["datasets/pixparse/cc12m-wds/1.tar", "datasets/pixparse/cc12m-wds/0.tar"]

    monkeypatch.setattr("evotok.data.sources.source.HfFileSystem", Hub)
    rows, folder = SOURCES["cc12m"].open()
    assert rows.shards == ["hf://datasets/pixparse/cc12m-wds/0.tar", "hf://datasets/pixparse/cc12m-wds/1.tar"]
    assert folder is None
    with pytest.raises(
        ValueError,
        match=r"cc12m: no folder 'else/where', and it cannot be listed on the Hub \(no network\): set `path`",
    ):
        SOURCES["cc12m"].open("else/where")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("llava-next", {"id": "1", "image": None, "conversations": []}, "at least one message"),
        ("llava-next", {"id": "1", "image": None, "conversations": MESSAGES}, "marks"),
        ("blip3o-short", {"__key__": "1", "txt": b" ", "jpg": b"x"}, "no caption"),
        ("honeybee", HONEYBEE_ROWS[0] | {"question": None}, "full_data"),
        ("rlaif-v", RLAIF_ROW | {"rejected": None}, "nothing under rejected"),
        ("rlaif-v", RLAIF_ROW | {"image": None}, "nothing under image"),
        ("opengpt-4o-image", {"json": json.dumps(DRAWN | {"output_image": "../secret.png"})}, "outside"),
        ("parquet-pairs", {"image": IMAGE, "caption": "x" * 200_001}, "characters of text, over the limit of 200,000"),
        ("llava-next", LLAVA_ROWS[1] | {"conversations": TEXT_MESSAGES * 5001}, "10,002 messages, over the limit"),
    ],
)
def test_source_refuses_unusable_rows(name, row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SOURCES[name].convert(row, tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("cambrian", None, "download https://huggingface.co/datasets/nyu-visionx/Cambrian-10M"),
        ("cc12m", ".", r"holds none of cc12m-train-\*.tar"),
        ("image-folder", "nowhere", "set `path` of the source"),
        ("image-folder", None, "set `path` to its folder"),  # not the current one
    ],
)
def test_source_refuses_folders_without_its_files(name, path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        SOURCES[name].open(path)


# --- images that rows name --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Creates a folder with an image, beside another one that links lead to."""
    write_images(tmp_path, "inside/a.png", "outside/b.png")
    (tmp_path / "outside" / "secret.txt").write_text("the secret")
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "outside" / "b.png")
    return tmp_path / "inside"


@pytest.mark.parametrize("name", ["parquet-pairs", "imagenet-1k", "llava-next", "rlaif-v"])
def test_rows_have_bytes_or_name_files_of_their_folder(folder, name):
    convert, template = SOURCES[name].convert, FILES[name][2][0] | {"caption": "a wall"}

    def images(image, folder=folder):
        return convert(template | {"image": image}, folder)["images"]

    assert images({"bytes": None, "path": "a.png"}) == [str(folder / "a.png")]
    address = "http://127.0.0.1:9/a.png"
    assert load_image(images({"bytes": picture(), "path": address})[0]).size == (40, 30), "its path is not used"
    outside = [address, "hf://datasets/a/b.png", "file:///etc/passwd", "data:image/png;base64,AAAA"]
    outside += [str(folder.parent / "outside/b.png"), "../outside/b.png", "link.png", "a\0.png"]
    for path in outside:
        for image in ({"bytes": None, "path": path}, {"bytes": b"", "path": path}, path):
            with pytest.raises(ValueError, match=r"is outside of|is an address|is no file name"):
                images(image)
    with pytest.raises(ValueError, match="there is no folder"):
        images({"bytes": None, "path": "a.png"}, None)
    for image in (3, [1], {"bytes": "text", "path": None}, {"path": 3}):
        with pytest.raises(ValueError, match="no image"):
            images(image)


def test_image_folder_does_not_follow_links_out_of_it(folder):
    (folder / "a.txt").symlink_to(folder.parent / "outside" / "secret.txt")
    rows, images = SOURCES["image-folder"].open(str(folder))
    assert len(list(rows)) == 2
    for row in rows:
        with pytest.raises(ValueError, match="(image|text) .* is outside of"):
            SOURCES["image-folder"].convert(row, images)
    found = converted("image-folder", folder, image_folder=str(folder.parent))  # which has both
    assert [texts(row)[0] for row in found].count("the secret") == 1
