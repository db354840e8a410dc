"""What is sent when: one thread decides, worker threads send.

In: runs of a spool (folder `spool`), with their journals, ledgers and orders.
Out: requests to Atomscale (folder `api`), and lines in the ledgers before and after each.
Guaranteed: what must be known after a crash is noted before the request leaves; a stream is finalized once, after each
of its chunks was confirmed. Nothing is given up while it can still succeed.
Bounded: runs that are delivered at a time, tasks given out, failed chunks kept in memory.

    uploader         the deciding thread; drain, the question whether it is done
    active_runs      which runs it delivers now; waiting_runs, which ones wait or rest
    run_delivery     one run: what can be done next, and what an answer means for it
    previews, continuation, pending_links    parts of that: early points, streams that end early, links to make
    tasks            what a worker is given; task_runner, how it is done; worker_pool, the threads
    outcomes         what an answer means; backoff, how long to wait after a failure; outage_log, what is logged of it
    link_resolver    names of samples, projects and tags to ids
    uploader_process, uploader_service    the same uploader in a process of its own, from both ends
    exit_hooks       what happens when the process ends or forks
"""
