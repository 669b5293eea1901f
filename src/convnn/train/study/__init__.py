"""Studies: many runs of one file, and what came of them, compared."""
