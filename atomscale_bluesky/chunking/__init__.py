"""Turns rows into chunks of a fixed number of points.

In: a run's journal and ledger (folder `spool`).
Out: chunks (`model.chunk`), in order, for the metrology streams that the ledger has opened.
Guaranteed: journal and ledger alone decide which rows make a chunk, so a chunk of a given index never changes.
Bounded: for each metrology stream, at most the rows of one unfinished chunk are in memory.

    chunker      the rules: rows of one time base in, decisions out, above all chunks. Pure.
    run_chunker  reads a run's journal, notes in its ledger what the rules decide, and keeps the chunks to be pushed
    recut        cuts chunks that were tried again, without noting anything
"""
