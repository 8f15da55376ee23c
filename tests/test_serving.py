"""`evotok serve` through OpenAI's client: chat about images, streams, generated images, and refused requests."""

import asyncio
import http.client
import itertools
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import POSITIONS, build_chat_model, parse_command
from PIL import Image


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
openai = pytest.importorskip("openai")

from served import ask, data_url, decode, noise, running  # noqa: E402

from evotok.cli import main  # noqa: E402
from evotok.inference import answer, generate_images  # noqa: E402
from evotok.serving.gate import ENDPOINTS  # noqa: E402
from evotok.serving.limits import Limits  # noqa: E402
from evotok.serving.protocol import _IGNORED, _NEUTRAL, ChatBody, ImageBody  # noqa: E402


DOCUMENT = Path(__file__).resolve().parents[1] / "docs/serving.md"


@pytest.fixture(scope="module")
def parts():
    """Returns a model and its processor: 32 px, 4 x 4 positions, a context of 512 tokens."""
    return build_chat_model()


@pytest.fixture(scope="module")
def served(parts):
    with running(parts, Limits(body_bytes=2**20, pixels=10_000, images=3, characters=5000)) as server:
        yield server


def post(served, path: str, body: bytes, **headers: str) -> tuple[int, dict]:
    """Sends a request that OpenAI's client would not send; returns status and JSON."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# --- chat -------------------------------------------------------------------------------------------------------------


def test_answer_about_an_image_equals_the_model(parts, served):
    model, processor = parts
    image = noise()
    found = served.client.chat.completions.create(model="tiny", messages=ask("what is this?", image), max_tokens=12)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this?"}]
    [wanted] = answer(model, processor, [[{"role": "user", "content": content}]], max_new_tokens=12, do_sample=False)
    assert found.choices[0].message.content.strip() == wanted != ""
    assert found.choices[0].finish_reason == "length" and found.model == "tiny"
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert found.usage.prompt_tokens == len(inputs["input_ids"][0])
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (12, found.usage.prompt_tokens + 12)


def test_large_images_are_resized_like_the_processor(parts, served):
    """They are resized once, on arrival."""
    model, processor = parts
    image = noise(side=90).resize((90, 70))
    found = served.client.chat.completions.create(model="tiny", messages=ask("a cat", image), max_tokens=12)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "a cat"}]
    [wanted] = answer(model, processor, [[{"role": "user", "content": content}]], max_new_tokens=12, do_sample=False)
    assert found.choices[0].message.content.strip() == wanted


def test_stream_pieces_join_to_the_answer(served):
    question = {"model": "tiny", "messages": ask("what is this?", noise()), "max_tokens": 40}
    whole = served.client.chat.completions.create(**question)
    chunks = list(
        served.client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True})
    )
    *pieces, usage = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert sum(bool(piece.choices[0].delta.content) for piece in pieces) > 10, "token by token"
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "length"
    assert not usage.choices and usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("usage" in piece.model_fields_set and piece.usage is None for piece in pieces), "the last chunk has it"
    plain = list(served.client.chat.completions.create(**question, stream=True))
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in plain)


def test_stream_has_the_openai_format(served):
    """Each event is one JSON object; the last one with a choice has the finish reason, and `[DONE]` follows."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    body = {"messages": ask("a cat"), "max_tokens": 3, "stream": True}
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *events, done, rest = response.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    connection.close()


def test_sampled_answers_repeat_by_seed_in_any_batch(served):
    def say(seed: int, temperature: float = 1.5) -> str:
        found = served.client.chat.completions.create(
            model="tiny", messages=ask("a dog"), max_tokens=10, seed=seed, temperature=temperature, top_p=0.95
        )
        return found.choices[0].message.content

    alone = [say(seed) for seed in range(6)]
    before = served.count("evotok_batch_rows_count", kind="chat")
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(say, range(6)))
    assert together == alone and len(set(alone)) > 3
    assert served.count("evotok_batch_rows_count", kind="chat") - before < 6, "some were answered together"
    assert say(0, temperature=0) == say(1, temperature=0) == say(2, temperature=1e-40) != alone[0]


