"""Image sets on the device, and the batches that are drawn from them."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
