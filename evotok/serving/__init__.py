"""Server of `evotok serve`: an OpenAI-compatible interface over an engine that batches the waiting requests."""
