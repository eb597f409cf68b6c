"""Built-in networks, data sets and tasks, and a small recipe that trains them. Nothing is downloaded."""
