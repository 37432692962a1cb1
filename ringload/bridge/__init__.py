"""What the adapters of several frameworks share. Imports no framework."""
