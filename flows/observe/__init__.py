"""What a run shows of itself while it runs: metrics for Prometheus, logs as JSON, traces."""
