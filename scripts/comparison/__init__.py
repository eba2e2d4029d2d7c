"""From cells to verdicts: pure functions. Reruns the report."""
