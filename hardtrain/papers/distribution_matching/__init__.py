"""Li, Pan, Li, Zhu: in-training distribution matching."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
