"""Parts of the tools that look into models and their logs (docs/look_inside.md)."""
