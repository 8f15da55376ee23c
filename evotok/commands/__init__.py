"""The commands of `evotok`, one module each: `EXAMPLES`, and `run`, whose signature Typer reads.

They import torch in `run`, after the arguments are checked. The commands share the modules without `run`.
"""
