"""The page of `evotok app`: chat about images, draw them, look inside their codes.

`chat`, `draw` and `inside` are plain functions and generators over a model and its processor; `running` and `limits`
keep one visitor from spoiling the page for the others; only `page` and `theme` know Gradio.
"""
