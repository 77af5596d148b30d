"""How fast is this device, beside what its memory and arithmetic allow?

`decode` measures the sampler, `step` the train step, `iteration` one after the other (`bench
train`). Each has a frozen dataclass of the work and a function from it to what goes into JSON as it
is. May import `run` and every room that it may.
"""
