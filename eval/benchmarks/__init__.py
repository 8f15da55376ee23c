"""What EvoTok's engine costs, beside a plain reference and the machine's own limits: `evotok bench`."""
