"""Every adapter on a tiny file of its data set's schema: what the rows become, and what is refused."""

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
TURNS = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Red."}]
TEXT_TURNS = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]


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
    """Samples of (key, {suffix: bytes})."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def records(name, path, **kwargs):
    rows, folder = SOURCES[name].open(str(path), **kwargs)
    return [SOURCES[name].convert(row, folder) for row in rows]


def said(record):
    """Roles and contents of a record, an image as `<image>`."""
    return [
        (message["role"], "".join(part["text"] or "<image>" for part in message["content"]))
        for message in record["messages"]
    ]


def is_red(image):
    red, _, blue = load_image(image).getpixel((5, 5))
    return red > 200 and blue < 60


def test_llava_pretrain_and_cambrian(tmp_path):
    """A JSON list with images in a folder; JSONL with `source`, numbers for names, and rows of text alone."""
    write_images(tmp_path, "00000/1.jpg", "coco/2.jpg")
    rows = [{"id": "1", "image": "00000/1.jpg", "conversations": TURNS}]
    (tmp_path / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    [record] = records("llava-pretrain", tmp_path)
    assert said(record) == [("user", "<image>What colour?"), ("assistant", "Red.")] and is_red(record["images"][0])

    rows = [
        {"id": 7, "image": "coco/2.jpg", "conversations": TURNS, "source": "coco.json"},
        {"id": "t", "conversations": TEXT_TURNS, "source": "text.json"},
        {"image": "coco/2.jpg", "conversations": TEXT_TURNS},  # the mark is forgotten
    ]
    (tmp_path / "jsons").mkdir()
    (tmp_path / "jsons" / "Cambrian10M.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first, unmarked, text = sorted(
        records("cambrian", tmp_path), key=lambda record: (record["id"] != "7", record["id"])
    )
    assert first["id"] == "7" and is_red(first["images"][0])
    assert text["images"] == [] and said(text)[0] == ("user", "Say hello.")
    assert said(unmarked)[0] == ("user", "<image>Say hello.") and len(unmarked["images"]) == 1


@pytest.mark.parametrize(
    "name, file", [("llava-next", "data/train-00000.parquet"), ("llava-onevision", "ai2d/a.parquet")]
)
def test_llava_parquet(name, file, tmp_path):
    features = {
        "id": Value("string"),
        "image": Image(),
        "conversations": [{"from": Value("string"), "value": Value("string")}],
        "data_source": Value("string"),
    }
    rows = [
        {"id": "a", "image": {"bytes": picture(), "path": None}, "conversations": TURNS, "data_source": "ai2d"},
        {"id": "b", "image": None, "conversations": TEXT_TURNS, "data_source": "text"},
    ]
    write_parquet(tmp_path / file, rows, features)
    first, text = records(name, tmp_path)
    assert said(first) == [("user", "<image>What colour?"), ("assistant", "Red.")] and is_red(first["images"][0])
    assert text["images"] == []


def test_honeybee(tmp_path):
    write_images(tmp_path / "virl", "images/q1.jpg")
    rows = [
        {"q_source": "Ours", "q_id": "1", "image_path": "images/q1.jpg", "question": "How many?", "cot": "\\boxed{2}"},
        {"q_source": "OpenThoughts3", "q_id": "2", "image_path": None, "question": "1 + 1?", "cot": "\\boxed{2}"},
        {"q_source": "ViRL", "q_id": "3", "image_path": "images/q1.jpg", "question": None, "cot": "\\boxed{2}"},
    ]
    write_parquet(tmp_path / "train.parquet", rows)
    source = SOURCES["honeybee"]
    stream, folder = source.open(str(tmp_path), str(tmp_path / "virl"))
    first, text, unmerged = stream
    assert said(source.convert(first, folder))[0] == ("user", "<image>How many?")
    assert source.convert(text, folder)["images"] == []
    with pytest.raises(ValueError, match="full_data"):
        source.convert(unmerged, folder)


def test_rlaif_v(tmp_path):
    """Pairs of answers about an image; rows that lack one of the three are no pairs."""
    row = {"ds_name": "RLAIF-V", "image": {"bytes": picture(), "path": None}, "question": "What colour?"}
    row |= {"chosen": "Red.", "rejected": "Blue.", "idx": "7"}
    write_parquet(tmp_path / "RLAIF-V-Dataset_000.parquet", [row, row | {"rejected": None}, row | {"image": None}])
    source = SOURCES["rlaif-v"]
    stream, folder = source.open(str(tmp_path))
    pair, *others = stream
    record = source.convert(pair, folder)
    assert said(record) == [("user", "<image>What colour?"), ("assistant", "Red.")]
    assert record["rejected"] == "Blue." and record["id"] == "7" and is_red(record["images"][0])
    for other, name in zip(others, ("rejected", "image"), strict=True):
        with pytest.raises(ValueError, match=f"nothing under {name}"):
            source.convert(other, folder)


@pytest.mark.parametrize("name, file", [("cc12m", "cc12m-train-0000.tar"), ("blip3o-short", "sa_000.tar")])
def test_webdataset_pairs(name, file, tmp_path):
    files = {"jpg": picture("red", "jpg"), "txt": b"a red wall"}
    if name == "cc12m":
        files["json"] = json.dumps({"url": "http://x", "width": 40, "status": "success"}).encode()
    write_tar(tmp_path / file, [(f"{n:09d}", files) for n in range(3)])
    found = records(name, tmp_path)
    assert [record["id"] for record in found] == ["000000000", "000000001", "000000002"]
    assert said(found[0]) == [("user", "a red wall"), ("assistant", "<image>")] and is_red(found[0]["images"][0])


def test_imagenet_1k(tmp_path):
    features = {"image": Image(), "label": ClassLabel(names=["tench", "goldfish"])}
    rows = [{"image": {"bytes": picture(), "path": "n01440764_1.JPEG"}, "label": 1}]
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", rows, features)
    [record] = records("imagenet-1k", tmp_path)
    assert record["id"] == "n01440764_1.JPEG" and is_red(record["images"][0])


@pytest.mark.parametrize(
    "name, file, caption",
    [
        ("imagenet1k-qwenimage", "data/a.parquet", {"captions": ["a red wall", "a wall"]}),
        ("llava-onevision-1.5", "imagenet/EN/part00/a.parquet", {"caption": "a red wall", "id": "x"}),
    ],
)
def test_captioned_parquet(name, file, caption, tmp_path):
    write_parquet(tmp_path / file, [{"image": {"bytes": picture(), "path": None}} | caption])
    [record] = records(name, tmp_path)
    assert said(record) == [("user", "a red wall"), ("assistant", "<image>")] and is_red(record["images"][0])


@pytest.mark.parametrize(
    "name, draw, edit",
    [
        ("sharegpt-4o-image", "text_to_image.json", "text_and_image_to_image.json"),
        ("opengpt-4o-image", "gen.json", "editing.json"),
    ],
)
def test_prompted_json(name, draw, edit, tmp_path):
    write_images(tmp_path, "image/out.png", "editing/in.png")
    (tmp_path / draw).write_text(json.dumps([{"input_prompt": "a red wall", "output_image": "image/out.png"}]))
    row = {"input_prompt": "paint it", "input_image": ["editing/in.png"], "output_image": "image/out.png"}
    (tmp_path / edit).write_text(json.dumps([row]))
    found = {len(record["images"]): said(record) for record in records(name, tmp_path)}
    assert found[1] == [("user", "a red wall"), ("assistant", "<image>")]
    assert found[2] == [("user", "<image>paint it"), ("assistant", "<image>")]


def test_your_own(tmp_path):
    write_images(tmp_path, "a/red-wall.png", "b.jpg")
    (tmp_path / "b.txt").write_text("a wall\n")
    assert {said(record)[0][1] for record in records("image-folder", tmp_path)} == {"red wall", "a wall"}
    write_tar(tmp_path / "x.tar", [("1", {"png": picture(), "txt": b"red"})])
    assert len(records("webdataset-pairs", tmp_path)) == 1
    write_parquet(tmp_path / "x.parquet", [{"image": {"bytes": picture(), "path": None}, "prompt": "red"}])
    assert said(records("parquet-pairs", tmp_path)[0])[0] == ("user", "red")


def test_tars_may_hold_pictures_of_any_kind(tmp_path):
    """The first tar says nothing about the others, nor the case of a name about its kind."""
    write_tar(tmp_path / "0.tar", [(f"a/{n}", {"jpg": picture("red", "jpg"), "txt": b"red"}) for n in range(6)])
    others = [("b/1", {"png": picture(), "txt": b"red"}), ("b/2", {"txt": b"red", "JPEG": picture("red", "jpg")})]
    write_tar(tmp_path / "1.tar", [*others, ("b/3.x", {"txt": b"text alone"})])
    rows, folder = SOURCES["webdataset-pairs"].open(str(tmp_path))
    *good, bad = rows
    assert [row["__key__"] for row in good[5:]] == ["a/5", "b/1", "b/2"]
    assert all(is_red(SOURCES["webdataset-pairs"].convert(row, folder)["images"][0]) for row in good)
    with pytest.raises(KeyError, match="txt"):
        SOURCES["webdataset-pairs"].convert(bad, folder)


def _cut_off(data):
    return data[: len(data) // 2]


def _overwritten(data):
    """In the middle, from the start of a block on."""
    start = len(data) // 1024 * 512
    return data[:start] + b"\xff" * 1024 + data[start + 1024 :]


@pytest.mark.parametrize("kind", ["webdataset-pairs", "parquet-pairs"])
@pytest.mark.parametrize("damage", [_cut_off, _overwritten, lambda data: b"", lambda data: b"no such file" * 999])
def test_a_damaged_file_costs_its_rest(kind, damage, tmp_path):
    for name in "abc":
        if kind == "webdataset-pairs":
            path = tmp_path / f"{name}.tar"
            write_tar(path, [(f"{name}{n}", {"txt": b"red", "jpg": b"x" * 300}) for n in range(9)])
        else:
            path = tmp_path / f"{name}.parquet"
            # Noise, of which nothing is repeated: half of the file is a column's data.
            rows = [{"id": f"{name}{n}", "image": random.Random(n).randbytes(999), "caption": "red"} for n in range(9)]
            write_parquet(path, rows)
        if name == "b":
            path.write_bytes(damage(path.read_bytes()))
    part, _ = open_source(SourceArguments(kind, str(tmp_path)))
    rows = list(part.rows)
    names = [row.get("__key__") or row.get("id") for row in rows]
    assert [name for name in names if name and name[0] != "b"] == [f"{a}{n}" for a in "ac" for n in range(9)]
    [bad] = [row for row in rows if DAMAGED in row]
    with pytest.raises(
        ValueError, match=r"b\.(tar|parquet): damaged, the rest of it is passed over \(.+\): copy it again$"
    ):
        part.record(bad)


def test_a_file_that_is_gone_is_no_damaged_one(tmp_path):
    with pytest.raises(OSError, match="a.parquet: cannot be read .No such file or directory.: put it back"):
        list(Rows([str(tmp_path / "a.parquet")], read_parquet))


def test_the_hub_is_listed_and_its_files_are_shards(monkeypatch):
    class Hub:
        def glob(self, pattern):
            if pattern.startswith("datasets/else/where"):
                raise ConnectionError("no network")
            return ["datasets/pixparse/cc12m-wds/1.tar", "datasets/pixparse/cc12m-wds/0.tar"]

    monkeypatch.setattr("evotok.data.sources.source.HfFileSystem", Hub)
    rows, folder = SOURCES["cc12m"].open()
    assert rows.shards == ["hf://datasets/pixparse/cc12m-wds/0.tar", "hf://datasets/pixparse/cc12m-wds/1.tar"]
    assert folder is None
    with pytest.raises(ValueError, match=r"cc12m: no folder 'else/where', and the Hub does not give it \(no network\)"):
        SOURCES["cc12m"].open("else/where")


def test_rows_that_are_no_records_are_refused(tmp_path):
    source = SOURCES["llava-next"]
    for row in ({"id": "1", "image": None, "conversations": []}, {"id": "1", "image": None, "conversations": TURNS}):
        with pytest.raises(ValueError, match="turn|marks"):
            source.convert(row, None)
    with pytest.raises(ValueError, match="no caption"):
        SOURCES["blip3o-short"].convert({"__key__": "1", "txt": b" ", "jpg": b"x"}, None)
    row = {"json": json.dumps({"input_prompt": "x", "output_image": "../secret.png"})}
    with pytest.raises(ValueError, match="outside"):
        SOURCES["opengpt-4o-image"].convert(row, tmp_path)


def test_a_folder_that_is_not_there_or_not_it(tmp_path):
    with pytest.raises(ValueError, match=r"download https://huggingface.co/datasets/nyu-visionx/Cambrian-10M"):
        SOURCES["cambrian"].open()
    with pytest.raises(ValueError, match=r"holds none of cc12m-train-\*.tar"):
        SOURCES["cc12m"].open(str(tmp_path))
    with pytest.raises(ValueError, match="set `path`"):
        SOURCES["image-folder"].open("nowhere")
    with pytest.raises(ValueError, match="image-folder: set `path` to the folder"):
        SOURCES["image-folder"].open()  # not the one that the command is given in


def test_every_adapter_says_what_a_plan_needs():
    for name, source in SOURCES.items():
        assert name == source.name and source.licence and source.weight > 0 and source.convert.__doc__
        assert bool(source.hub_id) == bool(source.num_samples) == bool(source.num_bytes)


# --- what rows name ---------------------------------------------------------------------------------------------------

ADDRESS = "http://127.0.0.1:9/a.png"
NAMED = {
    "parquet-pairs": lambda image: {"id": "1", "image": image, "caption": "a wall"},
    "imagenet-1k": lambda image: {"image": image, "label": 1},
    "llava-next": lambda image: {"id": "1", "image": image, "conversations": TURNS},
    "rlaif-v": lambda image: {"image": image, "question": "What?", "chosen": "Red.", "rejected": "Blue."},
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture, and one outside of it that links lead to."""
    write_images(tmp_path, "inside/a.png", "outside/b.png")
    (tmp_path / "outside" / "secret.txt").write_text("the secret")
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "outside" / "b.png")
    return tmp_path / "inside"


