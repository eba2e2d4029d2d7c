"""A configuration into an experiment, an experiment into jobs. Reruns nothing by itself."""
