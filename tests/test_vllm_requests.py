"""Requests to vLLM and their ends, with a stand-in for its engine; in the environment of `make test-vllm`."""

import asyncio
from types import SimpleNamespace

import pytest
from conftest import build_chat_model


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vllm.exceptions import VLLMValidationError
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.request import RequestStatus

from evotok.modeling_evotok.sampling_evotok import read_settings
from evotok.serving.engine import ChatRequest, EngineError, ImageRequest, RequestError
from evotok.serving.metrics import Metrics
from evotok.vllm.engine import VllmEngine
from evotok.vllm.generation import KEY, SETTINGS, Row
from evotok.vllm.scheduler import EvoTokScheduler


HELLO = ChatRequest([{"role": "user", "content": [{"type": "text", "text": "a cat"}]}], 4, stream=True)


def output(text: str, finish_reason: str | None = None):
    answer = SimpleNamespace(text=text, token_ids=[1], finish_reason=finish_reason)
    return SimpleNamespace(outputs=[answer], finished=finish_reason is not None, prompt_token_ids=[1, 2])


class Engine:
    """Engine that yields the outputs of a script, raises its errors, and waits forever at None."""

    errored = False

    def __init__(self, *script):
        self.script, self.begun, self.aborted = script, [], []

    async def generate(self, prompt, params, name):
        self.begun.append(name)
        for item in self.script:
            if item is None:
                await asyncio.Event().wait()
            if isinstance(item, Exception):
                raise item
            yield item

    async def abort(self, name):
        self.aborted.append(name)

    def shutdown(self):
        """Does nothing."""


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture
def build(parts):
    """Yields a function that builds the server's engine over outputs of vLLM."""
    built = []

    def build(*script):
        model, processor = parts
        engine = VllmEngine(Engine(*script), model.config, processor, model.generation_config, 4, Metrics())
        built.append(engine)
        return engine

    yield build
    for engine in built:
        engine.close()


def chat(engine, most: int = 10) -> list:
    """Returns the pieces of an answer, of which at most `most` are read."""

    async def read():
        pieces, found = engine.chat(HELLO), []
        async for piece in pieces:
            found.append(piece)
            if len(found) == most:
                break
        await pieces.aclose()
        return found

    return asyncio.run(read())


def test_finished_answer_is_not_aborted(build):
    engine = build(output("a"), output("b", "stop"))
    assert [(piece.text, piece.completion_tokens) for piece in chat(engine)] == [("a", 1), ("b", 2)]
    assert engine._engine.aborted == [] and engine._open == 0


def test_abandoned_answer_is_aborted(build):
    engine = build(output("a"), output("b"), output("c", "stop"))
    assert len(chat(engine, most=1)) == 1
    assert engine._engine.aborted == engine._engine.begun and engine._open == 0


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_answer_ended_by_vllm_raises_an_error(build, reason):
    with pytest.raises(EngineError, match="ended this answer early"):
        chat(build(output("a"), output("", reason)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (VLLMValidationError("At most 64 image(s)"), RequestError),
        (EngineDeadError(), EngineError),
        (EngineGenerateError(), EngineError),
    ],
)
def test_vllm_errors_are_mapped_to_request_and_engine_errors(build, error, kind):
    with pytest.raises(kind):
        chat(build(error))


def test_rows_of_an_image_are_aborted_together(build):
    engine, counted = build(None), []

    async def leave():
        task = asyncio.ensure_future(engine.generate_images(ImageRequest("a cat", "", (1,))))
        while len(engine._engine.begun) < 2:
            await asyncio.sleep(0.01)
        counted.append(engine._metrics.registry.get_sample_value("evotok_requests_running"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert sorted(engine._engine.aborted) == sorted(engine._engine.begun)
    assert (counted, engine._open) == ([1], 0), "an image counts once, with any number of rows"


# --- the scheduler ----------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler(monkeypatch):
    """Returns the scheduler over a dict in place of vLLM's queue."""
    found = EvoTokScheduler.__new__(EvoTokScheduler)
    found._halves, found.requests = {}, {}
    monkeypatch.setattr(Scheduler, "add_request", lambda _, added: found.requests.update({added.request_id: added}))
    monkeypatch.setattr(Scheduler, "finish_requests", lambda _, ids, status: sorted(ids))
    return found


def request(parts, name: str, image: str | None, is_conditional: bool = True, scale: float = 7.5):
    extra = None
    if image is not None:
        settings = read_settings(parts[0].generation_config, None, {"guidance_scale": scale})
        extra = {KEY: Row(image, is_conditional, 1, tuple(settings[one] for one in SETTINGS)).to_dict()}
    return SimpleNamespace(request_id=name, sampling_params=SimpleNamespace(extra_args=extra))


def test_rows_of_an_image_enter_the_queue_together(parts, scheduler):
    scheduler.add_request(request(parts, "a1", "a"))
    scheduler.add_request(request(parts, "chat", None))
    scheduler.add_request(request(parts, "c", "c", scale=1.0))
    assert list(scheduler.requests) == ["chat", "c"], "half an image would occupy its place forever"
    scheduler.add_request(request(parts, "a2", "a", is_conditional=False))
    assert list(scheduler.requests) == ["chat", "c", "a1", "a2"] and not scheduler._halves


def test_rows_of_an_image_are_ended_together(parts, scheduler):
    for name in ("a", "b"):
        scheduler.add_request(request(parts, f"{name}1", name))
        scheduler.add_request(request(parts, f"{name}2", name, is_conditional=False))
    assert scheduler.finish_requests("a2", RequestStatus.FINISHED_ABORTED) == ["a1", "a2"]
    scheduler.add_request(request(parts, "half", "c"))
    scheduler.finish_requests(["half"], RequestStatus.FINISHED_ABORTED)
    assert not scheduler._halves
