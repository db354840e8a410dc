"""What is on disk: for each run a folder with journal, ledger, orders and locks, and beside them the history.

In: lines for a journal, facts for a ledger, orders of people.
Out: the same, read on from any position, by any process, at any time.
Guaranteed: a line that was written survives a killed process, and a synced one a power cut. A damaged line costs only
itself. Only names of the package's own form are ever touched.
Bounded: the spool's size and its disk's free space by the settings; reading by blocks.

    spool          the folder of all runs: making, claiming, syncing, finding
    disk_space     the spool's limit and its disk's free space
    run_writer     the writing end of a run; run_reader, its reading end
    run_claim      the delivering end of a run: one process at a time
    journal        segments of checksummed lines; journal_format, what they hold
    ledger         what became of each chunk; ledger_format and ledger_state, its facts and what they tell
    orders         what people have ordered; history, what is kept of finished runs
    kept_events    the events of a run's journals, to recognise a replay
    place          which folder is the spool; own_files, which names in it are the package's
    reserve        disk space that is held back for what must be noted
    gil_yield      leaves the interpreter to a plan's thread between two steps of long work
    lines, line_file, atomic_file, locks    single lines, files and locks
"""
