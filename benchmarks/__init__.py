"""How fast this package is, beside its peers: `python -m benchmarks <name>` measures and prints a table.

Each program prepares what it needs by itself, peers in a folder of their own included, runs everybody alternately in
one run, and prints medians, spread and ratios. Nothing here is a test and nothing has a limit that it must keep: a
ratio between two things that ran side by side tells more than a time on somebody else's machine.
"""
