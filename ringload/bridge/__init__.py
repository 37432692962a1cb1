"""Code that adapters of several frameworks share. Imports no framework."""
