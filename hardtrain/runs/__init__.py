"""From the description of a training to its record, and to results as tables."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
