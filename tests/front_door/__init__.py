"""The front door used at random: documents, signals, threads, `close`, forks and clock steps in any order.

`python -m tests.front_door --seeds 10000` plays many seeds; a sample of them is part of the test suite.
"""
