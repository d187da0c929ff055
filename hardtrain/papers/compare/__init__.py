"""Which strategy helps on this data: what its notebook alone plans, computes, tabulates."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
