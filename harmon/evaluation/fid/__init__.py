"""FID of drawn pictures against real ones: networks, preparation, statistics kept by content, and the two protocols."""
