"""``convnn bench``: times of our layers and of the layers that they replace, in the same run."""
