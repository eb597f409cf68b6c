"""The loss along directions: slices, kinks, and critical sharpness."""
