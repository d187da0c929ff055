"""One method per file; each imports torch and nothing else of hardtrain."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
