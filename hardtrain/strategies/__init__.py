"""One method per file; each imports torch and nothing else of hardtrain."""
