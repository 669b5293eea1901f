"""What a run reads: images from folders, named datasets and shards, and their splits, in batches."""
