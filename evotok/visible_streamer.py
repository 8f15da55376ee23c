"""An answer printed while it is generated."""

from transformers import TextStreamer

from evotok.data.errors import escape_controls


class VisibleStreamer(TextStreamer):
    """`TextStreamer` that spells out what a terminal would obey."""

    def on_finalized_text(self, text: str, stream_end: bool = False):
        """Prints a piece of the answer."""
        super().on_finalized_text(escape_controls(text), stream_end)
