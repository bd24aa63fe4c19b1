"""A package of your own: its modules register parts, its `configs` holds their yamls."""
