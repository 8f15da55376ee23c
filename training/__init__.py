"""Training of EvoTok: recipes, the registry of stages, trainers."""
