"""What GenEval's pictures show: the official detections by file, or a detector and a colour classifier of ours."""
