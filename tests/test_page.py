"""The page over HTTP, as its own browser code uses it; `test_page_browser.py` uses it in a browser."""

import io
import json
import threading

import pytest
from conftest import build_chat_model
from page_client import API, ORDER, Visitor, check_harmless
from PIL import Image


pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("httpx")

from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS
from evotok.app.generate import Progress
from evotok.app.server import serve
from evotok.commands.app import listen


QUESTION = WORLD_QUESTIONS[0]
GENERATE = list((ORDER | {"prompt": WORLD_PROMPTS[0]}).values())
EIGHT = list((ORDER | {"images": 8}).values())


@pytest.fixture(scope="module")
def served():
    """Serves a page over a tiny random model of the world's image size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradio.image_utils.preprocess_image", pytest.fail)  # images are opened by `open_upload` only
        with serve(*build_chat_model(64), listen("127.0.0.1", None)) as served:
            yield served


@pytest.fixture(scope="module")
def visitor(served):
    visitor = Visitor(served.url)
    yield visitor
    visitor.client.close()


@pytest.fixture
def quick(monkeypatch):
    """Replaces the generation of images."""

    def generate(model, processor, arguments, seconds=0.0):
        yield Progress([Image.new("RGB", (64, 64), "red")], 64, 64, 0.1, 1)

    monkeypatch.setattr("evotok.app.generate.generate", generate)
    monkeypatch.setattr("evotok.app.chat.generate", generate)


@pytest.fixture
def answers(monkeypatch):
    """Returns a function that sets the answer of the model."""
    return lambda *pieces: monkeypatch.setattr("evotok.app.chat.stream_answer", lambda *_: iter(pieces))


@pytest.fixture
def white(visitor):
    """Returns an uploaded white image."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return visitor.upload("a.png", file.getvalue())


def component(visitor, name):
    [found] = [c for c in visitor.config["components"] if c["props"].get("elem_id") == name]
    return found


def text_of(content):
    """Returns the text of a part, or `image`."""
    content = content[0] if isinstance(content, list) else content
    return content.get("text", "image") if isinstance(content, dict) else content


def transcript(messages):
    """Returns the transcript at the end, as (role, text or `image`) of each part."""
    last = messages[-1]
    assert last["success"], last
    return [(part["role"], text_of(part["content"])) for part in last["output"]["data"][1]]


def ask(visitor, session, text, *files):
    return visitor.ask("question", [{"text": text, "files": list(files)}, None], "submit", session)


def warnings(messages):
    return [message["log"] for message in messages if message["msg"] == "log"]


def can_generate(visitor, session):
    """Returns whether a generation by the model succeeds."""
    last = visitor.ask("generate-start", GENERATE, session=session)[-1]
    return last["success"] and "64 of 64" in str(last["output"])


# --- Chat -------------------------------------------------------------------------------------------------------------


def test_question_appears_before_the_first_token(visitor, white, monkeypatch):
    released = threading.Event()

    def stream_answer(*_):
        released.wait(60)
        yield from ("a", " cat")

    monkeypatch.setattr("evotok.app.chat.stream_answer", stream_answer)
    box = {"text": QUESTION, "files": [white]}
    assert visitor.join("question", [box, None], "submit", "early").status_code == 200
    with visitor.messages("early") as messages:
        first = next(message for message in messages if message["msg"] == "process_generating")
        emptied, shown, _ = first["output"]["data"]
        assert not released.is_set() and emptied["value"]["text"] == "" and QUESTION in json.dumps(shown)
        released.set()
        last = [message for message in messages if message["msg"] == "process_completed"]
    assert transcript(last) == [("user", "image"), ("user", QUESTION), ("assistant", "a cat")]


