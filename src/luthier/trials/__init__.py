"""Many trials of one experiment: the space they come from, what they told, which values come next, what was found.

`space.py` the space and a trial's experiment; `record.py` a trial as its folder tells it; `study.py` samplers, pruners,
importance.
"""
