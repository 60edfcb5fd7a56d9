"""What the performance claims are measured with: each module prints ratios against a peer measured in the same run."""
