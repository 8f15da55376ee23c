"""Images of suites: generated once, by this process or by servers, in the benchmarks' layouts.

test_processes.py has several processes.
"""

import json

import numpy as np
import pytest
from conftest import build_chat_model
from PIL import Image

import evotok.eval.text_to_image.images as images
from evotok.data.processes import Workers
from evotok.eval.suite import Evaluation
from evotok.eval.text_to_image.geneval_layout import plan_images, write_metadata
from evotok.eval.text_to_image.images import GenerationOptions, PlannedImage, generate_missing


PROMPTS = ["a cat", "a dog, the red one", "this"]


@pytest.fixture(scope="module")
def chat_model():
    return build_chat_model()


@pytest.fixture
def generate(chat_model, monkeypatch):
    """Returns a function (folder, **options) -> number of generated images."""
    generated, original = [], images.generate_images
    monkeypatch.setattr(
        images, "generate_images", lambda *args, **kwargs: generated.append(len(args[2])) or original(*args, **kwargs)
    )

    def generate(folder, prompts=PROMPTS, settings="a", weights="a", **options):
        generated.clear()
        options = GenerationOptions(**{"images": 2, "batch_size": 2, "seed": 3} | options)
        files = {"checkpoint_settings": settings}
        evaluation = Evaluation(
            options, ["tiny"], folder, Workers(), lambda: chat_model, files, checkpoint_sha256=weights
        )
        assert generate_missing(evaluation, {"pictures": plan_images(prompts, options.images)}) == "float32"
        return sum(generated)

    return generate


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def assert_close(first, second):
    for name in content(first):
        pair = [np.asarray(Image.open(folder / name)).astype(int) for folder in (first, second)]
        assert abs(pair[0] - pair[1]).max() <= 1, "batches of other sizes round sums otherwise"


def test_images_have_the_layout_of_geneval_and_own_seeds(generate, tmp_path):
    assert generate(tmp_path) == 6
    write_metadata(tmp_path / "pictures", [{"prompt": prompt} for prompt in PROMPTS])
    files = content(tmp_path)
    assert sorted(files) == [f"pictures/{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(2)]
    assert len(set(files.values())) == 6
    assert json.loads((tmp_path / "pictures/00001/metadata.jsonl").read_text()) == {"prompt": PROMPTS[1]}


def test_missing_images_are_generated_again(generate, tmp_path):
    generate(tmp_path)
    before = content(tmp_path)
    (tmp_path / "pictures/00001/samples/0001.png").unlink()
    assert generate(tmp_path) == 1 and content(tmp_path) == before
    assert generate(tmp_path) == 0


class Served:
    """Stand-in for `ServerPool`, over a model in this process."""

    at_once = 1

    def __init__(self, parts):
        self.parts, self.prompts = parts, []

    def generate_images(self, requests, **settings):
        for index in reversed(range(len(requests))):
            prompt, seed = requests[index]
            self.prompts.append(prompt)
            [image] = images.generate_images(*self.parts, [prompt], seeds=[seed], **settings)
            yield index, image


def test_servers_generate_equal_images(generate, chat_model, tmp_path):
    generate(tmp_path / "a")
    servers = Served(chat_model)
    options = GenerationOptions(images=2, seed=3, engine="http://somewhere")
    evaluation = Evaluation(options, ["tiny"], tmp_path / "b", Workers(), None, servers=servers)
    assert generate_missing(evaluation, {"pictures": plan_images(PROMPTS, 2)}) == "served"
    assert len(servers.prompts) == 6
    assert_close(tmp_path / "a", tmp_path / "b")


def test_images_of_other_settings_are_replaced(generate, tmp_path):
    assert generate(tmp_path) == 6
    before, words = content(tmp_path), {}
    for changed, count in [
        ({"guidance_scale": 1.0}, 6),
        ({"prompts": PROMPTS[:2]}, 4),
        ({"settings": "b"}, 4),
        ({"weights": "b"}, 4),
    ]:
        words |= changed
        assert (generate(tmp_path, **words), generate(tmp_path, **words)) == (count, 0), changed
    assert len(content(tmp_path)) == 4 and not set(content(tmp_path).values()) & set(before.values())


def test_dtypes_of_a_continued_run_are_stored(generate, tmp_path):
    generate(tmp_path)
    path = tmp_path / "pictures" / images.NOTE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtypes": ["bfloat16"]}))
    (tmp_path / "pictures/00001/samples/0001.png").unlink()
    with pytest.raises(AssertionError, match="bfloat16, float32"):
        generate(tmp_path)


def test_damaged_image_is_refused_before_generation(generate, tmp_path):
    generate(tmp_path)
    path = tmp_path / "pictures/00002/samples/0000.png"
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "pictures/00000/samples/0000.png").unlink()
    with pytest.raises(ValueError, match=r"00002/samples/0000\.png.*remove it"):
        generate(tmp_path)
    assert not (tmp_path / "pictures/00000/samples/0000.png").exists()


def test_folder_with_other_files_is_refused(generate, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"has files, but no drawn\.json"):
        generate(tmp_path)
    assert (tmp_path / "pictures/thesis.tex").read_text() == "x"


def test_image_format_follows_the_suffix(chat_model, tmp_path):
    evaluation = Evaluation(GenerationOptions(), ["tiny"], tmp_path, Workers(), lambda: chat_model)
    planned = {name: [PlannedImage("a cat", "00000.jpeg")] for name in "ab"}
    generate_missing(evaluation, planned)
    assert all(Image.open(tmp_path / name / "00000.jpeg").format == "JPEG" for name in planned)
