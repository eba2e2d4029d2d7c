"""The load generator: draws a schedule, sends it, stamps what comes back.

Not aware of backends, containers, Snakemake, file layout, tokens or metrics: it is given URLs and bodies, and gives
records. Nothing is parsed, decoded or counted while a request is under way.
"""
