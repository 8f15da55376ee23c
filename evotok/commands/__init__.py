"""The subcommands of `evotok`, one module each: `EXAMPLES`, `add_arguments(parser)` and `run(options)`.

Importing them costs nothing: what is heavy is imported when a command runs.
"""
