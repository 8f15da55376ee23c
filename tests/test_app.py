"""The logic behind the page, on a tiny random model, without Gradio."""

import contextlib
import itertools
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import POSITIONS, build_chat_model, parse_command
from PIL import Image

from evotok.app.chat import answer
from evotok.app.examples import ANYTHING
from evotok.app.generate import UNWRITTEN, Drawing, Order, draw, preview, read_seed
from evotok.app.inside import inspect, swap
from evotok.app.limits import (
    MAX_CHARACTERS,
    MAX_IMAGES,
    MAX_SIDE,
    STATE_SECONDS,
    TIME_LIMIT,
    WAITING_OF_ADDRESS,
    WAITING_OF_SESSION,
    check_number,
    open_upload,
)
from evotok.app.running import CodeIteratorStreamer, Stop, steps
from evotok.cli import main
from evotok.commands.conversation import Conversation, rewind, without_objections


@pytest.fixture(scope="module")
def parts():
    """Model and processor: 32 px, 4 x 4 positions, 4 levels, 2 of them for pixels."""
    return build_chat_model()


@pytest.fixture
def picture():
    noise = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Image.fromarray(noise.numpy())


def running_threads():
    return [thread for thread in threading.enumerate() if thread.name == "evotok-generation"]


def wait_until_idle():
    for thread in running_threads():
        thread.join(30)
    assert not running_threads()


# --- running ----------------------------------------------------------------------------------------------------------


def test_steps_arrive_in_order_and_the_error_after_them():
    stop = Stop(60)
    streamer = CodeIteratorStreamer(stop)

    def work():
        streamer.put(1)
        streamer.put(2)
        raise ValueError("out of paint")

    seen = []
    with pytest.raises(ValueError, match="out of paint"):
        for step in steps(work, streamer, stop):
            seen.append(step)  # noqa: PERF402 - what came before the error is wanted
    assert seen == [1, 2]


def test_a_reader_who_leaves_stops_the_work_and_the_next_one_is_served():
    stop, reached = Stop(60), []
    streamer = CodeIteratorStreamer(stop)

    def endless():
        while True:
            reached.append(1)
            streamer.put(len(reached))
            time.sleep(0.001)

    reader = steps(endless, streamer, stop)
    assert next(reader) == 1
    reader.close()
    wait_until_idle()
    stop = Stop(60)
    streamer = CodeIteratorStreamer(stop)
    assert list(steps(lambda: streamer.put("next"), streamer, stop)) == ["next"]


def test_one_generation_at_a_time():
    busy, most = [], []

    def read(name):
        stop = Stop(60)
        streamer = CodeIteratorStreamer(stop)

        def work():
            busy.append(name)
            for step in range(5):
                most.append(len(busy))
                streamer.put(step)
                time.sleep(0.002)
            busy.remove(name)

        assert list(steps(work, streamer, stop)) == list(range(5))

    readers = [threading.Thread(target=read, args=(name,)) for name in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert most == [1] * 15


@pytest.mark.parametrize("end", ["its time is up", "it fails"])
def test_a_generation_that_its_reader_never_leaves_ends_and_the_next_one_is_served(end):
    stop = Stop(0.2 if end == "its time is up" else 60)
    streamer = CodeIteratorStreamer(stop)

    def endless():
        for step in itertools.count():
            streamer.put(step)
            time.sleep(0.01)
            if end == "it fails" and step == 3:
                raise MemoryError

    waiting = []

    def read_next():
        stop = Stop(60)
        streamer = CodeIteratorStreamer(stop)
        waiting.extend(steps(lambda: streamer.put("next"), streamer, stop))

    reader = steps(endless, streamer, stop)
    next(reader)
    other = threading.Thread(target=read_next)
    other.start()
    with pytest.raises(MemoryError) if end == "it fails" else contextlib.nullcontext():
        list(reader)
    other.join(30)
    assert waiting == ["next"] and stop.late == (end == "its time is up")


def test_stop_is_due_when_asked_or_late():
    assert not Stop(60).due and Stop(-1).due and Stop(-1).late
    stop = Stop(60)
    stop.ask()
    assert stop.due and not stop.late
    assert stop(torch.zeros(2, 5, dtype=torch.long)).tolist() == [True, True]


# --- chat -------------------------------------------------------------------------------------------------------------


def test_answer_grows_and_is_kept_as_generate_gives_it(parts, picture):
    model, processor = parts
    talk = Conversation()
    pieces = list(answer(model, processor, talk, " what is this? ", [picture]))
    assert all(len(a) <= len(b) for a, b in itertools.pairwise(pieces)) and len(pieces) > 2
    user, assistant = talk.messages
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert user["content"][1]["text"] == "what is this?"
    assert assistant["content"][0]["text"] == pieces[-1]
    inputs = processor.apply_chat_template(
        [user], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    whole = model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1] :]
    assert pieces[-1] == (processor.tokenizer.decode(whole, skip_special_tokens=True).strip() or "(no answer)")


