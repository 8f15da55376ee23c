"""Pictures of benchmarks: the same whoever draws them, drawn once, in the layout asked for."""

import json

import numpy as np
import pytest
from conftest import build_chat_model
from PIL import Image

import evotok.eval.text_to_image.images as pictures
from evotok.data.processes import Workers
from evotok.eval.suite import Evaluation
from evotok.eval.text_to_image.images import DrawingOptions, Wanted, draw_missing, in_numbered_folders, write_metadata


PROMPTS = ["a cat", "a dog, the red one", "this"]


class OneOf(Workers):
    """One of several processes, alone: it does its share and waits for nobody."""

    def __init__(self, rank, count):
        super().__init__()
        self.rank, self.of = rank, count

    def map(self, function, items, description):
        return [function(item) for item in items[self.rank :: self.of]]


@pytest.fixture(scope="module")
def chat_model():
    return build_chat_model()


@pytest.fixture
def draw(chat_model, monkeypatch):
    """Function (folder, workers, **options) -> how many pictures were drawn."""
    drawn = []
    generate = pictures.generate_images
    monkeypatch.setattr(
        pictures, "generate_images", lambda *args, **kwargs: drawn.append(len(args[2])) or generate(*args, **kwargs)
    )

    def draw(folder, workers=None, prompts=PROMPTS, settings="a", weights="a", **options):
        drawn.clear()
        options = DrawingOptions(**{"images": 2, "batch_size": 2, "seed": 3} | options)
        files = {"checkpoint_settings": settings}
        evaluation = Evaluation(
            options, ["tiny"], folder, workers or Workers(), lambda: chat_model, files, checkpoint_sha256=weights
        )
        assert draw_missing(evaluation, {"pictures": in_numbered_folders(prompts, options.images)}) == "float32"
        return sum(drawn)

    return draw


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def pixels(folder):
    return {name: np.asarray(Image.open(folder / name)).astype(int) for name in content(folder)}


def test_geneval_layout(draw, tmp_path):
    assert draw(tmp_path / "a") == 6
    write_metadata(tmp_path / "a/pictures", [{"prompt": prompt} for prompt in PROMPTS])
    assert sorted(content(tmp_path / "a")) == [
        f"pictures/{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(2)
    ]
    assert json.loads((tmp_path / "a/pictures/00001/metadata.jsonl").read_text()) == {"prompt": PROMPTS[1]}
    assert Image.open(tmp_path / "a/pictures/00002/samples/0001.png").size == (32, 32)


def test_no_two_pictures_are_alike_and_the_seed_counts(draw, tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b", seed=4)
    mine, other = content(tmp_path / "a"), content(tmp_path / "b")
    assert len(set(mine.values())) == 6
    assert not set(mine.values()) & set(other.values())


def test_what_is_there_is_not_drawn_again_and_what_is_not_is_the_same(draw, tmp_path):
    draw(tmp_path)
    before = content(tmp_path)
    assert draw(tmp_path) == 0
    (tmp_path / "pictures/00001/samples/0001.png").unlink()
    assert draw(tmp_path) == 1
    assert content(tmp_path) == before


def test_the_size_of_a_batch_changes_no_picture(draw, tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b", batch_size=5)
    for name, file in pixels(tmp_path / "a").items():
        assert abs(file - pixels(tmp_path / "b")[name]).max() <= 1, "where sums are rounded"


class Served:
    """What `ServerPool` is to a suite, over a model in this process."""

    at_once = 1

    def __init__(self, parts):
        self.parts, self.orders = parts, []

    def generate_images(self, orders, **settings):
        for index in reversed(range(len(orders))):
            prompt, seed = orders[index]
            self.orders.append(prompt)
            yield index, pictures.generate_images(*self.parts, [prompt], seeds=[seed], **settings)[0]


def test_servers_generate_what_this_process_would(draw, chat_model, tmp_path):
    draw(tmp_path / "a")
    options = DrawingOptions(images=2, seed=3, engine="http://somewhere")
    servers = Served(chat_model)
    evaluation = Evaluation(options, ["tiny"], tmp_path / "b", Workers(), None, servers=servers)
    for missing in (6, 1):
        assert draw_missing(evaluation, {"pictures": in_numbered_folders(PROMPTS, 2)}) == "served"
        assert len(servers.orders) == missing
        for name, file in pixels(tmp_path / "a").items():
            assert abs(file - pixels(tmp_path / "b")[name]).max() <= 1
        servers.orders.clear()
        (tmp_path / "b/pictures/00001/samples/0001.png").unlink()


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_draw_what_one_does(draw, tmp_path, count):
    draw(tmp_path / "one")
    shares = []
    for rank in range(count):
        draw(tmp_path / str(rank), OneOf(rank, count))
        shares.append(content(tmp_path / str(rank)))
    assert sum(map(len, shares)) == 6
    assert {name: picture for share in shares for name, picture in share.items()} == content(tmp_path / "one")


def test_other_options_draw_everything_anew(draw, tmp_path):
    draw(tmp_path)
    before = content(tmp_path)
    assert draw(tmp_path, guidance_scale=1.0) == 6
    assert set(content(tmp_path).values()) != set(before.values())
    assert draw(tmp_path, prompts=PROMPTS[:2], guidance_scale=1.0) == 4
    assert len(content(tmp_path)) == 4
    assert draw(tmp_path, prompts=PROMPTS[:2], guidance_scale=1.0) == 0
    assert draw(tmp_path, prompts=PROMPTS[:2], guidance_scale=1.0, settings="b") == 4, "sampling values are among them"
    words = {"prompts": PROMPTS[:2], "guidance_scale": 1.0, "settings": "b"}
    assert draw(tmp_path, **words) == 0
    assert draw(tmp_path, **words, weights="b") == 4, "another checkpoint"


def test_it_is_noted_if_pictures_were_drawn_in_another_precision(draw, tmp_path):
    draw(tmp_path)
    path = tmp_path / "pictures" / pictures.DRAWN
    note = json.loads(path.read_text())
    assert note["dtypes"] == ["float32"]
    path.write_text(json.dumps(note | {"dtypes": ["bfloat16"]}))
    (tmp_path / "pictures/00001/samples/0001.png").unlink()
    with pytest.raises(AssertionError, match="bfloat16, float32"):
        draw(tmp_path)


def test_a_damaged_picture_is_named_before_anything_is_drawn(draw, tmp_path):
    draw(tmp_path)
    path = tmp_path / "pictures/00002/samples/0000.png"
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "pictures/00000/samples/0000.png").unlink()
    with pytest.raises(ValueError, match=r"00002/samples/0000\.png.*remove it"):
        draw(tmp_path)
    assert not (tmp_path / "pictures/00000/samples/0000.png").exists()


def test_files_of_others_stay(draw, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"has files, but no drawn\.json"):
        draw(tmp_path)
    assert (tmp_path / "pictures/thesis.tex").read_text() == "x"


def test_jpeg_where_a_benchmark_has_it(chat_model, tmp_path):
    evaluation = Evaluation(DrawingOptions(), ["tiny"], tmp_path, Workers(), lambda: chat_model)
    draw_missing(evaluation, {"a": [Wanted("a cat", "00000.jpeg")], "b": [Wanted("a dog", "00000.jpeg")]})
    assert Image.open(tmp_path / "a/00000.jpeg").format == "JPEG"
    assert (tmp_path / "b/00000.jpeg").is_file()


@pytest.mark.parametrize("options", [{"images": 0}, {"guidance_scale": -1.0}, {"batch_size": 0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DrawingOptions(**options)
