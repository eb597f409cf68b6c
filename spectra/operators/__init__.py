"""Curvature matrices as operators: their products, and what is checked before the first one."""
