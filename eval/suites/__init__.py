"""One file a suite: what `evotok eval SUITE` measures. That of the suite `ablations` is in `training/ablations/`."""
