"""What a dataset is: keys, shards, column groups, steps with receipts, manifests and their audit."""
