"""The page as strangers' programs meet it over HTTP: what is wrong is refused, and no traceback or file gets out."""

import json

import pytest
from conftest import build_chat_model

from evotok.cli import main


gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
httpx = pytest.importorskip("httpx")

SESSION = "stranger"


@pytest.fixture(scope="module")
def page(app_page):
    with httpx.Client(
        base_url=app_page.local_url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)
    ) as client:
        client.page = app_page
        yield client


def handler(page, element, event="click"):
    """Number of the handler of an event of the element with that id."""
    components = {c["id"]: c["props"].get("elem_id") for c in page.page.config["components"]}
    return next(
        dependency["id"]
        for dependency in page.page.config["dependencies"]
        if any(components.get(target) == element and name == event for target, name in dependency["targets"])
    )


def ask(page, element, data, event="click", session=SESSION):
    """All that the page answers to one event, message by message."""
    body = {"data": data, "fn_index": handler(page, element, event), "session_hash": session}
    joined = page.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    messages = []
    with page.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                messages.append(json.loads(line[5:]))
                if messages[-1]["msg"] in ("process_completed", "close_stream"):
                    break
    return messages


def harmless(text):
    return "Traceback" not in text and "root:" not in text and "site-packages" not in text and 'File "' not in text


def test_the_page_is_there_and_listens_at_loopback_only(page):
    assert page.get("/").status_code == 200
    assert page.page.local_url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"data": 7}', b'{"fn_index": "x", "data": []}', b"[" * 5000]
)
@pytest.mark.parametrize("route", ["queue/join", "run/predict", "api/predict", "call/predict", "cancel", "reset"])
def test_garbage_is_refused(page, route, body):
    try:
        answer = page.post(f"/gradio_api/{route}", content=body, headers={"content-type": "application/json"})
    except httpx.ReadError:  # refused before all of the body was read
        answer = page.get(f"/gradio_api/{route}")
    assert answer.status_code >= 400 and harmless(answer.text)


@pytest.mark.parametrize("index", [-1, 10**6, None])
def test_handlers_that_are_not_there(page, index):
    answer = page.post("/gradio_api/queue/join", json={"data": [], "fn_index": index, "session_hash": SESSION})
    assert answer.status_code >= 400 and harmless(answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=../../../../etc/passwd",
        "file=%2e%2e/%2e%2e/etc/passwd",
        "file=..%2f..%2fetc%2fpasswd",
        "file=file:///etc/passwd",
        "file=http://127.0.0.1:1/",
        "file=setup.py",
        "upload_progress?upload_id=../x",
    ],
)
def test_files_that_are_not_for_visitors(page, path):
    answer = page.get(f"/gradio_api/{path}")
    assert answer.status_code >= 400 and harmless(answer.text)


def test_uploads_over_the_limit_are_refused(page):
    answer = page.post("/gradio_api/upload", files={"files": ("big.png", b"0" * (13 * 2**20))})
    assert answer.status_code == 413 and harmless(answer.text)


def test_uploads_keep_their_place(page, tmp_path):
    answer = page.post("/gradio_api/upload", files={"files": ("../../../../tmp/evil.png", b"no image")})
    if answer.status_code == 200:
        [path] = answer.json()
        assert ".." not in path and "gradio" in path.lower()
    assert harmless(answer.text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({2: 1e9}, "Guidance is 1000000000.0"),
        ({3: 10**6}, "The number of images is"),
        ({4: -5}, "The seed is"),
        ({5: "hot"}, "Temperature is hot"),
        ({0: ""}, "Write what to draw first"),
        ({0: "a" * 5000}, "The prompt has 5000 characters"),
    ],
)
def test_orders_out_of_range_are_refused_in_one_line(page, change, said):
    data = ["a frog", "", 7.5, 1, 1, 1.0]
    for index, value in change.items():
        data[index] = value
    messages = ask(page, "draw-go", data)
    assert harmless(json.dumps(messages))
    warnings = [m["log"] for m in messages if m["msg"] == "log"]
    refused = messages[-1]["msg"] == "process_completed" and not messages[-1]["success"]
    assert refused or (len(warnings) == 1 and warnings[0].startswith(said)), messages


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1:1/a.png", "", None])
def test_images_that_are_paths_of_ours(page, path):
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    messages = ask(page, "source", [image, 4], event="change")
    assert harmless(json.dumps(messages))
    found = [m for m in messages if m["msg"] == "process_completed" and m["success"]]
    assert not found or "webp" not in json.dumps(found[0]["output"])


def test_questions_of_the_wrong_shape(page):
    for box in (
        None,
        7,
        "text",
        {"text": 5},
        {"text": "hi", "files": "x"},
        {"text": "x", "files": [{"path": "/etc/passwd"}]},
    ):
        assert harmless(json.dumps(ask(page, "question", [box, None], event="submit")))


def test_it_serves_on_after_all_that(page):
    messages = ask(page, "draw-go", ["a frog, noto style", "", 7.5, 1, 1, 1.0], session="friend")
    assert messages[-1]["success"], messages[-1]


def test_a_full_queue_says_so(page):
    index = handler(page, "draw-go")
    bodies = [
        {"data": ["a frog", "", 7.5, 8, 1, 1.0], "fn_index": index, "session_hash": f"crowd-{number}"}
        for number in range(20)
    ]
    answers = [page.post("/gradio_api/queue/join", json=body) for body in bodies]
    full = [answer for answer in answers if answer.status_code != 200]
    assert full and all(answer.status_code == 503 and "full" in answer.text for answer in full)
    for body, answer in zip(bodies, answers, strict=True):
        if answer.status_code == 200:
            event = answer.json()["event_id"]
            page.post(
                "/gradio_api/cancel",
                json={"session_hash": body["session_hash"], "fn_index": index, "event_id": event},
            )
    messages = ask(page, "draw-go", ["a frog, noto style", "", 7.5, 1, 1, 1.0], session="after-the-crowd")
    assert messages[-1]["success"], messages[-1]


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(page, monkeypatch, capsys):
    monkeypatch.setattr("evotok.commands.app.load_multimodal", lambda name: build_chat_model())
    assert main(["app", "--port", str(page.page.server_port)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot listen at 127.0.0.1" in line and "--port" in line
