"""`evotok app`: the page, on which people chat about images, draw them and look inside their codes."""

import sys
import threading
from typing import Annotated

import typer

from evotok.commands.addresses import LOOPBACK, cannot_listen, check_address
from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.options import Checkpoint


EXAMPLES = """  evotok app
  evotok app runs/mini/gen --port 8080
  evotok app --host 0.0.0.0          for everybody in the network"""


def run(
    checkpoint: Checkpoint = "mini",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen at")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="port; the first free one from 7860 by default")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="a public address as well, through Gradio's servers")] = False,
) -> None:
    """Serve a page in your browser: chat about images, generate them, look inside their codes."""
    find_checkpoint(checkpoint)
    check_address(host, port)
    try:
        import gradio  # noqa: F401 - looked for before the model is loaded
    except ImportError:
        raise ImportError("the page needs Gradio: pip install 'evotok[app]'") from None
    model, processor = load_multimodal(checkpoint)
    from evotok.app.page import build_page, launch_options

    if host not in LOOPBACK:
        print(f"note: everybody who reaches {host} can use this page.", file=sys.stderr)
    page = build_page(model, processor)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            **launch_options(),
        )
    except OSError:
        raise cannot_listen(host, port) from None
    print(f"EvoTok is at {address} (Ctrl+C ends it)", flush=True)
    try:
        threading.Event().wait()  # until Ctrl+C
    finally:
        page.close(verbose=False)
