"""Images of the tab Generate, by a model in this process and by a server."""

import pytest
import torch
from conftest import POSITIONS, build_chat_model


pytest.importorskip("gradio", reason="the page needs the extra `app`")

from evotok.app.generate import GenerationArguments, Progress, generate, read_seed
from evotok.app.limits import MAX_CHARACTERS
from evotok.inference import generate_images


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


def test_generate_ends_with_the_images_of_the_model(parts):
    arguments = GenerationArguments("a cat", guidance_scale=2.0, num_images=1, seed=1)
    steps = list(generate(*parts, arguments))
    positions = [step.positions for step in steps]
    assert positions == sorted(positions) and steps[-1].positions == steps[-1].total == POSITIONS
    assert steps[-1].is_finished and steps[-1].seed == 1 and steps[-1].images_per_second > 0
    [wanted] = generate_images(*parts, ["a cat"], seed=1, guidance_scale=2.0, temperature=1.0)
    [found] = steps[-1].images
    assert found.tobytes() == wanted.tobytes()
    other = list(generate(*parts, arguments._replace(negative_prompt="a dog")))[-1]
    assert other.images[0].tobytes() != found.tobytes()


def test_generate_by_a_server_returns_its_images():
    class Client:
        def generate_images(self, *arguments, **settings):
            self.called = arguments, settings
            return ["one", "two"]

    client = Client()
    [progress] = generate(client, None, GenerationArguments("a red cat", "a dog", 3.0, 2, "7", 0.8))
    assert progress.is_finished and progress.seed == 7 and progress.images == ["one", "two"]
    settings = {"negative_prompt": "a dog", "guidance_scale": 3.0, "temperature": 0.8}
    assert client.called == (("a red cat", 7, 2), settings)


def test_generate_at_the_deadline_returns_unfinished_images(parts, monkeypatch):
    arguments = GenerationArguments("a cat", num_images=1)
    assert list(generate(*parts, arguments, seconds=-1)) == []
    monkeypatch.setattr("evotok.app.generate.stream_codes", lambda *_, **__: iter(torch.zeros(3, 1, 2).long()))
    last = list(generate(*parts, arguments))[-1]
    assert last.positions == 3 and not last.is_finished


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (GenerationArguments(" "), "Write a prompt first"),
        (GenerationArguments("x" * (MAX_CHARACTERS + 1)), "prompt has 2001 characters"),
        (GenerationArguments("a", "0xq7" * 480), "negative prompt has .* tokens"),
        (GenerationArguments("a", seed=-1), "The seed is -1"),
        (GenerationArguments("a", seed="seven"), "The seed is seven: give a number"),
    ],
)
def test_generate_refuses_bad_arguments(parts, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(generate(*parts, arguments))


def test_read_seed_without_a_seed_is_random():
    assert len({read_seed(seed) for seed in ("", None, "  ")}) == 3
    assert read_seed(" 0 ") == 0 and read_seed(7) == 7


def test_progress_counts_unfinished_images_by_their_share():
    half = Progress([None, None], positions=8, total=16, seconds=2.0, seed=0)
    assert not half.is_finished and half.images_per_second == 0.5
