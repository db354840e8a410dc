"""Rows in, chunks of a fixed number of points out.

In: a run's journal and ledger (folder `spool`).
Out: chunks (`model.chunk`), in order, for the metrology streams that the ledger has opened.
Guaranteed: which rows make a chunk follows from journal and ledger alone, so a chunk never changes under its index.
Bounded: at most the rows of one unfinished chunk for each metrology stream are in memory.

    chunker      the rules: rows of one time base in, chunks out. Pure.
    run_chunker  reads a run's journal on, and notes in its ledger what the rules decide
    recut        cuts chunks that were tried once more, without noting anything
"""
