"""`evotok app`: the page, on which people chat about images, draw them and look inside their codes."""

import argparse
import sys
import threading

from evotok.commands.checkpoints import HELP, load_multimodal


EXAMPLES = """  evotok app
  evotok app runs/mini/gen --port 8080
  evotok app --host 0.0.0.0          for everybody in the network"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", nargs="?", default="mini", metavar="CHECKPOINT", help=f"{HELP} (mini)")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="port; the first free one from 7860 by default")
    parser.add_argument("--share", action="store_true", help="make a public address as well, through Gradio's servers")


def run(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    if options.port is not None and not 1 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}: give a number from 1 to 65535.")
    try:
        import gradio  # noqa: F401 - looked for before the model is loaded
    except ImportError:
        raise ImportError("the page needs Gradio: pip install 'evotok[app]'") from None
    model, processor = load_multimodal(options.checkpoint)
    from evotok.app.page import build_page, launch_options

    if options.host not in LOOPBACK:
        print(f"note: everybody who reaches {options.host} can use this page.", file=sys.stderr)
    page = build_page(model, processor)
    try:
        _, address, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            quiet=True,
            prevent_thread_lock=True,
            **launch_options(),
        )
    except OSError:
        where = f"{options.host}:{options.port}" if options.port else options.host
        raise ValueError(f"cannot listen at {where}: give another --host or --port.") from None
    print(f"EvoTok is at {address} (Ctrl+C ends it)", flush=True)
    try:
        threading.Event().wait()  # until Ctrl+C
    finally:
        page.close(verbose=False)
    return 0
