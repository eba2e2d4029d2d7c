"""The machine that a job runs on: its GPUs, its memory, what it did meanwhile. Reruns nothing."""
