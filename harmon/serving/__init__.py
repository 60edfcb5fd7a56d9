"""The trained model behind an OpenAI-compatible API, its requests batched step by step; docs/serving.md."""
