"""Lattice fields against exact solutions, critical points and exponents."""
