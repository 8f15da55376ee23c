"""`evotok completion`: what a shell needs to complete commands, options and files."""

import argparse


EXAMPLES = """  eval "$(evotok completion bash)"      in ~/.bashrc
  eval "$(evotok completion zsh)"       in ~/.zshrc, after compinit
  evotok completion fish | source       in ~/.config/fish/config.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="for which shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import argcomplete
    except ImportError:
        raise ValueError("completion needs the extra `completion`: pip install 'evotok[completion]'.") from None
    print(argcomplete.shellcode(["evotok"], shell=options.shell))
    return 0
