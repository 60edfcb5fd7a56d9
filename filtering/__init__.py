"""What decides whether an image is worth training on, and the step that writes shuffled shards of those."""
