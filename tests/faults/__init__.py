"""The fault bench: real runs against a server, a disk and a process table that misbehave; the documents alone judge.

`story` makes documents from a seed, `oracle` knows from the accepted ones what the server must hold, `child` is the
process that is killed, `disk` is a model of what a power cut leaves, `bench` is what a scenario works with, and
`scenarios` are the stories. `python -m tests.faults` runs many seeds and prints a table.
"""
