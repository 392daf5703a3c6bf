"""The model registry (MLflow): where models come from, and where bundles are noted."""
