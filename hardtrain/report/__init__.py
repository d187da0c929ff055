"""What the notebooks of all papers share: tables, figures, figure data, and their execution."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
