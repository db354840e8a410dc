"""Turns Bluesky's documents into rows for a run's journal, on the thread that brings the document.

In: start, descriptor, event, event page and stop documents, in any form that a user's session may produce.
Out: a run's header, and lines for its journal (folder `spool`). Every reading that becomes no row is counted, and each
document is answered with what happened to it. Any source of documents uses the recorder, as the callback does.
Guaranteed: no network. Memory does not grow with the run, except for a bounded number of event uids, and of events that
wait for their descriptor.

    recorder        takes documents one by one, also when a call comes during another call, and answers each
    accepted        the answer
    run_lookup      what a run's header says, and what was kept of the run before
    run_taker       takes start, descriptor and stop documents: how runs begin and end
    event_taker     takes events into the journals of their runs, each reading once
    open_runs       to which open run a document belongs, and how an interrupted run is resumed
    remembered_runs    runs that are not open: which of them ended, and which are skipped
    run_files       makes, writes and ends the files of open runs
    start_document  the run's header, from its start document and the settings
    metadata        what the start document says about instrument, sample, project and tags
    near_misses     metadata keys that are nearly one of ours
    validation      refuses a run for its metadata, for those who want that
    selection       which event streams and data keys are taken
    nothing_selected    says if the patterns leave out all that came of a run
    descriptor      reads a descriptor that may lack nearly everything
    description     what is used of a descriptor, as the journal keeps it
    row_times       which time a row has: its event's, or its readings' own
    channels        which channels a data key becomes, and their names
    event_page      the columns of a page, of any kind
    layout_chooser  which keys of an event stream are channels, and which of these share their times
    event_stream    one event stream: its events and pages as rows
    time_base       channels that share their times: encodes their values as rows
    conversion      turns one value into a number, or gives the reason why that is not possible
    open_run        the state of a run whose stop document has not come
    known_runs      what earlier processes kept of a run that comes again
    peers           recorders of the same process that get the same runs
    subscriptions   mistakes with subscriptions: warns, and leaves a run to a newer callback
    recognition     which readings of a document the earlier journals have
    early_events    events that wait for their descriptor
    missing_events  events that the stop document counts and that never came
    ignored_documents    documents that cannot be used: counted, and logged once
"""
