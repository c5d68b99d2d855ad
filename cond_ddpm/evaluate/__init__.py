"""Measuring what a pipeline folder is worth; reads that folder, never the trainer."""