@pytest.mark.parametrize("name", NAMED)
def test_rows_bring_bytes_or_name_files_of_their_folder(folder, name):
    convert, row = SOURCES[name].convert, NAMED[name]
    inside = convert(row({"bytes": None, "path": "a.png"}), folder)["images"]
    assert inside == [str(folder / "a.png")] and load_image(inside[0]).size == (40, 30)
    beside = convert(row({"bytes": picture(), "path": ADDRESS}), folder)["images"]
    assert load_image(beside[0]).size == (40, 30), "the name beside bytes is but a name"
    outside = [ADDRESS, "hf://datasets/a/b.png", "file:///etc/passwd", "data:image/png;base64,AAAA"]
    outside += [str(folder.parent / "outside/b.png"), "../outside/b.png", "link.png", "a\0.png"]
    for path in outside:
        for content in (None, b""):
            with pytest.raises(ValueError, match=r"lies outside|is an address|is no file name"):
                convert(row({"bytes": content, "path": path}), folder)
        with pytest.raises(ValueError, match=r"lies outside|is an address|is no file name"):
            convert(row(path), folder)
    with pytest.raises(ValueError, match="there is no folder"):
        convert(row({"bytes": None, "path": "a.png"}), None)
    for image in (3, [1], {"bytes": "text", "path": None}, {"path": 3}):
        with pytest.raises(ValueError, match="no image"):
            convert(row(image), folder)


