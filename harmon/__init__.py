"""The model that understands and generates images, its training, sampling and evaluation."""
