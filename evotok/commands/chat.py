"""`evotok chat`: questions about images, one or a whole conversation."""

import argparse
import sys
from typing import Any

from evotok.commands.checkpoints import HELP, load_multimodal
from evotok.commands.generate import at_least_one


EXAMPLES = """  evotok chat mini --image cat.png
  evotok chat mini --image cat.png --prompt "What is this?"
In a conversation: /image FILE shows another image, /new begins anew, /quit ends."""
MENU = "Ask about the image. /image FILE shows another one, /new begins anew, /quit ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=HELP)
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="image to talk about; may repeat")
    parser.add_argument("--prompt", metavar="TEXT", help="one question; without it a conversation begins")
    parser.add_argument(
        "--max-new-tokens", type=at_least_one, default=256, metavar="N", help="longest answer in tokens (256)"
    )


def run(options: argparse.Namespace) -> int:
    """Answer the one question, or converse until the user leaves."""
    from evotok.processing.image_loading_evotok import load_image

    images = [load_image(path) for path in options.image]
    chat = Chat(*load_multimodal(options.checkpoint), options.max_new_tokens)
    chat.show(images)
    if options.prompt is not None:
        chat.ask(options.prompt)
        return 0
    if sys.stdin.isatty():
        import readline  # noqa: F401 - history and editing for input()

        print(MENU)
    while (line := _next_line()) is not None:
        try:
            if _follow(chat, line):
                return 0
        except ValueError as error:
            print(f"evotok chat: {' '.join(str(error).split())}", file=sys.stderr)
    return 0


def _next_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _follow(chat: "Chat", line: str) -> bool:
    """Do what one line says; whether it ends the conversation."""
    from evotok.processing.image_loading_evotok import load_image

    command, _, rest = line.partition(" ")
    if command == "/quit":
        return True
    if command == "/new":
        chat.begin()
    elif command == "/image":
        chat.show([load_image(rest.strip())])
    elif command.startswith("/"):
        raise ValueError(f"{command} is not known here. {MENU}")
    elif line:
        chat.ask(line)
    return False


class Chat:
    """A conversation with a model.

    Args:
        model, processor: of one checkpoint.
        max_new_tokens: longest answer.
    """

    def __init__(self, model, processor, max_new_tokens: int = 256):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self.messages: list[dict[str, Any]] = []
        self.pending: list[dict[str, Any]] = []

    def show(self, images: list) -> None:
        """PIL images that go with the next question."""
        self.pending += [{"type": "image", "image": image} for image in images]

    def ask(self, text: str) -> str:
        """The answer, which is printed while it is written.

        Raises:
            ValueError: the conversation does not fit into the context; it is then as before.
        """
        import torch
        from transformers import TextStreamer

        turn = {"role": "user", "content": [*self.pending, {"type": "text", "text": text}]}
        messages = [*self.messages, turn]
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        length, limit = inputs["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if length >= limit:
            raise ValueError(
                f"the conversation has {length} tokens, the model reads fewer than {limit}: shorten the prompt, show "
                "fewer images, or begin anew."
            )
        tokenizer = self.processor.tokenizer
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=min(self.max_new_tokens, limit - length),
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            )
        answer = tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self.messages, self.pending = [*messages, reply], []
        return answer
