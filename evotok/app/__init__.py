"""The page of `evotok app`: chat about images, generate them, inspect their codes.

`page` builds it from a module for each tab: `chat`, `generate` and `inside`. `server` serves it behind `gate`, which
refuses requests that the page does not send, and `visitors`, which enforces the limits of each address.
"""
