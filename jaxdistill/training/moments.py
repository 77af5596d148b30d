"""Adam's moments stored in bfloat16, or in the host's memory; computed in float32 as before.

Rounded to nearest the second moment would stand still: a step changes it by about (1 - b2) =
0.1 % where bfloat16 numbers lie 0.4 % to 0.8 % apart. It is rounded up or down at random instead,
right on average. The first moment moves by 10 % a step and is rounded to nearest.
"""
