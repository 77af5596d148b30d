"""How fast do sampling and training run, compared with the memory and arithmetic of the device?

`decode` measures the sampler, `step` the train step, and `iteration` (`bench train`) one after the
other. Each has a frozen dataclass of settings in `work`, and a function that takes them and returns
a dict for JSON. May import `run` and every package that `run` may import.
"""
