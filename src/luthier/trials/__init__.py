"""Many trials of one experiment: the space they come from, what they told, which values come next, what was found.

`space.py` the space and a trial's experiment; `record.py` a trial as its folder tells it; `study.py` samplers and
importance; `pruning.py` which trial is weak; `board.py` what was found, `conclude.py` in words, `optimism.py` how much
of it is luck; `rows.py` the rows they are compared on; `page.py` and `pictures.py` the page of a search.
"""
