"""What does a network compute from its parameters and tokens?

One decoder and the ways to run it: over whole sequences, and token by token with a KV cache.
`families` describes as data how each `model_type` differs. This package may import `losses` and
everything that `losses` may import; reading and writing files is left to `storage`.
"""
