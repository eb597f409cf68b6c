"""Curvature matrices as linear operators: their products with vectors, and the checks made before the first product."""
