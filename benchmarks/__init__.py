"""Speed and memory measurements; no part of the installed package."""
