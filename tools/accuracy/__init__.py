"""What tools/benchmark_accuracy.py is made of: which rows there are, how they run, their table."""
