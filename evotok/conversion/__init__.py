"""Converts checkpoints of the paper's release into those of EvoTok, and back, with the same codes and outputs.

`torch_files` reads pickles without running them, `sources` finds the parts of a model in files and folders, `key_maps`
maps the names of tensors, `sizes` derives the configuration, `language` merges language models and their tokenizers.
"""
