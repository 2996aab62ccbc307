"""Stochastic localization via iterative posterior sampling, and what its benchmark compares it with.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758.
"""
