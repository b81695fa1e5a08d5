"""Parts of tools/visualize_attention.py and tools/visualize_tokens.py."""