def test_links_out_of_a_folder_of_images_are_not_followed(folder, monkeypatch):
    (folder / "a.txt").symlink_to(folder.parent / "outside" / "secret.txt")
    rows, images = SOURCES["image-folder"].open(str(folder))
    kept = []
    for row in rows:
        with pytest.raises(ValueError, match="(image|text) .* lies outside"):
            kept.append(SOURCES["image-folder"].convert(row, images))
    assert len(list(rows)) == 2 and not kept
    found = records("image-folder", folder, image_folder=str(folder.parent))  # a folder that both lie in
    assert [said(record)[0][1] for record in found].count("the secret") == 1
    monkeypatch.chdir(folder.parent)
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_text("a wall")
    row = {"path": "inside/a.png"}
    assert said(SOURCES["image-folder"].convert(row, images))[0] == ("user", "a wall")


def test_texts_have_a_limit(tmp_path):
    long = "x" * 200_001
    too_long = {
        "parquet-pairs": {"id": "1", "image": {"bytes": picture()}, "caption": long},
        "llava-next": {"id": "1", "image": None, "conversations": [{"from": "human", "value": long[:150_000]}] * 2},
        "rlaif-v": NAMED["rlaif-v"]({"bytes": picture()}) | {"rejected": long},
        "webdataset-pairs": {"__key__": "a", "png": picture(), "txt": long.encode()},
    }
    for name, row in too_long.items():
        with pytest.raises(ValueError, match="characters of text, over the limit of 200,000"):
            SOURCES[name].convert(row, None)
    write_images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text(long * 3)
    with pytest.raises(ValueError, match="over the limit"):
        records("image-folder", tmp_path)
    turns = [{"from": "human", "value": "a"}] * 10_001
    with pytest.raises(ValueError, match="10,001 turns"):
        SOURCES["llava-next"].convert({"id": "1", "image": None, "conversations": turns}, None)
