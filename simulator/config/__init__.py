"""Text to specs: reads scenario, model and cluster files, and tells every problem with its line."""
