"""What pages show of the records in results/: whole blocks, and single values within sentences."""
