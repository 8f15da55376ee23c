"""Data: sources, mixtures, code shards, conversations, images, and the embedded world of EvoTok-mini."""
