"""Parts of the suite `mini`: tokenizer, questions, text to image."""
