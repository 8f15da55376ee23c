"""One file a suite: what `evotok eval SUITE` measures. Beside the library, suites may use the data of `training/`."""