def test_pending_image_goes_with_the_next_question(parts, picture):
    talk = Conversation(pending=[picture])
    reader = answer(*parts, talk, "what is this?")
    said = next(piece for piece in reader if piece)
    reader.close()
    wait_until_idle()
    assert not talk.pending and len(talk.images) == 1
    assert talk.messages[1]["content"][0]["text"] == said, "what was said until the reader left"


def test_late_answer_ends(parts):
    assert list(answer(*parts, Conversation(), "a cat", seconds=-1))[-1] == "(no answer)"


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        ("  ", 1, "question first"),
        ("x" * (MAX_CHARACTERS + 1), 1, "at most 2000"),
        ("what is this?", MAX_IMAGES + 1, "at most 8 images"),
        ("0xq7" * 400, 0, "fewer images, or begin anew"),
    ],
)
def test_refused_questions_leave_the_conversation(parts, picture, question, images, message):
    talk = Conversation(pending=[picture])
    with pytest.raises(ValueError, match=message):
        list(answer(*parts, talk, question, [picture] * images))
    assert talk == Conversation(pending=[picture])


def test_error_while_answering_leaves_the_conversation(parts, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(parts[0], "generate", fail)
    talk = Conversation()
    with pytest.raises(RuntimeError, match="no memory"):
        list(answer(*parts, talk, "a cat"))
    assert talk == Conversation()


def test_a_question_is_taken_back_with_its_images(parts, picture):
    turns = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "two?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    talk = Conversation(turns)
    for index, (kept, question) in enumerate([(0, "one?")] * 3 + [(2, "two?")] * 2):
        before, asked = rewind(talk, index)
        assert (before.messages, asked) == (turns[:kept], question)
        assert before.pending == ([picture] if kept == 0 else [])
    for index in (-1, 5):
        with pytest.raises(ValueError, match="ask again"):
            rewind(talk, index)


def test_what_a_model_cannot_answer_it_is_not_asked(parts, picture, monkeypatch):
    """And later questions are asked as if it had not been; the images of both are shown."""
    words = frozenset(["what", "is", "this", "a", "cat"])
    scope = ANYTHING._replace(words=words, images_only=True, chat="It knows cats.")
    model, processor = parts
    plain = Image.new("RGB", (32, 32), "white")
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", pytest.fail)
        talk = Conversation()
        [said] = answer(model, processor, talk, "what is this?", scope=scope)
        assert "about images only" in said
        [said] = answer(model, processor, talk, "Who painted the Mona Lisa?", [plain], scope=scope)
        assert "has not learned “who”, “painted”, “the”, “mona” ..." in said and "It knows cats." in said
        [said] = answer(model, processor, Conversation(), "what is this?", [picture], scope=scope)
        assert "looks like a photograph" in said
    assert list(answer(model, processor, talk, "what is this a cat?", scope=scope))[-1]
    assert len(talk.messages) == 6
    kept = without_objections(talk.messages)
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert [part["type"] for part in kept[0]["content"]] == ["image", "text"] and kept[1] is talk.messages[-1]


# --- draw -------------------------------------------------------------------------------------------------------------


def test_drawing_ends_finished_and_repeats_by_seed(parts):
    order = Order("a cat", "a dog", guidance_scale=3, num_images=2, seed=5)
    steps_seen = list(draw(*parts, order))
    last = steps_seen[-1]
    assert last.finished and last.positions == last.total == POSITIONS and last.seed == 5
    assert [step.positions for step in steps_seen] == sorted(step.positions for step in steps_seen)
    assert len(last.images) == 2 and last.images[0].size == (32, 32) and last.images_per_second > 0
    again = list(draw(*parts, order))[-1]
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in last.images]
    other = list(draw(*parts, order._replace(seed=6)))[-1]
    assert other.images[0].tobytes() != last.images[0].tobytes()


