"""Metrics: pure functions from records to numbers. The formula of each stands in its docstring.

Times are integers of nanoseconds inside; a metric that has no value is None or NaN, never 0.
"""
