"""The server of `evotok serve`: an OpenAI-compatible interface over an engine that batches what waits."""
