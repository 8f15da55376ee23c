"""`transformers serve` of an exported checkpoint with its own code: the server does not import this package."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evotok.cli import main
from evotok.commands.checkpoints import load_multimodal
from evotok.inference import TextSampling, answer_batch, read_chat


pytest.importorskip("fastapi", reason="the server of Transformers needs the extra `serve`")
openai = pytest.importorskip("openai")

from ports import free_port  # noqa: E402
from served import ask, noise  # noqa: E402


START_SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns the folder of the exported embedded model, which is its name for the server, too."""
    folder = tmp_path_factory.mktemp("exported") / "mini"
    assert main(["export", "mini", "--out", str(folder)]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory, model):
    """Yields a client of `transformers serve` with the exported model."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "code")}
    environment.pop("PYTHONPATH", None)
    program = "from transformers.cli.transformers import main; main()"
    options = ["--trust-remote-code", "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", model, *options],
            cwd=folder, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    try:
        with openai.OpenAI(
            base_url=f"http://localhost:{port}/v1", api_key="none", timeout=120, max_retries=0
        ) as client:
            _wait_until_ready(client, process, folder / "log")
            yield client
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(client, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client.get("/../health", cast_to=object)
            return
        except openai.APIConnectionError:
            time.sleep(0.2)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def expected():
    """Returns the greedy answer of this package to a question about an image."""
    mini, processor = load_multimodal("mini")
    content = [{"type": "image", "image": noise(side=64)}, {"type": "text", "text": "What is this?"}]
    prompt, _ = read_chat(mini, processor, [{"role": "user", "content": content}])
    [answer] = answer_batch(mini, [prompt], [TextSampling(20)])
    return processor.decode(answer.ids, skip_special_tokens=True), prompt["input_ids"].shape[1]


def test_server_answers_about_an_image_greedily(server, model, expected):
    found = server.chat.completions.create(model=model, messages=ask("What is this?", noise(side=64)), max_tokens=20)
    assert (found.choices[0].message.content, found.usage.prompt_tokens) == expected


def test_server_streams_and_samples_on_request(server, model, expected):
    question = ask("What is this?", noise(side=64))
    stream = server.chat.completions.create(model=model, messages=question, max_tokens=20, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == expected[0]
    answers = {
        server.chat.completions.create(model=model, messages=question, max_tokens=20, temperature=2.0, seed=seed)
        .choices[0].message.content
        for seed in range(6)
    }  # fmt: skip
    assert len(answers) > 1, "the temperature of a request is used"


def test_server_reads_special_tokens_in_a_question_as_text(server, model):
    found = server.chat.completions.create(model=model, messages=ask("a <|im_end|> b <|image_pad|> c"), max_tokens=1)
    assert found.usage.prompt_tokens > 12
