"""Command lines and evaluations: arguments that are unknown or out of range, and paths that cannot be used."""

import json
from collections.abc import Callable
from typing import Any

from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.images import file, noise, plain, saved
from untrusted.materials import copy


HALF = "\ud83d"  # of a surrogate pair
RESULTS = json.dumps({"suite": "reconstruction", "checkpoint_sha256": "ab" * 32, "figures": {}, "finished": True})


def line(command: str, lay: Callable[[Workspace], Any] = lambda _: None):
    """Returns a `make` of a command line, where `_` stands for a space in a word; it writes the inputs that the line
    names: the checkpoints `model` and `tokenizer`, `a.png`, and a folder of three `images`."""

    def make(workspace: Workspace) -> list[str]:
        words = command.split()
        for name in {"model", "tokenizer"} & set(words):
            copy(name)(workspace)
        workspace.write("a.png", saved(plain((77, 77, 77))))
        for index in range(3 * ("data=images" in words)):
            workspace.write(f"images/{index}.png", saved(noise()))
        lay(workspace)
        return [word.replace("_", " ") for word in words]

    return make


def generate(words: str):
    return line(f"generate model --out out {words}")


LENGTH = "The conversation has 193 tokens; the limit is 127: shorten the question, use fewer images, or start a new conversation"
COMMANDS = [
    kind("word that is misspelled, missing or surplus", "{}")(
        case("command", line("mesure"), "No such command 'mesure'. Did you mean 'measure'? (see evotok --help)"),
        case("checkpoint", line("chat mni --prompt a"), "'mni': no such folder. Did you mean 'mini'?"),
        case("argument", line("generate"), "Missing argument 'CHECKPOINT' (see evotok generate --help)"),
        case("model or server", line("chat"), "give either a CHECKPOINT, such as mini, or --server with the address of a running server."),
        case("two sources", line("convert tokenizer model --to-reference --out new"), "--to-reference takes one checkpoint of EvoTok, not 2 sources."),
    ),
    kind("escape sequences", r"{}\x1b[31mred{}")(
        case("command", line("\x1b[31mred"), "No such command '", "' (see evotok --help)"),
        case("file", line("decode model \x1b[31mred --out a"), "", ": no such file. `evotok encode` writes files of codes."),
    ),
    kind("value of an option", "Invalid value for '--{} (see evotok generate --help)", limit="in the help of the option")(
        case("integer of 24 digits", generate(f"--prompt a --seed {'9' * 24}"), "seed': Input should be less than or equal to 18446744073709551615"),
        case("NaN", generate("--prompt a --guidance-scale nan"), "guidance-scale': Input should be greater than or equal to 0"),
        case("infinite", generate("--prompt a --temperature inf"), "temperature': inf is not a finite number"),
        case("zero", generate("--prompt a --top-p 0"), "top-p': 0 is too small, give a number above 0"),
    ),
    kind("address of a server", "{}.")(
        case("file", line("chat --server file:///etc/passwd"), "'file:///etc/passwd' is no address of a server: give one such as http://127.0.0.1:8000"),
        case("no server", line("chat --server http://127.0.0.1:9"), "http://127.0.0.1:9: no server answers (Connection refused): start one with …"),
    ),
    kind("prompt", "{}.", limit="`max_position_embeddings`")(
        case("with images", line("chat model --prompt hello" + " --image a.png" * 10), LENGTH),
        case("for an image", generate(f"--prompt {'frog_' * 200}frog"), "The prompt has 1013 tokens; the limit before an image is 112: shorten it"),
        case("half of a surrogate pair", generate(f"--prompt {HALF}"), "Text holds half of a surrogate pair, which is no character: remove it"),
    ),
    kind("output that cannot be written", "{}.")(
        case("file", line("generate model --prompt a --out a.png"), "a.png: this is a file, give a folder to write to"),
        case(
            "folder",
            line("encode model a.png --out b.safetensors", file("b.safetensors/a", b"a")),
            "b.safetensors: this is a folder, give the name of a file to write",
        ),
        case("suffix", line("encode model a.png --out codes.pt"), "--out codes.pt: the name of a file of codes must end in .safetensors"),
        case("name of 300 letters", line(f"generate model --prompt a --out {'x' * 300}"), "…: file name too long: give another folder to write to"),
        case(
            "left by a conversion that was stopped",
            line("convert tokenizer --out ours", file("ours.part/a", b"a")),
            "ours.part: this exists already, left by a run that was stopped: remove it",
        ),
    ),
    kind("image that Pillow warns of", "'cut.tif': cannot be read (…): save the image again.")(
        line("encode model cut.tif --out new.safetensors", file("cut.tif", saved(noise(), "TIFF")[:3000]))
    ),
]

EVALUATIONS = [
    kind("images of an evaluation", "images: {}.")(
        case(
            "damaged",
            line("eval trajectory tokenizer data=images clusters=2", file("images/cut.png", saved(noise())[:200])),
            "1 of 4 images cannot be read, the first is images/cut.png: 'images/cut.png': cannot be read (…): save the image again",
        ),
        case("too few", line("eval trajectory tokenizer data=images"), "fewer images than clusters=8: give more, or fewer clusters"),
    ),
    kind("results of something else, or none", "out{}.")(
        case(
            "another checkpoint",
            line("eval reconstruction model data=images --out out", file("out/results.json", RESULTS.encode())),
            ": has results of another checkpoint (abab…...): give a new folder with --out, or measure again with --restart",
        ),
        case(
            "damaged",
            line("eval reconstruction model data=images --out out --restart", file("out/results.json", b"{")),
            "/results.json: holds no results of `evotok eval`: remove it, or give another folder",
        ),
        case("none", line("eval compare out", file("out/a", b"a")), ": no results.json: give a folder that `evotok eval` wrote"),
    ),
]

GROUPS = [Group("Files and command lines", "`evotok`", run_command, COMMANDS), Group("Files and command lines", "`evotok eval`", run_command, EVALUATIONS)]
