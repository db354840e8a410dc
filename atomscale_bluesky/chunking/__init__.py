"""Turns rows into chunks of a fixed number of points.

In: a run's journal and ledger (folder `spool`).
Out: chunks (`model.chunk`), in order, for the metrology streams that the ledger has opened.
Guaranteed: journal and ledger alone decide which rows make a chunk, so a chunk of a given index never changes.
Bounded: for each metrology stream, at most the rows of one unfinished chunk are in memory.

    chunker          the rules: rows of one time base in, decisions out, above all chunks. Pure.
    decisions        what these rules decide. Pure.
    cut_stream       a metrology stream while it is cut: its channels, and the points of its unfinished chunk. Pure.
    run_chunker      reads a run's journal, and notes in its ledger what the rules decide
    cut_results      what came of it, until delivery takes it: chunks to be pushed, streams that take no more
    rows_ahead       decodes the next rows of a journal together, where nothing about them is special
    stream_openings  which metrology streams a run has, and how a further one opens
    recut            cuts again the chunks that were tried, without noting anything
"""
