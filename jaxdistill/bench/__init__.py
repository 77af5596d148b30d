"""Measured speed beside what the device allows: what `jaxdistill bench` prints and writes.

`decode` is the sampler, `step` the train step, `iteration` one after the other (`bench train`).
Each has a frozen dataclass of the work and a function from it to what goes into JSON as it is.
"""