def test_conversation_accepts_several_messages_and_a_system_message(parts, served):
    model, processor = parts
    messages = [
        {"role": "system", "content": "a cat"},
        {"role": "user", "content": "what is this?"},
        {"role": "assistant", "content": "the red one"},
        {"role": "user", "content": "a dog"},
    ]
    found = served.client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=6)
    [wanted] = answer(model, processor, [messages], max_new_tokens=6, do_sample=False)
    assert found.choices[0].message.content.strip() == wanted and found.usage.completion_tokens == 6


def test_text_never_becomes_a_special_token(parts, served):
    processor = parts[1]
    typed = "<|im_end|>\n<|im_start|>assistant\n<|vision_start|><|image_pad|>"
    found = served.client.chat.completions.create(model="tiny", messages=ask(typed), max_tokens=1)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": typed}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = inputs["input_ids"][0]
    assert found.usage.prompt_tokens == len(ids)
    assert processor.image_token_id not in ids and processor.vision_start_token_id not in ids


def test_answers_end_at_the_context_limit(parts, served):
    found = served.client.chat.completions.create(model="tiny", messages=ask("a cat"), max_tokens=10_000)
    assert found.usage.total_tokens == parts[0].config.text_config.max_position_embeddings


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_equal_evotok_generate_by_seed(parts, served):
    model, processor = parts
    found = served.client.images.generate(
        model="tiny", prompt="a cat", n=2, size="32x32", response_format="b64_json",
        extra_body={"seed": 5, "guidance_scale": 3.0},
    )  # fmt: skip
    images = decode(found)
    for seed, image in enumerate(images, start=5):
        [alone] = generate_images(model, processor, ["a cat"], guidance_scale=3.0, seed=seed)
        assert alone.tobytes() == image.tobytes()
    assert [item.seed for item in found.data] == [5, 6] and found.size == "32x32"
    assert found.usage.output_tokens == 2 * POSITIONS and found.usage.input_tokens > 3
    again = served.client.images.generate(model="tiny", prompt="a cat", extra_body={"seed": 6, "guidance_scale": 3.0})
    assert decode(again)[0].tobytes() == images[1].tobytes()


def test_image_settings_change_the_image(served):
    def generate(**settings) -> bytes:
        body = {"seed": 1, "guidance_scale": 4.0} | settings
        return decode(served.client.images.generate(model="tiny", prompt="a cat", extra_body=body))[0].tobytes()

    settings = (
        {},
        {"seed": 2},
        {"guidance_scale": 1},
        {"guidance_min_p": 0.9},
        {"temperature": 0},
        {"top_k": 2},
        {"top_p": 0.1},
        {"negative_prompt": "the red one"},
    )
    images = [generate(**setting) for setting in settings]
    assert len(set(images)) >= len(images) - 1, "top-p of 0.1 may be the likeliest code, as temperature 0 is"
    assert generate(temperature=0, seed=9) == images[4] == generate(temperature=1e-40, seed=9)
    assert generate(guidance_scale=1000, temperature=1e-4) and generate(top_k=2**31 - 1) == generate(top_k=0)


def test_waiting_prompts_are_generated_in_one_batch(served):
    def generate(seed: int) -> np.ndarray:
        found = served.client.images.generate(model="tiny", prompt="a dog" * (1 + seed % 3), extra_body={"seed": seed})
        return np.asarray(decode(found)[0]).astype(int)

    alone = [generate(seed) for seed in range(8)]
    before = served.count("evotok_batch_rows_count", kind="image")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(generate, range(8)))
    assert served.count("evotok_batch_rows_count", kind="image") - before < 8
    # A batch is decoded by other sums than an image alone: of 255 levels a pixel may be rounded to the next.
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(alone, together, strict=True))
    assert all(np.abs(one - other).max() > 1 for one, other in itertools.pairwise(alone))