def test_drawing_is_what_generate_gives(parts):
    model, processor = parts
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "a cat"}],
        generation_mode="image",
        negative_prompt="a dog",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    codes = model.generate(
        **inputs, generation_mode="image", guidance_scale=2.0, generator=torch.Generator().manual_seed(1)
    )
    [wanted] = processor.post_process_image_generation(model.decode_image_tokens(codes))
    last = list(draw(model, processor, Order("a cat", "a dog", 2.0, 1, 1)))[-1]
    assert last.images[0].tobytes() == wanted.tobytes()


def test_preview_shows_what_is_written_and_hides_the_rest(parts):
    codes = torch.randint(32, (1, 6, 2), generator=torch.Generator().manual_seed(0))
    [image] = preview(*parts, codes)
    cells = [image.crop((8 * c, 8 * r, 8 * c + 8, 8 * r + 8)) for r in range(4) for c in range(4)]
    grey = [set(cell.get_flattened_data()) == {UNWRITTEN} for cell in cells]
    assert grey == [False] * 6 + [True] * 10


def test_drawing_stopped_by_its_reader_or_the_clock(parts):
    reader = draw(*parts, Order("a cat", num_images=1))
    next(reader)
    reader.close()
    wait_until_idle()
    assert list(draw(*parts, Order("a cat"), seconds=-1)) == []
    assert list(draw(*parts, Order("a cat", num_images=1)))[-1].finished


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Order(" "), "what to draw"),
        (Order("x" * (MAX_CHARACTERS + 1)), "prompt has 2001 characters"),
        (Order("0xq7" * 480), "tokens, this model reads at most"),
        (Order("a", "0xq7" * 480), "negative prompt has .* tokens"),
        (Order("a", guidance_scale=1000), "Guidance is 1000: give a number from 1 to 20"),
        (Order("a", guidance_scale=float("nan")), "Guidance is nan"),
        (Order("a", num_images=10**6), "number of images"),
        (Order("a", num_images="8; rm"), "number of images"),
        (Order("a", seed=-1), "seed"),
        (Order("a", seed=read_seed("seven")), "The seed is seven: give a number"),
        (Order("a", temperature=None), "Temperature"),
    ],
)
def test_refused_orders(parts, order, message):
    with pytest.raises(ValueError, match=message):
        next(draw(*parts, order))


def test_a_seed_that_is_left_empty_is_another_each_time():
    assert read_seed("") is read_seed(None) is read_seed("  ") is None
    assert read_seed(" 0 ") == 0 and read_seed(7) == 7


def test_speed_counts_unfinished_images_in_part():
    half = Drawing([None, None], positions=8, total=16, seconds=2.0, seed=0)
    assert not half.finished and half.images_per_second == 0.5


# --- look inside ------------------------------------------------------------------------------------------------------


def test_inspection_of_an_image(parts, picture):
    model, processor = parts
    found = inspect(model, processor, picture)
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    codes = model.model.vq_model.encode(pixels)
    assert torch.equal(found.codes, codes[0]) and found.codes.shape == (POSITIONS, 4)
    assert len(found.images) == len(found.psnr) == 2
    [wanted] = processor.post_process_image_generation(model.model.vq_model.decode_pixels(codes, 1))
    assert found.images[0].tobytes() == wanted.tobytes() != found.images[1].tobytes()
    assert len(found.similarity) == 4 and found.similarity[-1] == pytest.approx(1, abs=1e-5)
    assert found.similarity[0] < 0.999


def test_code_maps_show_equal_codes_in_equal_colors(parts, picture):
    found = inspect(*parts, picture)
    assert len(found.maps) == 4
    for level, image in enumerate(found.maps):
        colors = [image.getpixel((16 * column + 8, 16 * row + 8)) for row in range(4) for column in range(4)]
        of_code = dict(zip(found.codes[:, level].tolist(), colors, strict=True))
        assert [of_code[code] for code in found.codes[:, level].tolist()] == colors
        assert len(set(of_code.values())) == len(of_code) > 1


