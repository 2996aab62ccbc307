"""Markov chains with a flow: as proposals, as a change of coordinates, and learned while sampling.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763; Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119
(2022), arXiv 2105.12603.
"""
