"""Atomscale's HTTP API: sends one request, and returns a result or raises a typed error.

In: chunks, links and labels (folder `model`), the settings.
Out: requests to the one host that the settings name, and their answers as records.
Guaranteed: nothing is tried twice here. The API key goes to no other host, and into no log or error.
Bounded: every request by its deadline, every answer by its size.

    client          one method for each call of the API
    wire            the API's paths and the bodies of requests. Pure.
    answers         what the API's answers say. Pure.
    answer_reader   reads an answer, long ones while they come in, and turns one that is not the API's into an error
    connection      sends one request, and turns what came back into an answer or an error
    lists           reads the API's lists piece by piece: catalogue entries, samples, projects, tags, instruments. Pure.
    stream_content  reads a stream's points from an answer piece by piece. Pure.
    json_parts      reads JSON that arrives in parts. Pure.
    hidden_key      keeps the API key out of errors. Pure.
    transport       deadlines, and a fast path for chunk after chunk over one connection
    clock           compares the server's clock with this host's
"""
