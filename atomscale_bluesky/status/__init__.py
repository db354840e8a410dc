"""What happened to every reading, according to the files of a spool.

In: journals, ledgers and notes of a spool (folder `spool`). No connection to any process is needed.
Out: records for operators and programs: accounts, states, an outage, the clock, a progress bar.
Guaranteed: seen = delivered + waiting + refused + discarded + left out. Lost is counted separately.

    account        one run's points by what happened to them
    run_status     one run's status: its account, its streams, and what it waits for
    linked_to      to which instrument, sample, project and tags a run's streams are linked. Pure.
    remedies       the commands that mend a run which waits for the operator
    commands       the commands that messages name, with the option for a spool. Pure.
    spool_status   the runs of a spool
    run_parts      all parts of a run, in the spool and in its history
    spool_figures  the numbers of a spool for monitoring; running_totals, those that only grow
    outage         why readings cannot be delivered, noted in the spool
    clock_note     how far this host's clock is off, noted in the spool
    probe_results  what an endpoint permits, as found by a probe
    run_summary    a finished run's entry in the history and its line in the log
    run_rows       the rows of a run's journal in blocks, for plots and tables
    progress       a bar on a terminal
    page_source    what the page shows of spools
    notebook       tables as HTML. Pure.
"""
