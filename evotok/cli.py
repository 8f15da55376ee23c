"""The command line: `evotok COMMAND`, with the commands of the table below.

Exit codes: 0 done; 2 the user can mend it, and one line on stderr says how; 130 interrupted; 1 a fault of ours, with
its traceback.
"""

import argparse
import importlib
import os
import sys
from typing import NoReturn

from evotok.commands.terminal import bold


# name -> (module with EXAMPLES, add_arguments(parser) and run(options), summary)
COMMANDS = {
    "demo": ("evotok.demo", "see what the embedded mini model can do: pictures, questions and answers"),
    "chat": ("evotok.commands.chat", "talk about images, once with --prompt or turn by turn"),
    "generate": ("evotok.commands.generate", "draw images from text"),
    "app": ("evotok.commands.app", "open a page to chat, draw and look inside, in your browser"),
    "encode": ("evotok.commands.encode", "turn images into the codes of the image tokenizer"),
    "decode": ("evotok.commands.decode", "turn codes back into images, from as many levels as wanted"),
    "train": ("evotok.commands.train", "train one stage from a recipe, or go on where it was stopped"),
    "plan": ("evotok.commands.plan", "what a recipe will take: memory, operations, days, bytes; no weights needed"),
    "data": ("evotok.commands.data_check", "check the data of a recipe: read the first records of every source"),
    "encode-dataset": ("evotok.commands.encode_dataset", "turn a corpus into shards of codes, once, on all GPUs"),
    "export": ("evotok.commands.export", "write a trained checkpoint as one folder to share"),
    "export-onnx": ("evotok.commands.export_onnx", "write the image tokenizer of a checkpoint as ONNX files"),
    "convert": ("evotok.commands.convert", "turn checkpoints of the paper's release into ours, or back"),
    "bench": ("evotok.commands.bench", "time the engine against a plain reference and the machine's limits"),
    "eval": ("evotok.commands.evaluate", "measure a checkpoint by a suite: tables, plots and figures in a folder"),
    "measure": ("evotok.commands.measure", "another name of `evotok eval mini`"),
    "completion": ("evotok.commands.completion", "let the shell complete commands, options and files"),
}
GROUPS = {
    "Read and draw": ("demo", "chat", "generate", "app"),
    "Look inside the tokenizer": ("encode", "decode"),
    "Train and measure": ("plan", "data", "encode-dataset", "train", "eval", "measure", "bench"),
    "Share": ("export", "export-onnx", "convert"),
}
DESCRIPTION = "One model that reads images and draws them: chat about pictures, draw from text, or look inside."
EXAMPLES = """\
  evotok demo
  evotok chat mini --image cat.png --prompt "What is this?"
  evotok generate mini --prompt "a frog, noto style" --num-images 4 --out frogs
  evotok train configs/mini/tokenizer.yaml training.max_steps=100"""
EXIT_CODES = """\
  0    done
  1    a fault of the program: please report it with its traceback
  2    a mistake that you can mend: one line on stderr says how
  130  interrupted"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        from evotok.training.messages import printable

        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def list_commands() -> str:
    """The commands in their groups, those of none at the end."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {"More": tuple(name for name in COMMANDS if name not in grouped)}
    parts = []
    for title, names in groups.items():
        lines = [f"  {name:<14} {COMMANDS[name][1]}" for name in names]
        parts.append("\n".join([bold(f"{title}:", sys.stdout), *lines]))
    return "\n\n".join(parts)


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The command line; only the module of the command `wanted` is imported, because some are slow to."""
    formatter = argparse.RawDescriptionHelpFormatter
    examples, codes = (bold(f"{title}:", sys.stdout) for title in ("Examples", "Exit codes"))
    parser = Parser(
        prog="evotok",
        usage="evotok [--version] [--traceback] COMMAND ...",
        description=f"{DESCRIPTION}\n\n{list_commands()}",
        epilog=f"{examples}\n{EXAMPLES}\n\n{codes}\n{EXIT_CODES}\n\n`evotok COMMAND --help` says more.",
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where in the program a mistake was noticed")
    commands = parser.add_subparsers(metavar="COMMAND", prog="evotok", parser_class=Parser, help=argparse.SUPPRESS)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=formatter
        )
        if name == wanted:
            module = importlib.import_module(module_name)
            command.epilog = f"{examples}\n{module.EXAMPLES}"
            module.add_arguments(command)
            command.set_defaults(run=module.run, prog=command.prog)
    return parser


def complete(words: list[str]) -> None:
    """Answer the shell of `evotok completion` that asks how `words` may go on, and exit."""
    import argcomplete

    argcomplete.autocomplete(build_parser(_command_of(words)))


def _command_of(words: list[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ["COMP_LINE"].split()[1:])
    argv = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser(_command_of(argv))
        options = parser.parse_args(argv)
    except SystemExit as stop:  # help, or a mistake that the parser has reported
        return int(stop.code or 0)
    if options.version:
        from evotok import __version__

        print(f"evotok {__version__}")
        return 0
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print(f"{options.prog}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if options.traceback:
            raise
        from evotok.training.messages import one_line

        print(f"{options.prog}: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
