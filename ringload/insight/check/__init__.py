"""Checking a dataset before it is trained on: every image is loaded once, and the report says what is wrong with which."""
