"""The commands of `evotok`, one module each: `EXAMPLES`, and `run`, whose signature Typer reads.

They import torch in `run`, after the arguments are checked. Modules without `run` are shared by the commands.
"""
