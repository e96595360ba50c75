"""Batches and steps as the reference document counts them (PARAMETERS §4, letter for letter); no remainder is dropped.

A *batch* is `batch_size` examples, a *step* one adjustment of the weights, an *epoch* one pass over the data.
"""

from __future__ import annotations


def batches_per_epoch(examples: int, batch_size: int) -> int:
    """Batches in one pass over `examples`.

    >>> batches_per_epoch(1_000, 10)
    100
    >>> batches_per_epoch(1_005, 10)
    101
    """
    return -(-examples // batch_size)


def steps_per_epoch(batches: int, accumulate_steps: int) -> int:
    """Adjustments of the weights in one pass of `batches`: 100 batches, accumulated by 10, make 10, not 100.

    >>> steps_per_epoch(100, 10)
    10
    >>> steps_per_epoch(101, 10)
    11
    """
    return -(-batches // accumulate_steps)


def total_batches(examples: int, batch_size: int, num_epochs: int) -> int:
    """Batches in the whole training.

    >>> total_batches(1_000, 10, 20)
    2000
    """
    return batches_per_epoch(examples, batch_size) * num_epochs
