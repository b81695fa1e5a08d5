"""What `tools/check_data.py` looks for."""
