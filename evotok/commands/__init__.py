"""The commands of `evotok`, one module each: `EXAMPLES`, and `run`, whose signature is the command's for Typer.

Importing them costs nothing: what is heavy is imported when a command runs, after its arguments are checked.
"""