def test_message_is_retried_or_edited(visitor, white, answers):
    answers("a", " cat")
    ask(visitor, "again", QUESTION, white)
    answers("a", " dog")
    retried = visitor.ask("transcript", [None], "retry", "again", {"index": 2, "value": "a cat"})
    assert transcript(retried) == [("user", "image"), ("user", QUESTION), ("assistant", "a dog")]
    answers("white")
    change = {"index": 1, "previous_value": QUESTION, "value": WORLD_QUESTIONS[1]}
    changed = visitor.ask("transcript", [None], "edit", "again", change)
    assert transcript(changed) == [("user", "image"), ("user", WORLD_QUESTIONS[1]), ("assistant", "white")]
    gone = visitor.ask("transcript", [None], "retry", "again", {"index": 9, "value": "a cat"})
    assert warnings(gone) == ["This message is not part of the conversation any more: ask again."]
    props = component(visitor, "transcript")["props"]
    assert props["buttons"] == ["copy"] and props["editable"] == "user"


def test_answer_is_plain_text(visitor, white, answers):
    answers("![x](https://evil.example/x.png) <form action='https://evil.example'>")
    shown = transcript(ask(visitor, "plain", QUESTION, white))
    assert shown[-1][1] == "![x](https://evil.example/x.png) &lt;form action='https://evil.example'&gt;"
    props = component(visitor, "transcript")["props"]
    assert props["render_markdown"] is False and props["latex_delimiters"] == []


def test_draw_command_generates_an_image_for_the_next_question(visitor, quick, answers):
    generated = ask(visitor, "painter", f"/draw {WORLD_PROMPTS[0]}")
    assert transcript(generated) == [("user", "image")] and not warnings(generated)
    assert "Image of the conversation" in json.dumps(generated), "alternative text"
    answers("a heart")
    assert transcript(ask(visitor, "painter", QUESTION)) == [
        ("user", "image"), ("user", QUESTION), ("assistant", "a heart"),
    ]  # fmt: skip


def test_question_outside_of_the_scope_is_refused(visitor, white, monkeypatch):
    monkeypatch.setattr("evotok.app.chat.stream_answer", pytest.fail)
    shown = transcript(ask(visitor, "scope", "Who painted the Mona Lisa?", white))
    assert "has not learned “who”" in shown[-1][1]


@pytest.mark.parametrize("name", ["chat", "generate", "inside"])
def test_tabs_have_their_scope_and_examples(visitor, name):
    assert component(visitor, f"{name}-scope")["props"]["value"].count("\n") == 0
    assert len(component(visitor, f"{name}-examples")["props"]["samples"]) >= 4


# --- Generate ---------------------------------------------------------------------------------------------------------


def test_prompt_is_submitted_with_an_empty_seed(visitor, quick):
    assert component(visitor, "seed")["props"].get("value") is None
    assert visitor.handler("prompt", "submit") == visitor.handler("generate-start")
    data = list((ORDER | {"seed": ""}).values())
    assert visitor.ask("prompt", data, "submit", "enter")[-1]["success"]


def test_generated_image_goes_to_the_chat(visitor, quick):
    for name, data in (("ask", [None, None, None]), ("look", [None, None])):
        assert component(visitor, name)["props"]["interactive"] is False
        assert warnings(visitor.ask(name, data, session="nothing")) == ["Generate an image first."]
    generated = visitor.ask("generate-start", GENERATE, session="something")[-1]["output"]["data"]
    assert [button["interactive"] for button in generated[-2:]] == [True, True]
    assert generated[0][0]["caption"] == f"{WORLD_PROMPTS[0]}, image 1", "alternative text of the gallery"
    asked = visitor.ask("ask", [None, None, None], session="something")[-1]["output"]["data"]
    assert [part["role"] for part in asked[2]] == ["user"] and text_of(asked[2][0]["content"]) == "image"


def test_prompt_outside_of_the_scope_shows_a_warning(visitor, quick):
    data = list((ORDER | {"prompt": "the Eiffel tower at night"}).values())
    [warning] = warnings(visitor.ask("generate-start", data, session="tourist"))
    assert "has not learned “eiffel”" in warning


# --- Look inside ------------------------------------------------------------------------------------------------------


