"""Quantizers: (model, scheme) becomes an Artifact."""
