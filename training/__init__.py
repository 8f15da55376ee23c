"""Training of EvoTok: data, losses, stages."""
