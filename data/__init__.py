"""Data: the embedded world of EvoTok-mini."""
