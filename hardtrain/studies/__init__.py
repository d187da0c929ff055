"""What single notebooks compute, tabulate and draw beyond what all share: one paper each."""