def test_refused_image_clears_the_results_of_the_image_before(visitor):
    samples = [row[0] for row in component(visitor, "inside-examples")["props"]["samples"]]
    seen = visitor.ask("source", [samples[0], 2], "change", "looker")[-1]["output"]["data"]
    assert "PSNR" in json.dumps(seen)
    visitor.ask("other", [samples[1]], "change", "looker")
    images, text = visitor.ask("levels", [None, None, [1]], "change", "looker")[-1]["output"]["data"]
    assert len(images) == 2 and text.startswith("Cosine of the semantics of the first image now")
    bad = visitor.ask("source", [visitor.upload("bad.png", b"<html>"), 2], "change", "looker")
    assert warnings(bad)[0].startswith("bad.png: not an image")
    _, decoded, figure, _, maps, field = bad[-1]["output"]["data"]
    assert (decoded, figure, maps, field) == (None, "", [], None) and "PSNR" not in json.dumps(bad)
    assert visitor.ask("levels", [None, None, [1]], "change", "looker")[-1]["output"]["data"] == [[], ""]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "event", "data"),
    [
        ("question", "submit", lambda file: [{"text": QUESTION, "files": [file]}, None]),
        ("other", "change", lambda file: [file]),
    ],
)
def test_bad_image_is_reported_in_one_line_in_each_field(visitor, field, event, data):
    messages = visitor.ask(field, data(visitor.upload("bad.png", b"\x89PNG\r\n\x1a\n cut")), event, f"bad-{field}")
    check_harmless(json.dumps(messages))
    [line] = warnings(messages)
    assert messages[-1]["success"] and line.startswith("bad.png: ") and "\n" not in line


def test_upload_stays_in_the_folder_of_uploads(visitor):
    response = visitor.client.post(f"{API}/upload", files={"files": ("../../../../tmp/evil.png", b"no image")})
    check_harmless(response.text)
    [path] = response.json()
    assert ".." not in path and "/uploads/" in path


def test_addresses_are_not_fetched(visitor, monkeypatch):
    monkeypatch.setattr("gradio.routes.secure_url_stream_response", pytest.fail)
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", pytest.fail)
    address = "https://example.org/a.png"
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    responses = [visitor.client.get(f"{API}/file={address}"), visitor.join("source", [file, 2], "change")]
    refused = (403, "Addresses are not fetched: upload the file.")
    assert [(response.status_code, response.text) for response in responses] == [refused] * 2


def test_malformed_gradio_request_is_refused(visitor, capfd):
    [path] = visitor.client.post(f"{API}/upload", files={"files": ("a.png", b"no image")}).json()
    assert visitor.client.get(f"{API}/file={path}").content == b"no image"
    response = visitor.client.get(f"{API}/file={path}", headers={"range": "bytes=0-1-2"})
    assert (response.status_code, response.text) == (422, "The page sends no such request.")
    assert "Traceback" not in capfd.readouterr().err


def test_program_error_is_shown_without_its_traceback(visitor, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("evotok.app.generate.preview_images", fail)
        last = visitor.ask("generate-start", GENERATE, session="unlucky")[-1]
    assert not last["success"]
    check_harmless(str(last))
    assert can_generate(visitor, "unlucky")


def test_disconnected_visitor_ends_the_generation(visitor):
    assert visitor.join("generate-start", EIGHT, session="hasty").status_code == 200
    with visitor.messages("hasty") as messages:
        assert any(message["msg"] == "process_generating" for message in messages)
    assert can_generate(visitor, "patient")
    for thread in threading.enumerate():
        if thread.name == "evotok-generation":
            thread.join(30)
            assert not thread.is_alive()


def test_page_over_a_server_has_no_tabs_of_the_model(tmp_path):
    from evotok.app.page import build_page
    from evotok.serving.client import ServerClient

    client = ServerClient.__new__(ServerClient)
    client.model, client.url, client.image_size = "tiny", "http://127.0.0.1:9", 32
    components = build_page(client, None, tmp_path).get_config_file()["components"]
    tabs = [component["props"]["label"] for component in components if component["type"] == "tabitem"]
    assert tabs == ["Chat", "Generate"]
    assert any("tiny" in str(component["props"].get("value")) for component in components)
