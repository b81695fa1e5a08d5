"""Parts of tools/predict.py: pictures in, a model's predictions, JSON and drawings out."""
