"""Which experiments run in the toy world, on a CPU within minutes?

A base is pretrained, distilled, and compared with its alternatives in studies. May import what
`configs` may.
"""
