"""`evotok chat`: a conversation with images in both directions, or one question."""

import atexit
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS
from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.files import safe_name, save_images
from evotok.commands.options import CHECKPOINT, ApiKey, Json, Server, require_text
from evotok.commands.terminal import bold, print_results, progress, show_image, waiting
from evotok.conversation import Conversation


if TYPE_CHECKING:
    from PIL import Image


EXAMPLES = f"""  evotok chat mini
  evotok chat mini --image cat.png
  evotok chat mini --image cat.png --prompt "{WORLD_QUESTIONS[0]}"
  printf '/draw {WORLD_PROMPTS[0]}\\n{WORLD_QUESTIONS[1]}\\n' | evotok chat mini
  evotok chat --server http://127.0.0.1:8000
In a conversation /help lists the commands."""
MENU = """\
  /image FILE     add an image to the next question
  /draw PROMPT    generate an image, save it, and add it to the next question
  /history        print the conversation
  /new            start a new conversation
  /quit           end (or Ctrl-D); Ctrl-C stops an answer"""
HISTORY_LENGTH = 1000


def run(
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="FILE", help="image to talk about; may repeat")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", callback=require_text, help="one question; without it a conversation starts"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="longest answer in tokens")] = 256,
    out: Annotated[str, typer.Option(metavar="DIR", help="folder for the images of /draw")] = "drawn",
    server: Server = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Chat about images, once with --prompt or in a conversation."""
    if (checkpoint is None) == (server is None):
        raise ValueError("give either a CHECKPOINT, such as mini, or --server with the address of a running server.")
    if checkpoint is not None:
        find_checkpoint(checkpoint)
    from evotok.data.errors import one_line
    from evotok.processing.image_loading_evotok import load_image

    if as_json and prompt is None:
        raise ValueError("--json needs --prompt: a conversation is printed as text.")
    images = [load_image(path) for path in image or ()]
    if checkpoint is not None:
        chat = Chat(*load_multimodal(checkpoint), max_new_tokens)
    else:
        from evotok.serving.client import ServerClient

        assert server is not None
        chat = Chat(ServerClient(server, api_key), None, max_new_tokens)
    chat.conversation.pending += images
    if prompt is not None:
        answer = chat.ask(prompt, is_printed=not as_json)
        print_results(as_json, {"answer": answer}, ())
        return
    if sys.stdin.isatty():
        enable_line_history()
        print(f"Ask a question. {bold('/help', sys.stdout)} lists the commands.")
    for loaded in images:
        show_image(loaded)
    while (line := _read_line()) is not None:
        try:
            if _run_line(chat, line, out):
                return
        except (ValueError, OSError) as error:
            print(f"evotok chat: {one_line(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(stopped: the conversation is as before)")


def enable_line_history() -> None:
    """Enables editing of the line, with the lines of earlier conversations as its history."""
    import readline  # not on every system

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "evotok" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError:  # a home that cannot be written: lines of this conversation only
        return
    readline.set_history_length(HISTORY_LENGTH)
    atexit.register(readline.write_history_file, path)


def _read_line() -> str | None:
    """Returns the next line without spaces around it; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print()
        return ""


def _run_line(chat: "Chat", line: str, out: str) -> bool:
    """Runs a command or asks a question; returns whether the conversation ends."""
    from evotok.data.errors import escape_controls
    from evotok.processing.image_loading_evotok import load_image

    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/quit":
        return True
    if command == "/help":
        print(MENU)
    elif command == "/history":
        print(escape_controls("\n".join(chat.history())) or "(nothing yet)")
    elif command == "/new":
        chat.conversation = Conversation()
    elif command == "/image":
        image = load_image(str(Path(rest).expanduser()))
        chat.conversation.pending.append(image)
        show_image(image)
    elif command == "/draw":
        if not rest:
            raise ValueError(f"/draw needs a prompt, such as /draw {WORLD_PROMPTS[0]}")
        seed = random.randrange(2**32)
        image = chat.generate(rest, seed)
        [path] = save_images(out, [(f"{safe_name(rest)}-seed{seed}", image)])
        show_image(image)
        print(path)
    elif command.startswith("/"):
        raise ValueError(f"{command} is no command: /help lists them.")
    elif line:
        chat.ask(line)
    return False


class Chat:
    """A conversation with a model at a terminal.

    Args:
        model, processor: of one checkpoint; or a `ServerClient` and None.
        max_new_tokens: longest answer.
    """

    def __init__(self, model, processor, max_new_tokens: int = 256):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.conversation = Conversation()

    def history(self) -> list[str]:
        """Lists a line for each message, images as `[image]`."""
        marks = {"user": "> ", "assistant": "  "}
        lines = [
            marks[message["role"]] + " ".join(part.get("text", "[image]") for part in message["content"])
            for message in self.conversation.messages
        ]
        pending = ["[image]"] * len(self.conversation.pending)
        return [*lines, marks["user"] + " ".join(pending)] if pending else lines

    def ask(self, question: str, is_printed: bool = True) -> str:
        """Returns the answer to a question, and prints it while it is generated.

        Raises:
            ValueError: the conversation does not fit into the context; it is then as before.
        """
        messages = self.conversation.with_question(question)
        answer = self._answer(messages, is_printed).strip()
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self.conversation = Conversation([*messages, reply])
        return answer

    def _answer(self, messages: list[dict[str, Any]], is_printed: bool) -> str:
        from evotok.data.errors import escape_controls

        if self.processor is not None:
            from evotok.inference import VisibleStreamer, answer

            streamer = VisibleStreamer(self.processor.tokenizer) if is_printed else None
            [text] = answer(
                self.model, self.processor, [messages], max_new_tokens=self.max_new_tokens, streamer=streamer
            )
            return text
        pieces = []
        for piece in self.model.chat(messages, self.max_new_tokens):
            pieces.append(piece)
            if is_printed:
                print(escape_controls(piece), end="", flush=True)
        if is_printed:
            print()
        return "".join(pieces)

    def generate(self, prompt: str, seed: int) -> "Image.Image":
        """Generates an image of a prompt and adds it to the next question."""
        if self.processor is None:
            with waiting("Generating"):
                image = self.model.generate_image(prompt, seed)
        else:
            from evotok.inference import generate_images

            with progress(self.model.config.vq_config.num_positions, "position", "Generating") as bar:
                [image] = generate_images(
                    self.model, self.processor, [prompt], seed=seed, callback=lambda *_: bar.update()
                )
        self.conversation.pending.append(image)
        return image
