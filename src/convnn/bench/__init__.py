"""How fast is it here? ``convnn bench`` times our layers beside what a user would otherwise keep, in the same run."""