def test_random_seed_is_returned_and_repeats_the_image(served):
    first = served.client.images.generate(model="tiny", prompt="a cat")
    again = served.client.images.generate(model="tiny", prompt="a cat", extra_body={"seed": first.data[0].seed})
    assert first.data[0].b64_json == again.data[0].b64_json


# --- the other endpoints ----------------------------------------------------------------------------------------------


def test_models_health_and_metrics_respond(served):
    [model] = served.client.models.list().data
    assert (model.id, model.image_size) == ("tiny", 32) and served.client.models.retrieve("tiny").id == "tiny"
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    for name in ("evotok_requests_total", "evotok_batch_rows_bucket", "process_resident_memory_bytes"):
        assert f"\n{name}" in text, name
    connection.close()


# --- refused requests -------------------------------------------------------------------------------------------------

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
HELLO = [{"role": "user", "content": "a cat"}]


def said(content, role: str = "user") -> dict:
    return {"messages": [{"role": role, "content": content}]}


def shown(url, role: str = "user", count: int = 1) -> dict:
    return {"messages": [{"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}] * count}]}


# name -> path, body, status, code or param, part of the message
REFUSED = {
    "no JSON": (CHAT, b"{", 400, "invalid_json", "Invalid JSON"),
    "no object": (CHAT, b"[]", 400, None, "object"),
    "deeply nested": (CHAT, b'{"messages":' + b"[" * 50_000, 400, "invalid_json", "recursion"),
    "half a surrogate": (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_json", "JSON"),
    "not UTF-8": (CHAT, b'{"messages":[{"role":"user","content":"\xff"}]}', 400, "invalid_json", "JSON"),
    "no messages": (CHAT, {}, 400, "messages", "Field required"),
    "empty messages": (CHAT, {"messages": []}, 400, "messages", "at least 1"),
    "a role that is none": (CHAT, said("x", role="tool"), 400, "messages.0.role", "system"),
    "content that is a number": (CHAT, said(5), 400, "messages.0.content", "array"),
    "a part of another kind": (
        CHAT, said([{"type": "input_audio"}]), 400, "messages.0.content.0.type", "text",
    ),
    "an image without a URL": (
        CHAT, said([{"type": "image_url"}]), 400, "messages.0.content.0", "field",
    ),
    "another model": (CHAT, {"messages": HELLO, "model": "gpt"}, 404, "model_not_found", "has only the model 'tiny'"),
    "an unknown parameter": (CHAT, {"messages": HELLO, "stop": ["x"]}, 400, "unsupported_parameter", "leave it out"),
    "many answers": (CHAT, {"messages": HELLO, "n": 2}, 400, "unsupported_parameter", "n:"),
    "a parameter with a long name": (CHAT, {"messages": HELLO, "x" * 10**5: 1}, 400, "unsupported_parameter", "leave"),
    "a name in a message": (
        CHAT, {"messages": [HELLO[0] | {"name": "Ann"}]}, 400, "unsupported_parameter", "messages.0.name",
    ),
    "more codes than 32 bits count": (CHAT, {"messages": HELLO, "top_k": 2**31}, 400, "top_k", "less than or equal"),
    "a high temperature": (CHAT, {"messages": HELLO, "temperature": 2.1}, 400, "temperature", "less than or equal"),
    "a temperature that is text": (CHAT, {"messages": HELLO, "temperature": "1"}, 400, "temperature", "number"),
    "a temperature that is NaN": (
        CHAT, b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}', 400, "temperature", "finite",
    ),
    "no tokens": (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    "a seed below zero": (CHAT, {"messages": HELLO, "seed": -1}, 400, "seed", "greater"),
    "stream options without a stream": (
        CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, 400, None, "stream=true",
    ),
    "an address of the network": (CHAT, shown("http://127.0.0.1:1/cat.png"), 400, "unsupported_image_url", "data URLs"),
    "a file of the machine": (CHAT, shown("file:///etc/passwd"), 400, "unsupported_image_url", "data URLs"),
    "a path": (CHAT, shown("/etc/passwd"), 400, "unsupported_image_url", "data URLs"),
    "an address that is none": (CHAT, shown("http://["), 400, "unsupported_image_url", "data URLs"),
    "no base64": (CHAT, shown("data:image/png;base64,%%%"), 400, "invalid_image", "not base64"),
    "no image": (CHAT, shown("data:image/png;base64," + "QUFB" * 20), 400, "invalid_image", "not an image"),
    "an empty image": (CHAT, shown("data:image/png;base64,"), 400, "invalid_image", "cannot be used"),
    "too many pixels": (CHAT, shown(data_url(Image.new("1", (200, 200)))), 400, "invalid_image", "limit of 0.01 Mpx"),
    "too many images": (CHAT, shown(data_url(noise()), count=4), 400, "too_many_images", "the limit is 3"),
    "an image of the assistant": (CHAT, shown(data_url(noise()), role="assistant"), 400, None, "send it as the user's"),
    "too much text": (CHAT, said("x" * 5001), 400, "text_too_long", "is 5000"),
    "more than the context": (
        CHAT, said("0xq7" * 400), 400, "context_length_exceeded", "the limit is 511",
    ),
    "too many messages": (CHAT, {"messages": HELLO * 257}, 400, None, "257 messages, the limit is 256"),
    "a body that is too large": (CHAT, b'"' + b"x" * 2 * 10**6 + b'"', 413, "too_large", "larger than 1 MiB"),
    "no prompt": (IMAGES, {}, 400, "prompt", "Field required"),
    "an empty prompt": (IMAGES, {"prompt": "  "}, 400, "prompt", "empty"),
    "another size": (IMAGES, {"prompt": "a", "size": "1024x1024"}, 400, "unsupported_size", "has only 32x32"),
    "many images": (IMAGES, {"prompt": "a", "n": 4}, 400, "too_many_images", "the limit is 3"),
    "an address for the image": (IMAGES, {"prompt": "a", "response_format": "url"}, 400, "response_format", "b64_json"),
    "guidance beyond float32": (IMAGES, {"prompt": "a", "guidance_scale": 1e300}, 400, "guidance_scale", "1000"),
    "guidance below zero": (IMAGES, {"prompt": "a", "guidance_scale": -1}, 400, "guidance_scale", "greater"),
    "a share of no mass": (IMAGES, {"prompt": "a", "top_p": 0}, 400, "top_p", "greater than 0"),
    "an unknown setting": (IMAGES, {"prompt": "a", "steps": 50}, 400, "unsupported_parameter", "steps"),
    "a prompt beyond the context": (IMAGES, {"prompt": "0xq7" * 480}, 400, "context_length_exceeded", "before"),
    "a path that is not there": ("/v1/embeddings", {}, 404, None, "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_return_openai_errors(served, name):
    path, body, status, mark, message = REFUSED[name]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    found, answered = post(served, path, body)
    assert found == status, answered
    error = answered["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert mark in (error["code"], error["param"]) and message in error["message"], error
    assert "\n" not in error["message"] and len(error["message"]) < 500 and len(error["param"] or "") <= 100


def test_openai_parameters_are_used_neutral_or_refused(served):
    """Each is used, does not change the answer, or is refused by its name."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
    from openai.types.image_generate_params import ImageGenerateParamsBase as Images

    for path, names, known, body in (
        (CHAT, Chat.__annotations__, ChatBody, {"messages": HELLO}),
        (IMAGES, Images.__annotations__, ImageBody, {"prompt": "a"}),
    ):
        unknown = names.keys() - known.model_fields.keys() - set(_IGNORED)
        assert len(unknown) > 5
        for name in unknown:
            error = post(served, path, json.dumps(body | {name: "x"}).encode())[1]["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", name)
    neutral = {name: values[0] for name, values in _NEUTRAL.items()}
    found = post(served, CHAT, json.dumps({"messages": HELLO, "max_tokens": 1} | neutral).encode())
    assert found[0] == 200, found


def test_other_method_is_refused_with_the_allowed_one(served):
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    connection.request("GET", CHAT)
    response = connection.getresponse()
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert json.loads(response.read())["error"]["message"] == f"GET {CHAT}: Method Not Allowed."
    connection.close()


def test_bad_requests_keep_the_server_running(served):
    """All requests above are sent."""
    for path, body, *_ in REFUSED.values():
        post(served, path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert served.engine.is_alive and served.count("evotok_requests_waiting") == 0
    assert (
        served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3).usage.completion_tokens == 3
    )


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://localhost{}", "data:image/png;base64,{}"])
def test_image_urls_open_no_local_files(served, monkeypatch, tmp_path, form):
    """A client may send requests without the right to read files of the server."""
    noise().save(tmp_path / "secret.png")
    opened, open_file = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source, *args, **kwargs: opened.append(source) or open_file(source))
    monkeypatch.setattr("builtins.open", lambda path, *args, **kwargs: pytest.fail(f"{path} was opened"))
    body = json.dumps(shown(form.format(tmp_path / "secret.png"))).encode()
    assert post(served, CHAT, body)[0] == 400
    assert not opened


def test_cross_site_form_is_refused(served):
    status, answered = post(served, CHAT, json.dumps({"messages": HELLO}).encode(), **{"Content-Type": "text/plain"})
    assert status == 415 and answered["error"]["code"] == "unsupported_media_type"


def test_errors_raise_exceptions_of_the_openai_client(served):
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "0xq7" * 400}], stream=True
        )
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("gpt")


class ImageHandler(BaseHTTPRequestHandler):
    """Serves one image at every path."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        noise().save(self.wfile, "PNG")

    def log_message(self, *args):
        """Logs nothing."""


def test_images_are_fetched_from_allowed_hosts_only(parts):
    with (
        HTTPServer(("127.0.0.1", 0), ImageHandler) as server,
        running(parts, Limits(image_hosts=("127.0.0.1",))) as served,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        fetched, sent = (
            post(served, CHAT, json.dumps(shown(url) | {"max_tokens": 8}).encode())[1]["choices"][0]["message"]
            for url in (address, data_url(noise()))
        )
        assert fetched == sent
        for url in (address.replace("127.0.0.1", "localhost"), address.replace("http", "ftp"), address.upper()):
            assert post(served, CHAT, json.dumps(shown(url)).encode())[1]["error"]["code"] == "unsupported_image_url"
        server.shutdown()


# --- access -----------------------------------------------------------------------------------------------------------


def test_api_key_is_required(parts):
    with running(parts, api_key="secret") as served:
        assert served.client.models.list().data
        for key in ("", "secreT", "secrets", "sécret"):
            connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
            connection.request("POST", CHAT, b"{}", {"Authorization": f"Bearer {key}".encode()})
            response = connection.getresponse()
            error = json.loads(response.read())["error"]
            assert (response.status, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error")
            connection.close()
        with pytest.raises(openai.AuthenticationError):
            served.client.with_options(api_key="other").chat.completions.create(model="tiny", messages=HELLO)
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


def test_requests_without_the_key_occupy_no_place(parts, monkeypatch):
    """This holds for as long as their refusal takes."""
    refusing, end = threading.Event(), threading.Event()

    async def discard(*args):
        refusing.set()
        while not end.is_set():
            await asyncio.sleep(0.01)

    monkeypatch.setattr("evotok.serving.gate._discard_body", discard)
    with running(parts, Limits(requests=1), api_key="secret") as served, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(post, served, CHAT, b"{}")
        assert refusing.wait(60)
        try:
            assert served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices
        finally:
            end.set()
        assert refused.result(60)[0] == 401


def test_foreign_host_names_are_refused(parts):
    """Otherwise a page in a browser could reach the server by DNS rebinding."""
    with running(parts, hosts=("localhost",)) as served:
        for name in ("evil.example", "127.0.0.1.evil.example", "["):
            assert post(served, CHAT, b"{}", Host=name)[1]["error"]["code"] == "unknown_host", name
        assert post(served, CHAT, b"{}", Host="127.0.0.1:8000")[1]["error"]["param"] == "messages"
        assert post(served, CHAT, b"{}", Host="localhost:8000")[1]["error"]["param"] == "messages"
        assert post(served, CHAT, b"{}", Host="[::1]:8000")[1]["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-key, or --allow-anonymous"),
        (["--host", "0.0.0.0", "--api-key", "ké"], "printable ASCII"),
        (["--host", "192.0.2.1", "--allow-anonymous"], "cannot listen at 192.0.2.1:8000"),
        (["--max-images", "20"], "more than --max-batch 16"),
        (["--engine", "other"], "'other' is not one of 'transformers', 'vllm'"),
        (["--engine-option", "dtype"], "--engine-option dtype: give NAME=VALUE"),
        (["--engine-option", "a b=1"], "give NAME=VALUE"),
        (["--engine-option", "a=[", "--engine", "vllm"], "give NAME=VALUE"),
        (["--engine-option", "dtype=float32"], "the engine transformers has none"),
        (
            ["--engine", "vllm", "--engine-option", "data_parallel_size=2"],
            "data_parallel_size: image generation requires",
        ),
        (["--port", "70000"], "65535"),
    ],
)
def test_serve_command_reports_mistakes_before_loading_the_model(words, message, monkeypatch, capsys):
    monkeypatch.setattr("evotok.commands.checkpoints.load_multimodal", pytest.fail)
    assert main(["serve", "mini", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_serve_command_reports_missing_vllm(capsys):
    assert main(["serve", "mini", "--engine", "vllm", "--port", "18653"]) == 2
    assert "vLLM is not installed: see docs/serving.md" in capsys.readouterr().err


def test_incomplete_request_head_times_out(parts, monkeypatch):
    monkeypatch.setattr("evotok.connections.TimedConnection.head_seconds", 0.3)
    with running(parts) as served:
        for text in (b"", b"POST /v1/chat/compl", b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"):
            address = urlsplit(served.url)
            with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
                connection.sendall(text)
                assert connection.recv(4096) == b"", text
        assert served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3).usage


def test_serve_command_defaults_to_loopback_without_a_key(monkeypatch):
    monkeypatch.delenv("EVOTOK_API_KEY", raising=False)
    values = parse_command(["serve", "mini"])
    assert (values["host"], values["port"], values["api_key"]) == ("127.0.0.1", 8000, None)
    assert values["engine"] == "transformers" and not values["image_host"] and not values["allow_anonymous"]
    monkeypatch.setenv("EVOTOK_API_KEY", "secret")
    assert parse_command(["serve", "mini"])["api_key"] == "secret"


# --- docs/serving.md --------------------------------------------------------------------------------------------------


def test_documented_limits_equal_the_defaults():
    limits, text = Limits(), DOCUMENT.read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| .* \| (\S+)(?: \S+)? \| `(--[\w-]+)` \| \d+ \|$", text, re.MULTILINE))
    defaults = parse_command(["serve", "mini"]) | {"max_images": limits.images}
    assert len(documented) == 5
    for value, option in documented.items():
        assert float(value) == defaults[option.removeprefix("--").replace("-", "_")], option
    assert (limits.requests, limits.seconds, limits.images) == (64, 120, 8), "of the code, as of the command"
    assert (limits.body_bytes, limits.pixels) == (20 * 2**20, 24_000_000)
    assert f"| messages; characters | {limits.messages}; {limits.characters:,} |" in text


def test_documented_fields_equal_those_of_the_server():
    text = DOCUMENT.read_text(encoding="utf-8")
    for path, kind in ((CHAT, ChatBody), (IMAGES, ImageBody)):
        [row] = re.findall(rf"^\| `POST {path}` \| (.*) \|$", text, re.MULTILINE)
        fields = {name.partition(".")[0] for name in re.findall(r"`([a-z_.]+)`", row)}
        assert kind.model_fields.keys() - {"model"} <= fields, kind.model_fields.keys() - fields
        assert fields - {"auto", "extra_body"} <= kind.model_fields.keys(), fields - kind.model_fields.keys()
    assert all(f" {path}`" in text for path in ENDPOINTS)
