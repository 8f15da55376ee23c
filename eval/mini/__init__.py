"""What the suite `mini` measures: tokenizer, questions, text to image."""
