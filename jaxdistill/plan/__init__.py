"""`jaxdistill plan`: memory, collectives and a roofline of a run on devices that are not at hand.

`make_plan` (`plan.py`) is the entry. Figures come from the TPU compiler, which needs no TPU, or
from arithmetic on the config; each says which ("compiler" or "estimate").
"""
