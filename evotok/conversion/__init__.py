"""Checkpoints of the paper's release: read, and written again, with the same codes and the same numbers.

`torch_files` opens them without running them, `sources` finds what they hold, `key_maps` says which of their tensors is
which of ours, `sizes` derives our configuration, `import_reference` and `export_reference` do the two ways.
"""
