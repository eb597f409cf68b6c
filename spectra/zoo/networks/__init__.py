"""The built-in networks, one file per family, written from the papers; and how they are initialised."""
