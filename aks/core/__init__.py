"""Nouns: problem, config, device, measurement, features, metrics, errors. Standard library only."""
