"""What does a network compute from its parameters and tokens?

One decoder and the ways to run it: over whole sequences, and token by token with a KV cache;
`families` says as data how each `model_type` differs. May import `losses` and every room that it
may. Files are `storage`'s.
"""
