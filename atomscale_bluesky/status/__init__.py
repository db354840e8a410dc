"""What became of every reading, told by the files of a spool.

In: journals, ledgers and notes of a spool (folder `spool`); no connection to any process is needed.
Out: records for people and programs: accounts, states, an outage, the clock, a progress bar.
Guaranteed: seen = delivered + waiting + refused + discarded + left out, and lost is counted apart.

    account        one run's points by what became of them
    spool_status   the runs of a spool
    outage         what keeps readings from leaving, noted in the spool
    clock_note     how far this host's clock is off, noted in the spool
    probe_results  what a probe has found that an endpoint permits
    run_summary    the history's entry and the log's line of a run that is over
    progress       a bar on a terminal
"""
