"""Bluesky's documents in, rows for a run's journal out; all of it on the plan's thread.

In: start, descriptor, event, event page and stop documents, in any state that a user's session may give them.
Out: a run's header, and lines for its journal (folder `spool`); every reading that becomes no row is counted, and each
document is answered with what became of it.
Guaranteed: no network. Nothing is kept in memory that grows with the run, but for a bounded number of event uids.

    recorder        takes documents, routes them to their runs, and answers each; accepted, what it answers
    run_files       makes, writes and ends the files of open runs
    start_document  the run's header, from its start document and the settings
    metadata        what the start document says about instrument, sample, project and tags
    selection       which event streams and data keys are taken
    event_stream    one event stream: which of its keys are channels, and its rows
    time_base       channels that share their times: values in, packed rows out
    conversion      one value in, a number out, or the reason why there is none
    open_run        what is known of a run whose stop document has not come
    known_runs      what earlier processes kept of a run that comes again
    rejections      documents that cannot be used: counted, and logged once
"""
