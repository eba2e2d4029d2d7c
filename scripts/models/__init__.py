"""Checkpoints: where they come from and how they lie in files. What is fetched is fixed by hashes, so this reruns nothing."""
