"""The load generator: draws a schedule, sends it, stamps what comes back.

Not aware of backends, containers, Snakemake, file layout, tokens or metrics: it is given an address and bodies, and gives
records. While an answer is under way nothing of it is decoded or counted; only between the turns of a conversation is one read.
"""
