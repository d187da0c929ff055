"""One loop, what strategies put into it, and the evaluation."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
