"""How a stage runs and where its results lie. Reruns nothing, and knows nothing above it."""
