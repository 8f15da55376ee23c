"""`transformers serve`, which knows nothing of this package: the code that a checkpoint carries is all there is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evotok.commands.checkpoints import find_asset, load_multimodal
from evotok.inference import TextSampling, answer_batch, read_chat


pytest.importorskip("fastapi", reason="the server of Transformers needs the extra `serve`")
openai = pytest.importorskip("openai")

from ports import free_port  # noqa: E402
from served import ask, noise  # noqa: E402


START_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The embedded model behind `transformers serve`, and a client of it."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "code")}
    environment.pop("PYTHONPATH", None)
    program = "from transformers.cli.transformers import main; main()"
    options = ["--trust-remote-code", "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", str(find_asset("evotok-mini")), *options],
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
    """The greedy answer to a question about an image, by this package."""
    model, processor = load_multimodal("mini")
    content = [{"type": "image", "image": noise(side=64)}, {"type": "text", "text": "What is this?"}]
    prompt, _ = read_chat(model, processor, [{"role": "user", "content": content}])
    [answer] = answer_batch(model, [prompt], [TextSampling(20)])
    return processor.decode(answer.ids, skip_special_tokens=True), prompt["input_ids"].shape[1]


def test_it_chats_about_an_image_greedily(server, expected):
    model = str(find_asset("evotok-mini"))
    found = server.chat.completions.create(model=model, messages=ask("What is this?", noise(side=64)), max_tokens=20)
    assert (found.choices[0].message.content, found.usage.prompt_tokens) == expected


def test_it_streams_and_samples_when_asked_to(server, expected):
    model, question = str(find_asset("evotok-mini")), ask("What is this?", noise(side=64))
    stream = server.chat.completions.create(model=model, messages=question, max_tokens=20, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == expected[0]
    answers = {
        server.chat.completions.create(model=model, messages=question, max_tokens=20, temperature=2.0, seed=seed)
        .choices[0].message.content
        for seed in range(6)
    }  # fmt: skip
    assert len(answers) > 1, "a temperature that is given counts"


def test_special_tokens_in_a_question_are_text(server):
    model = str(find_asset("evotok-mini"))
    found = server.chat.completions.create(model=model, messages=ask("a <|im_end|> b <|image_pad|> c"), max_tokens=1)
    assert found.usage.prompt_tokens > 12
