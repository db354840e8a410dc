"""The files on disk: a folder per run with journal, ledger, orders and locks, and the history beside the folders.

In: lines for a journal, facts for a ledger, orders of the operator.
Out: the same, readable from any position, by any process, at any time.
Guaranteed: a written line survives a killed process, and a synced line survives a power cut. A damaged line costs only
itself. The package changes and removes only files whose names have one of its own forms.
Bounded: the settings limit the spool's size and set its disk's free-space floor. Files are read in blocks.

    spool          the folder of all runs: finds and claims them, and takes orders for them
    run_writers    the runs that this process writes, and the threads that sync them and watch the disk
    run_writer     the writing end of one run; run_reader is its reading end
    written_runs   which runs a living process writes
    disk_space     the spool's limit and its disk's free space; runs_not_kept, the runs for which there was none
    leftovers      folders of runs that died at their start
    run_claim      the delivering end of a run: one process at a time
    journal_writer appends checksummed lines to a journal; journal_reader reads them, however damaged it is
    journal_format the types of these lines; row_record is the binary form of rows
    segments       the files of a journal; line_bounds finds where lines begin and end in them
    ledger         what happened to each chunk; ledger_format has the facts, ledger_state the state they add up to, and
                   stream_state that of one metrology stream
    orders         the operator's orders; history has one entry per finished run
    journal_events reads the events of a run's journal as digests; stored_events keeps those of runs that left the spool
    kept_events    recognises by these which events of a replay were kept before
    spool_folder   which folder is the spool; own_files tells which names in it are the package's
    reserve        disk space that is held back for lines that must be written
    gil_yield      lets a plan's thread run between two steps of long work
    locks          who owns which part of a run; file_lock is the operating system's lock under it
    session_lock   the one lock for all runs of a session that have no lock of their own
    lines, line_file, atomic_file    single lines and files; sync makes them survive a power cut
"""
