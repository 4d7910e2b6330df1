"""Hugging Face `config.json` files as models: each `model_type` is a function from its keys to ours."""
