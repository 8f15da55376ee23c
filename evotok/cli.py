"""The command line: `evotok COMMAND`, with the commands of the table below.

Exit codes: 0 done; 2 an error of the user, in one line on stderr; 130 interrupted; 1 an error of the program, with its
traceback.
"""

import inspect
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup, TyperOption

from evotok import __version__, demo
from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS
from evotok.commands import (
    app,
    bench,
    chat,
    convert,
    data_check,
    decode,
    encode,
    encode_dataset,
    evaluate,
    export,
    export_onnx,
    generate,
    measure,
    plan,
    serve,
    train,
)
from evotok.commands.terminal import stdout_for_json


# panel of the help -> name -> module with `run` and EXAMPLES
PANELS = {
    "Chat and generate": {"demo": demo, "chat": chat, "generate": generate, "app": app, "serve": serve},
    "Image tokenizer": {"encode": encode, "decode": decode},
    "Train and measure": {
        "plan": plan,
        "data": data_check,
        "encode-dataset": encode_dataset,
        "train": train,
        "eval": evaluate,
        "measure": measure,
        "bench": bench,
    },
    "Share": {"export": export, "export-onnx": export_onnx, "convert": convert},
}
COMMANDS = {name: module for modules in PANELS.values() for name, module in modules.items()}
DESCRIPTION = "One model that understands and generates images: chat about images, generate them, inspect codes."
EPILOG = f"""\
Examples:
  evotok demo
  evotok chat mini --image cat.png --prompt "{WORLD_QUESTIONS[0]}"
  evotok generate mini --prompt "{WORLD_PROMPTS[0]}" --num-images 4 --out hearts
  evotok train configs/mini/tokenizer.yaml training.max_steps=100

Exit codes:
  0    done
  1    an error of the program: please report it with its traceback
  2    an error of the user: one line on stderr states the correction
  130  interrupted"""


class Command(TyperCommand):
    """A command whose options with a metavar that ends in `...` take all words up to the next option, as
    `--prompt one two`. No option takes the name of another one as its value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Rewrites `--prompt one two` as `--prompt one --prompt two`, then parses."""
        options = [param for param in self.get_params(ctx) if isinstance(param, TyperOption)]
        names = {name: option for option in options for name in option.opts}
        words, rest = [], list(args)
        while rest:
            word = rest.pop(0)
            words.append(word)
            option = names.get(word)
            if word == "--":
                words += rest
                break
            if option is None or option.is_flag:
                continue
            if not rest or rest[0] in names:
                if not ctx.resilient_parsing:
                    ctx.fail(f"Option {word!r} requires an argument.")
                continue
            words.append(rest.pop(0))
            while (option.metavar or "").endswith("...") and rest and not rest[0].startswith("-"):
                words += [word, rest.pop(0)]
        return super().parse_args(ctx, words)

    def invoke(self, ctx: typer.Context) -> Any:
        """Runs the command."""
        with stdout_for_json(ctx.params.get("as_json")):
            return super().invoke(ctx)


class Group(TyperGroup):
    """The group of commands, whose errors are one line on stderr."""

    def invoke(self, ctx: typer.Context) -> int:
        """Runs a command; returns the exit code."""
        try:
            super().invoke(ctx)
            return 0
        except KeyboardInterrupt:
            print(f"{ctx.command_path} {ctx.invoked_subcommand}: interrupted", file=sys.stderr)
            return 130
        except (ValueError, OSError, ImportError) as error:
            if ctx.params["traceback"]:
                raise
            from evotok.data.errors import one_line

            print(f"{ctx.command_path} {ctx.invoked_subcommand}: {one_line(error)}", file=sys.stderr)
            return 2


root = typer.Typer(
    name="evotok",
    cls=Group,
    help=DESCRIPTION,
    epilog=escape(EPILOG),
    rich_markup_mode="rich",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


@root.callback()
def show(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="show the traceback of an error")] = False,
) -> None:
    if version:
        print(f"evotok {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


for _panel, _modules in PANELS.items():
    for _name, _module in _modules.items():
        _parts = [getattr(_module, "EPILOG", None), f"Examples:\n{_module.EXAMPLES}"]
        root.command(
            _name,
            cls=Command,
            help=inspect.getdoc(_module.run),
            epilog=escape("\n\n".join(filter(None, _parts))),
            rich_help_panel=_panel,
        )(_module.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the return value is the exit code."""
    group = typer.main.get_command(root)
    try:
        return group.main(argv, prog_name="evotok", standalone_mode=False) or 0
    except typer.TyperException as error:
        print(_describe(error), file=sys.stderr)
        return 2


def _describe(error: Any) -> str:
    """Renders an error of the command line in one line."""
    from evotok.data.errors import printable

    command = error.ctx.command_path if getattr(error, "ctx", None) else "evotok"
    message = error.format_message().replace("Value error, ", "")
    choice = re.fullmatch(r"(.*)'(.*)' is not one of (.*)\.?", message)
    if near := getattr(error, "possibilities", None):
        message = f"{error.message}. Did you mean {near[0]}?"
    elif choice and (near := get_close_matches(choice[2], re.findall("'(.*?)'", choice[3]), n=1)):
        message = f"{choice[1]}{choice[2]!r}. Did you mean {near[0]!r}?"
    return f"{command}: {printable(message.removesuffix('.'))} (see {command} --help)"


if __name__ == "__main__":
    sys.exit(main())
