"""The tasks of a run: one file for each kind.

In: a run as its files tell it (`claimed_run`), and Atomscale's answers.
Out: requests to Atomscale (folder `api`), and lines in the run's ledger before and after each.
Guaranteed: what must be known after a crash is noted before the request leaves. A task's input never changes under the
worker that performs it. Only the deciding thread touches the run and its ledger.

    work             what every kind has: its input, `perform`, `apply_result`, and the rest after a failure
    resolve          turn names of samples, projects and tags into ids, before the first stream is made
    initialize       make a metrology stream
    push             send a full chunk; preview, the beginning of one that is not full
    chunk_requests   the requests that a chunk takes: together, in halves, or channel by channel
    make_links       link a stream that exists
    read_back        read what a stream that ended holds, if chunks are in doubt
    finalize         close a stream when all of it is confirmed
    measure_clock    find out by how much the run's times are shifted
    verify           read the whole run back and compare

CONTRIBUTING.md lists what a further kind needs. A step after finalizing runs when `run.delivered` is true, as in
`verify`, and `run.finished` must wait for its record, because a finished run leaves the spool.
"""
