"""Atomscale's HTTP API: one request in, a result or a typed error out.

In: chunks, links and labels (folder `model`), the settings.
Out: requests to the one host that the settings name, and their answers as records.
Guaranteed: nothing is tried twice here. The key goes to no other host, and into no log or error.
Bounded: every request by its deadline, every answer by its size.

    client     one method for each call of the API
    wire       how Atomscale spells things: paths, bodies, answers. Pure.
    read_back  a stream's points, a piece of the answer at a time. Pure.
    transport  deadlines, and the quick way for chunk after chunk over one connection
    clock      the server's clock against this host's
"""
