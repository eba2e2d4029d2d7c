"""Prompts and texts: which rows are taken, and what a trace says. Reruns prompts and texts."""
