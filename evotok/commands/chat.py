"""`evotok chat`: a conversation with pictures in both directions, or one question."""

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS
from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.conversation import Conversation
from evotok.commands.files import safe_name, save_images
from evotok.commands.options import CHECKPOINT, Json, require_text
from evotok.commands.preview import show_preview
from evotok.commands.terminal import bold, progress, say, waiting


if TYPE_CHECKING:
    from PIL import Image

    from evotok.serving.client import ServerClient


EXAMPLES = f"""  evotok chat mini
  evotok chat mini --image cat.png
  evotok chat mini --image cat.png --prompt "{WORLD_QUESTIONS[0]}"
  printf '/draw {WORLD_PROMPTS[0]}\\n{WORLD_QUESTIONS[1]}\\n' | evotok chat mini
  evotok chat --server http://127.0.0.1:8000
In a conversation /help shows what else can be typed."""
MENU = """\
  /image FILE     show an image; ask about it in the next line
  /draw PROMPT    have an image drawn, saved, and shown to the model
  /history        what was said so far
  /new            begin anew
  /quit           end (or Ctrl-D); Ctrl-C stops an answer"""
HISTORY_LENGTH = 1000


def run(
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="FILE", help="image to talk about; may repeat")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", callback=require_text, help="one question; without it a conversation begins"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="longest answer in tokens")] = 256,
    out: Annotated[str, typer.Option(metavar="DIR", help="folder for what /draw generates")] = "drawn",
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="server that runs the model, such as one of `evotok serve`, instead of CHECKPOINT"
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="EVOTOK_API_KEY", help="key of the server")
    ] = None,
    as_json: Json = False,
) -> None:
    """Chat about images, once with --prompt or turn by turn."""
    if (checkpoint is None) == (server is None):
        raise ValueError("give either a CHECKPOINT, such as mini, or the --server of a model that runs.")
    if checkpoint is not None:
        find_checkpoint(checkpoint)
    from evotok.processing.image_loading_evotok import load_image
    from evotok.training.messages import one_line

    if as_json and prompt is None:
        raise ValueError("--json goes with --prompt: a conversation is for people.")
    images = [load_image(path) for path in image or ()]
    if checkpoint is not None:
        chat = Chat(*load_multimodal(checkpoint), max_new_tokens)
    else:
        from evotok.serving.client import ServerClient

        chat = RemoteChat(ServerClient(server, api_key), max_new_tokens)
    chat.show(*images)
    if prompt is not None:
        answer = chat.ask(prompt, stream=not as_json)
        say(as_json, {"answer": answer}, ())
        return
    if sys.stdin.isatty():
        remember_lines()
        print(f"Ask away. {bold('/help', sys.stdout)} shows what else can be typed.")
    for image in images:
        show_preview(image)
    while (line := _next_line()) is not None:
        try:
            if _follow(chat, line, out):
                return
        except (ValueError, OSError) as error:
            print(f"evotok chat: {one_line(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(stopped: the conversation is as before)")


def remember_lines() -> None:
    """Editing of the line, and the arrow keys bring back lines of this and earlier conversations."""
    import atexit
    import readline

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "evotok" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError:  # a home that cannot be written: this conversation only
        return
    readline.set_history_length(HISTORY_LENGTH)
    atexit.register(readline.write_history_file, path)


def _next_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print()
        return ""


def _follow(chat: "Chat", line: str, out: str) -> bool:
    """Do what one line says; whether it ends the conversation."""
    from evotok.processing.image_loading_evotok import load_image
    from evotok.training.messages import visible

    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/quit":
        return True
    if command == "/help":
        print(MENU)
    elif command == "/history":
        print(visible("\n".join(chat.history())) or "(nothing yet)")
    elif command == "/new":
        chat.begin()
    elif command == "/image":
        image = load_image(str(Path(rest).expanduser()))
        chat.show(image)
        show_preview(image)
    elif command == "/draw":
        if not rest:
            raise ValueError(f"/draw wants to know what: /draw {WORLD_PROMPTS[0]}")
        seed = random.randrange(2**32)
        image = chat.draw(rest, seed)
        [path] = save_images(out, [(f"{safe_name(rest)}-seed{seed}", image)])
        show_preview(image)
        print(path)
    elif command.startswith("/"):
        raise ValueError(f"{command} is not known here: /help shows what is.")
    elif line:
        chat.ask(line)
    return False


class Chat:
    """A conversation with a model at a terminal.

    Args:
        model, processor: of one checkpoint.
        max_new_tokens: longest answer.
    """

    def __init__(self, model, processor, max_new_tokens: int = 256):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self.conversation = Conversation()

    def show(self, *images: "Image.Image") -> None:
        """Images that go with the next question."""
        self.conversation.show(*images)

    def history(self) -> list[str]:
        """A line for each turn, images as `[image]`."""
        marks = {"user": "> ", "assistant": "  "}
        lines = [
            marks[turn["role"]] + " ".join(part.get("text", "[image]") for part in turn["content"])
            for turn in self.conversation.messages
        ]
        pending = ["[image]"] * len(self.conversation.pending)
        return [*lines, marks["user"] + " ".join(pending)] if pending else lines

    def draw(self, prompt: str, seed: int) -> "Image.Image":
        """An image of `prompt`, which also goes with the next question."""
        image = self._generate(prompt, seed)
        self.show(image)
        return image

    def ask(self, text: str, stream: bool = True) -> str:
        """The answer; if `stream`, it is printed while it is written.

        Raises:
            ValueError: the conversation does not fit into the context; it is then as before.
        """
        messages = self.conversation.asked(text)
        answer = self._answer(messages, stream).strip()
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self.conversation = Conversation([*messages, reply])
        return answer

    def _generate(self, prompt: str, seed: int) -> "Image.Image":
        from evotok.eval.generation import generate_images

        scale = self.model.generation_config.guidance_scale
        guidance = {} if scale is None else {"guidance_scale": scale}
        with progress(self.model.config.vq_config.num_positions, "position", "Drawing") as bar:
            pixels = generate_images(
                self.model, self.processor, [prompt], seed=seed, callback=lambda *_: bar.update(), **guidance
            )
        [image] = self.processor.post_process_image_generation(pixels)
        return image

    def _answer(self, messages: list[dict[str, Any]], stream: bool) -> str:
        import torch

        from evotok.inference import read_chat
        from evotok.visible_streamer import VisibleStreamer

        inputs, room = read_chat(self.model, self.processor, messages)
        tokenizer = self.processor.tokenizer
        streamer = VisibleStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=min(self.max_new_tokens, room), streamer=streamer)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class RemoteChat(Chat):
    """A conversation with a model behind a server.

    Args:
        client: of the server.
        max_new_tokens: longest answer.
    """

    def __init__(self, client: "ServerClient", max_new_tokens: int = 256):
        self.client, self.max_new_tokens = client, max_new_tokens
        self.begin()

    def _generate(self, prompt: str, seed: int) -> "Image.Image":
        with waiting("Drawing"):
            return self.client.generate_image(prompt, seed)

    def _answer(self, messages: list[dict[str, Any]], stream: bool) -> str:
        from evotok.training.messages import visible

        answer = ""
        for piece in self.client.chat(messages, self.max_new_tokens):
            answer += piece
            if stream:
                print(visible(piece), end="", flush=True)
        if stream:
            print()
        return answer
