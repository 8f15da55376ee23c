"""What the three tabs do for a visitor, as the page's own browser code talks to them over HTTP; `test_app_browser.py`
looks at the same in a browser."""

import json
import threading
from itertools import takewhile

import pytest
from conftest import build_chat_model
from PIL import Image
from strangers.images import BOMBS, LIES, cut_cases, saved
from strangers.page import ORDER, Visitor, check_harmless


pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("httpx")

from evotok.app.draw import Drawing
from evotok.app.examples import EMOJI_PROMPTS, EMOJI_QUESTIONS
from evotok.app.server import serve
from evotok.commands.app import listen


PLAIN = saved(Image.new("RGB", (64, 64), "white"))
DRAW = list((ORDER | {"prompt": EMOJI_PROMPTS[0]}).values())


def quick_draw(model, processor, order, seconds=0.0):
    """Stands in for the generation of images."""
    yield Drawing([Image.new("RGB", (64, 64), "red")], 64, 64, 0.1, 1)


@pytest.fixture(scope="module")
def visitor():
    """Of a page over a tiny random model of the world's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evotok.app.page.draw", quick_draw)
        patch.setattr("gradio.image_utils.preprocess_image", pytest.fail)  # Gradio opens no file
        with serve(*build_chat_model(64), listen("127.0.0.1", None)) as served:
            visitor = Visitor(served.url)
            yield visitor
            visitor.client.close()


@pytest.fixture
def says(monkeypatch):
    """Function: what the model answers from now on."""
    return lambda *pieces: monkeypatch.setattr("evotok.app.chat.steps", lambda *_: iter(pieces))


def component(visitor, name):
    [found] = [c for c in visitor.config["components"] if c["props"].get("elem_id") == name]
    return found


def shown(messages):
    """The transcript at the end, as (role, text or file) of each part."""
    last = messages[-1]
    assert last["success"], last
    return [(part["role"], read(part["content"])) for part in last["output"]["data"][1]]


def read(content):
    """The text of a part, or `image`."""
    content = content[0] if isinstance(content, list) else content
    if isinstance(content, dict):
        return content.get("text", "image")
    return content


def ask(visitor, session, text, *files):
    return visitor.ask("question", [{"text": text, "files": list(files)}, None], "submit", session)


def lines(messages):
    return [message["log"] for message in messages if message["msg"] == "log"]


# --- Chat -------------------------------------------------------------------------------------------------------------


def test_a_question_is_shown_before_the_first_token(visitor, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("evotok.app.chat.steps", lambda *_: (released.wait(60), iter(["a", " cat"]))[1])
    file = visitor.upload("a.png", PLAIN)
    box = {"text": EMOJI_QUESTIONS[0], "files": [file]}
    assert visitor.join("question", [box, None], "submit", "early").status_code == 200
    with visitor.messages("early") as messages:
        first = next(message for message in messages if message["msg"] == "process_generating")
        emptied, transcript, _ = first["output"]["data"]
        assert not released.is_set() and emptied["value"]["text"] == "" and EMOJI_QUESTIONS[0] in json.dumps(transcript)
        released.set()
        last = [message for message in messages if message["msg"] == "process_completed"]
    assert shown(last) == [("user", "image"), ("user", EMOJI_QUESTIONS[0]), ("assistant", "a cat")]


def test_a_message_is_answered_again_or_changed(visitor, says):
    says("a", " cat")
    ask(visitor, "again", EMOJI_QUESTIONS[0], visitor.upload("a.png", PLAIN))
    says("a", " dog")
    retried = visitor.ask("transcript", [None], "retry", "again", {"index": 2, "value": "a cat"})
    assert shown(retried) == [("user", "image"), ("user", EMOJI_QUESTIONS[0]), ("assistant", "a dog")]
    says("white")
    change = {"index": 1, "previous_value": EMOJI_QUESTIONS[0], "value": EMOJI_QUESTIONS[1]}
    changed = visitor.ask("transcript", [None], "edit", "again", change)
    assert shown(changed) == [("user", "image"), ("user", EMOJI_QUESTIONS[1]), ("assistant", "white")]
    gone = visitor.ask("transcript", [None], "retry", "again", {"index": 9, "value": "a cat"})
    assert lines(gone) == ["This message is not part of the conversation any more: ask again."]
    transcript = component(visitor, "transcript")["props"]
    assert transcript["buttons"] == ["copy"] and transcript["editable"] == "user"


def test_answers_are_plain_text(visitor, says):
    """Markdown stays as it is, since it is not rendered (`test_gate.py`); what would be HTML is escaped."""
    says("![x](https://evil.example/x.png) <form action='https://evil.example'>")
    said = shown(ask(visitor, "plain", EMOJI_QUESTIONS[0], visitor.upload("a.png", PLAIN)))
    assert said[-1][1] == "![x](https://evil.example/x.png) &lt;form action='https://evil.example'&gt;"


def test_an_image_is_drawn_in_the_chat_and_goes_with_the_next_question(visitor, says):
    drawn = ask(visitor, "painter", f"/draw {EMOJI_PROMPTS[0]}")
    assert shown(drawn) == [("user", "image")] and not lines(drawn)
    says("a heart")
    asked = shown(ask(visitor, "painter", EMOJI_QUESTIONS[0]))
    assert asked == [("user", "image"), ("user", EMOJI_QUESTIONS[0]), ("assistant", "a heart")]
    assert "Image of the conversation" in json.dumps(drawn), "images have a name for those who do not see them"


@pytest.mark.parametrize(
    ("question", "with_image", "said"),
    [
        ("Who painted the Mona Lisa?", True, "has not learned “who”"),
        (EMOJI_QUESTIONS[0], False, "about images only"),
    ],
)
def test_what_the_model_cannot_know_gets_a_sentence_of_the_page(visitor, monkeypatch, question, with_image, said):
    monkeypatch.setattr("evotok.app.chat.steps", pytest.fail)
    files = [visitor.upload("a.png", PLAIN)] if with_image else []
    assert said in shown(ask(visitor, f"scope{with_image}", question, *files))[-1][1]


@pytest.mark.parametrize("name", ["chat", "draw", "inside"])
def test_each_tab_says_what_the_model_knows(visitor, name):
    assert component(visitor, f"{name}-scope")["props"]["value"].count("\n") == 0
    assert len(component(visitor, f"{name}-examples")["props"]["samples"]) >= 4


# --- Draw -------------------------------------------------------------------------------------------------------------


def test_more_leaves_the_seed_empty_and_enter_draws(visitor):
    seed, prompt = component(visitor, "seed"), component(visitor, "prompt")
    assert (seed["type"], seed["props"].get("value")) == ("textbox", None), (
        "a number that is empty becomes 0 when shown"
    )
    assert prompt["props"]["lines"] == 1 and visitor.handler("prompt", "submit") == visitor.handler("draw-go")
    order = dict(zip(ORDER, DRAW, strict=True)) | {"seed": ""}
    assert visitor.ask("prompt", list(order.values()), "submit", "enter")[-1]["success"]


def test_nothing_can_be_asked_about_nothing(visitor):
    for name in ("ask", "look"):
        assert component(visitor, name)["props"]["interactive"] is False
        data = [None, None, None] if name == "ask" else [None, None]
        assert lines(visitor.ask(name, data, session="nothing")) == ["Draw something first."]
    drawn = visitor.ask("draw-go", DRAW, session="something")[-1]["output"]["data"]
    assert [button["interactive"] for button in drawn[-2:]] == [True, True]
    assert drawn[0][0]["caption"] == f"{EMOJI_PROMPTS[0]}, image 1", "what a gallery reads out"
    asked = visitor.ask("ask", [None, None, None], session="something")[-1]["output"]["data"]
    assert [part["role"] for part in asked[2]] == ["user"] and read(asked[2][0]["content"]) == "image"


def test_words_that_an_image_cannot_show_are_named(visitor):
    order = dict(zip(ORDER, DRAW, strict=True)) | {"prompt": "the Eiffel tower at night"}
    [said] = lines(visitor.ask("draw-go", list(order.values()), session="tourist"))
    assert "has not learned “eiffel”" in said


# --- Look inside ------------------------------------------------------------------------------------------------------


def test_a_bad_image_after_an_example_leaves_nothing_of_the_one_before(visitor):
    [example] = component(visitor, "inside-examples")["props"]["samples"][0]
    seen = visitor.ask("source", [example, 2], "change", "looker")[-1]["output"]["data"]
    assert "PSNR" in json.dumps(seen)
    bad = visitor.ask("source", [visitor.upload("bad.png", b"<html>"), 2], "change", "looker")
    assert lines(bad)[0].startswith("bad.png: not an image")
    _, decoded, figure, _, maps, field = bad[-1]["output"]["data"]
    assert (decoded, figure, maps, field) == (None, "", [], None) and "PSNR" not in json.dumps(bad)


def test_codes_are_swapped_between_examples_but_not_with_a_bad_image(visitor):
    samples = component(visitor, "other-examples")["props"]["samples"]
    visitor.ask("source", [samples[0][0], 2], "change", "swapper")
    visitor.ask("other", [samples[1][0]], "change", "swapper")
    pictures, said = visitor.ask("levels", [None, None, [1]], "change", "swapper")[-1]["output"]["data"]
    assert len(pictures) == 2 and said.startswith("Meaning of the first image now")
    bad = visitor.ask("other", [visitor.upload("bad.png", PLAIN[:40])], "change", "swapper")
    assert lines(bad)[0].startswith("bad.png: ") and bad[-1]["output"]["data"][1] is None
    assert visitor.ask("levels", [None, None, [1]], "change", "swapper")[-1]["output"]["data"] == [[], ""]


# --- images at every door ---------------------------------------------------------------------------------------------


class Files(dict):
    """Stands in for the place of a case of the catalogue; keeps what is written there."""

    def write(self, name, content):
        self[name] = content


def bad_files():
    """Files of the catalogue: of every format one that is cut in its middle, bombs, and what is no image."""
    half = [case for case in cut_cases() if case.given.endswith("in the middle")]
    for case in (*half, *BOMBS, *takewhile(lambda case: case.given != "folder", LIES)):
        files = Files()
        case.make(files)
        yield from files.items()


DOORS = {
    "question": ("submit", lambda file: [{"text": EMOJI_QUESTIONS[0], "files": [file]}, None]),
    "source": ("change", lambda file: [file, 2]),
    "other": ("change", lambda file: [file]),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_bad_image_gets_one_line_at_every_door(visitor, door):
    event, form = DOORS[door]
    files = list(bad_files())
    assert len(files) > 30
    for name, content in files:
        messages = visitor.ask(door, form(visitor.upload(name, content)), event, f"bad-{door}")
        check_harmless(json.dumps(messages))
        [said] = lines(messages)
        assert messages[-1]["success"] and said.startswith(f"{name}: ") and "\n" not in said
