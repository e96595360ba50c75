"""Did tuning work: answers of two models on the same rows, what they are worth, and how sure one can be.

Read `statistics.py` and `metrics.py` first; `report.py` puts them together. Nothing here knows how training works.
"""