def test_swapping_nothing_some_and_all(parts, picture):
    first, second = inspect(*parts, picture), inspect(*parts, Image.new("RGB", (32, 32), (10, 200, 30)))
    nothing = swap(*parts, first.codes, second.codes, [])
    assert nothing[0].image.tobytes() == first.images[-1].tobytes()
    assert nothing[0].to_own == pytest.approx(1, abs=1e-5)
    everything = swap(*parts, first.codes, second.codes, [1, 2, 3, 4])
    assert everything[0].image.tobytes() == second.images[-1].tobytes()
    assert everything[1].to_other == pytest.approx(1, abs=1e-5)
    deep = swap(*parts, first.codes, second.codes, [3, 4])
    assert deep[0].image.tobytes() == first.images[-1].tobytes(), "only the first two levels hold the pixels"
    assert deep[0].to_own < 0.9999


@pytest.mark.parametrize("level", [0, 5, "1", None])
def test_levels_that_are_not_there(parts, picture, level):
    codes = inspect(*parts, picture).codes
    with pytest.raises(ValueError, match="levels 1 to 4"):
        swap(*parts, codes, codes, [level])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_documents():
    page = (Path(__file__).parents[1] / "docs/command-line.md").read_text(encoding="utf-8").replace("\n", " ")
    assert (TIME_LIMIT, WAITING_OF_ADDRESS, WAITING_OF_SESSION, STATE_SECONDS) == (120, 8, 4, 3600)
    assert "for at most two minutes" in page and "after an hour" in page
    assert "At most eight requests of one address and four of one tab" in page


def test_the_command_listens_at_loopback_and_shares_nothing_by_default():
    values = parse_command(["app"])
    assert values["host"] == "127.0.0.1"
    assert not any(values[name] for name in ("checkpoint", "server", "port", "allow_host", "share"))


@pytest.mark.parametrize(
    ("words", "message"), [(["--port", "70000"], "less than or equal to 65535"), ([], r"pip install 'evotok\[app\]'")]
)
def test_mistakes_are_told_before_the_model_is_loaded(words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("evotok.commands.app.load_multimodal", pytest.fail)
    assert main(["app", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


# --- uploads, numbers, examples ---------------------------------------------------------------------------------------


def test_uploads_are_opened_by_our_loader_and_kept_small(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGBA", (3000, 30), (0, 0, 0, 0)).save(path)
    image = open_upload(str(path), str(tmp_path))
    assert image.mode == "RGB" and image.width == MAX_SIDE and image.getpixel((0, 0)) == (255, 255, 255)


def test_uploads_that_are_no_images_say_so_without_folders(tmp_path, monkeypatch):
    bomb, text, cut = tmp_path / "bomb.png", tmp_path / "page.png", tmp_path / "cut.png"
    Image.new("1", (6000, 6000)).save(bomb)
    text.write_text("<html>")
    cut.write_bytes(bomb.read_bytes()[:200])
    for path, reason in ((bomb, "over the limit of 24 Mpx"), (text, "not an image"), (cut, "over the limit|cannot")):
        with pytest.raises(ValueError, match=f"^{path.name}: .*({reason})") as refused:
            open_upload(str(path), str(tmp_path))
        assert str(tmp_path) not in str(refused.value) and "max_pixels" not in str(refused.value)
    monkeypatch.setattr("evotok.app.limits.MAX_UPLOAD_BYTES", 100)
    with pytest.raises(ValueError, match="bomb.png: .* MB, at most"):
        open_upload(str(bomb), str(tmp_path))


def test_files_that_nobody_uploaded_are_not_read(tmp_path):
    """Whether they are there or not, and by whatever way."""
    (tmp_path / "uploads").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "mine.png")
    for name in ("mine.png", "uploads/../mine.png", "uploads/link.png", "uploads/missing.png", "uploads", "missing"):
        with pytest.raises(ValueError, match=f"^{Path(name).name}: was not uploaded to this page"):
            open_upload(str(tmp_path / name), str(tmp_path / "uploads"))


@pytest.mark.parametrize("value", [True, None, "7", [1], float("inf"), 3.5, -1])
def test_numbers_of_requests_are_checked(value):
    with pytest.raises(ValueError, match="Guidance is .*: give a number from 0 to 3"):
        check_number(value, 0, 3, "Guidance")
