"""Models: load a base, hang methods on it, save and load what they learned.

Begin with `base.py` (what a base is), then `methods.py` (what is trained). `data` never comes in here, nor the loop.
"""
