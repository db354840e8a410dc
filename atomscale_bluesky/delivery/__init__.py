"""Decides what is sent when. One thread decides, worker threads send.

In: runs of a spool (folder `spool`), with their journals, ledgers and orders.
Out: requests to Atomscale (folder `api`), and lines in the ledgers before and after each.
Guaranteed: what must be known after a crash is noted before the request leaves. A stream is finalized once, after each
of its chunks was confirmed. Nothing is given up while it can still succeed.
Bounded: runs that are delivered at a time, tasks given out, failed chunks kept in memory.

What a callback uses:

    deliverer        the interface between a callback and its uploader; drain, the question whether all is delivered
    uploader         delivers from this process
    uploader_elsewhere    the callback's end of an uploader in another process; drain_check reads how far that is
    uploader_watcher starts that process and watches it
    uploader_service the code that runs in that process
    terminal_log     names the package before its warnings where no handler is configured
    announcer        prints a line when a run begins, and when it is delivered or has to wait
    terminal         prints lines on standard error, so that a terminal that stands still holds up nobody
    prompt           keeps Python's prompt usable when a thread prints a line
    exit_hooks       what happens when the process ends or forks

The deciding thread:

    delivery_loop    messages in, tasks out
    unforeseen_errors    how long it waits before it begins again from the files
    run_scheduler    which runs are active: active_runs, waiting_runs, spool_listing, turns
    run_claiming     how a run becomes active; ledger_growth, which active ones make progress
    retry_policy     what an outcome means, and when a task is tried again
    backoff          how long to wait after a failure; outage_log, what is logged of it

One run:

    run_delivery     gives out its tasks and takes their results; claimed_run, its files and what was read of them
    task_order       the order in which its tasks come
    run_orders       the orders of the operator
    run_end          moves it into the history, or logs what is left of it
    tasks            a folder: one file for each kind of task, from `may it run now` to `what does the result mean`
    unfinished_tasks which tasks a worker has, and which failed and are tried again
    previews         shows the points of a slow stream before their chunk is full
    stream_end_rules ends a stream that takes no more points
    streams_about_to_end  what such a stream holds, and where its other points go
    pending_links    the links that are still to be made
    refusals         what a 403, a 413 or a closed stream means

The worker threads:

    worker_pool      the threads; task_runner, how one of them performs a task
    connection_limit how many of them send at a time
    tracing          spans of OpenTelemetry, where the application has set it up
"""
